//! Look-ups of workloads' host names, as metrics: how they went, and ztunnel's count of who needed which name.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::DescriptorEncoder;

use crate::telemetry::family;
use crate::telemetry::labels::PeerLabels;
use crate::telemetry::workers::WorkerCounters;

/// Label sets that one worker keeps; the others count under a name of their own.
const MOST_NAMES: usize = 4096;
const OVERFLOW: &str = "overflow";

/// How a look-up went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum LookupResult {
    /// It was known, or known not to be.
    Cached,
    Found,
    Failed,
    Timeout,
}

impl LookupResult {
    pub const ALL: [Self; 4] = [Self::Cached, Self::Found, Self::Failed, Self::Timeout];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cached => "cached",
            Self::Found => "found",
            Self::Failed => "failed",
            Self::Timeout => "timeout",
        }
    }
}

type Demands = HashMap<(Arc<PeerLabels>, Arc<str>), u64>;

/// One worker's look-ups.
#[derive(Debug, Default)]
pub struct HostnameCounters {
    results: [AtomicU64; LookupResult::ALL.len()],
    /// (source, name) -> tries to connect that needed it. Only a scrape ever waits for this lock.
    demands: Mutex<Demands>,
}

impl HostnameCounters {
    pub fn count(&self, result: LookupResult) {
        self.results[result as usize].fetch_add(1, Ordering::Relaxed);
    }

    #[must_use]
    pub fn results(&self, result: LookupResult) -> u64 {
        self.results[result as usize].load(Ordering::Relaxed)
    }

    /// A try to connect needs the name, known or not.
    pub fn demanded(&self, source: &Arc<PeerLabels>, name: &Arc<str>) {
        let mut demands = self.demands.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (Arc::clone(source), Arc::clone(name));
        let full = demands.len() >= MOST_NAMES && !demands.contains_key(&key);
        let key = if full { (PeerLabels::unknown(), OVERFLOW.into()) } else { key };
        *demands.entry(key).or_default() += 1;
    }
}

/// Both families, summed over all workers.
pub(super) fn encode(encoder: &mut DescriptorEncoder<'_>, workers: &[Arc<WorkerCounters>]) -> fmt::Result {
    family::counters(
        encoder,
        "adit_hostname_lookups",
        "Look-ups of host names of workloads, by how they went",
        LookupResult::ALL.map(|result| {
            let sum: u64 = workers.iter().map(|worker| worker.hostnames.results(result)).sum();
            ([("result", result.as_str())], sum)
        }),
    )?;
    let mut sums = Demands::new();
    for worker in workers {
        for (key, count) in &*worker.hostnames.demands.lock().unwrap_or_else(PoisonError::into_inner) {
            *sums.entry(key.clone()).or_default() += count;
        }
    }
    family::counters(
        encoder,
        "istio_on_demand_dns",
        "The total number of tries to connect that needed a host name of a workload (unstable)",
        sums.iter().map(|((source, name), count)| (labels(source, name), *count)),
    )
}

fn labels<'a>(source: &'a PeerLabels, name: &'a str) -> [(&'static str, &'a str); 9] {
    let known = |value: &'a str| if value.is_empty() { "unknown" } else { value };
    [
        ("source_workload", known(&source.workload)),
        ("source_canonical_service", known(&source.canonical_service)),
        ("source_canonical_revision", known(&source.canonical_revision)),
        ("source_workload_namespace", known(&source.namespace)),
        ("source_principal", known(&source.principal)),
        ("source_app", known(&source.canonical_service)),
        ("source_version", known(&source.canonical_revision)),
        ("source_cluster", known(&source.cluster)),
        ("hostname", name),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_sets_are_bounded_and_nothing_is_lost() {
        let counters = HostnameCounters::default();
        let source = PeerLabels::unknown();
        for number in 0..MOST_NAMES + 7 {
            counters.demanded(&source, &format!("{number}.test").into());
        }
        counters.demanded(&source, &"0.test".into());
        let demands = counters.demands.lock().expect("a lock");
        assert_eq!(demands.len(), MOST_NAMES + 1);
        assert_eq!(demands.values().sum::<u64>(), u64::try_from(MOST_NAMES).expect("small") + 8);
        assert_eq!(demands.get(&(source, OVERFLOW.into())), Some(&7));
    }
}
