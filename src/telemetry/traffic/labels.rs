//! Which labels a traffic series has, in which order, and under which key it is found. The order and the names are
//! ztunnel's. A value that is empty is written `unknown`; the four locality labels are there only if a workload is known.

use std::fmt;
use std::sync::{Arc, LazyLock};

use prometheus_client::encoding::{EncodeLabel, LabelSetEncoder};

use crate::config::settings::{TRAFFIC_LABELS, TrafficLabelSet};
use crate::telemetry::close_reason::ResponseFlag;
use crate::telemetry::door::Reporter;
use crate::telemetry::labels::{PeerLabels, ServiceLabels};

const FLAGS_INDEX: usize = 21;
const FIRST_LOCALITY: usize = 23;
/// Kept whatever the selection says: sums over both would count everything twice.
const ALWAYS: [&str; 2] = ["reporter", "response_flags"];

static TCP: LazyLock<Arc<str>> = LazyLock::new(|| "tcp".into());
static OVERFLOW: LazyLock<Arc<str>> = LazyLock::new(|| "overflow".into());
static REPORTERS: LazyLock<[Arc<str>; 2]> = LazyLock::new(|| Reporter::ALL.map(|reporter| reporter.as_str().into()));
static SECURITY: LazyLock<[Arc<str>; 2]> = LazyLock::new(|| ["unknown".into(), "mutual_tls".into()]);
static EMPTY: LazyLock<Arc<str>> = LazyLock::new(|| "".into());

/// How a connection was secured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SecurityPolicy {
    /// In the clear; ztunnel's word for it is `unknown`.
    #[default]
    Unknown,
    MutualTls,
}

/// What identifies a connection's traffic series.
#[derive(Debug, Clone)]
pub struct TrafficLabels {
    pub source: Arc<PeerLabels>,
    pub destination: Arc<PeerLabels>,
    pub service: Arc<ServiceLabels>,
    pub reporter: Reporter,
    pub security: SecurityPolicy,
}

/// The values of the selected labels; equal keys are one series. It keeps the selection it was made with: after a
/// reload, series of the old selection are still there until nobody uses them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct SeriesKey {
    selection: Arc<Selection>,
    values: Box<[Arc<str>]>,
    locality: bool,
}

/// Which labels are written, as indexes into [`TRAFFIC_LABELS`].
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Selection {
    kept: Vec<usize>,
}

impl Selection {
    /// Names that do not exist are the settings' business: here they select nothing.
    pub(super) fn new(labels: &TrafficLabelSet) -> Self {
        let keeps = |name: &str| match labels {
            TrafficLabelSet::Default => true,
            TrafficLabelSet::Only(names) => ALWAYS.contains(&name) || names.iter().any(|kept| kept == name),
        };
        Self { kept: (0..TRAFFIC_LABELS.len()).filter(|index| keeps(TRAFFIC_LABELS[*index])).collect() }
    }

    pub(super) fn key(self: &Arc<Self>, labels: &TrafficLabels) -> SeriesKey {
        let values = self.kept.iter().map(|index| labels.value(*index)).collect();
        let known = labels.source.is_known() || labels.destination.is_known();
        SeriesKey { selection: Arc::clone(self), values, locality: known && self.has_locality() }
    }

    /// Everything that there was no room for.
    pub(super) fn overflow(self: &Arc<Self>, reporter: Reporter) -> SeriesKey {
        let value = |index: &usize| match TRAFFIC_LABELS[*index] {
            "reporter" => Arc::clone(&REPORTERS[reporter as usize]),
            "request_protocol" => Arc::clone(&TCP),
            _ => Arc::clone(&OVERFLOW),
        };
        let values = self.kept.iter().map(value).collect();
        SeriesKey { selection: Arc::clone(self), values, locality: false }
    }

    fn has_locality(&self) -> bool {
        self.kept.last().is_some_and(|last| *last >= FIRST_LOCALITY)
    }
}

impl SeriesKey {
    pub(super) fn encode(&self, flag: ResponseFlag, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        for (index, value) in self.selection.kept.iter().zip(&self.values) {
            let value = match *index {
                FLAGS_INDEX => flag.as_str(),
                FIRST_LOCALITY.. if !self.locality => continue,
                _ if value.is_empty() => "unknown",
                _ => value,
            };
            (TRAFFIC_LABELS[*index], value).encode(encoder.encode_label())?;
        }
        Ok(())
    }
}

impl TrafficLabels {
    /// The value of `TRAFFIC_LABELS[index]`; the response flag is not part of a key.
    fn value(&self, index: usize) -> Arc<str> {
        let (source, destination, service) = (&*self.source, &*self.destination, &*self.service);
        let value = match index {
            0 => &REPORTERS[self.reporter as usize],
            1 => &source.workload,
            2 | 6 => &source.canonical_service,
            3 | 7 => &source.canonical_revision,
            4 => &source.namespace,
            // Only mutual TLS proves who the source is.
            5 if self.security == SecurityPolicy::MutualTls => &source.principal,
            8 => &source.cluster,
            9 => &service.hostname,
            10 => &service.namespace,
            11 => &service.name,
            12 => &destination.workload,
            13 | 17 => &destination.canonical_service,
            14 | 18 => &destination.canonical_revision,
            15 => &destination.namespace,
            16 => &destination.principal,
            19 => &destination.cluster,
            20 => &TCP,
            22 => &SECURITY[self.security as usize],
            23 => &source.region,
            24 => &source.zone,
            25 => &destination.region,
            26 => &destination.zone,
            _ => &EMPTY,
        };
        Arc::clone(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_are_those_of_the_list() {
        assert_eq!(TRAFFIC_LABELS[FLAGS_INDEX], "response_flags");
        assert_eq!(TRAFFIC_LABELS[FIRST_LOCALITY], "source_region");
    }
}
