//! Everything that a scrape of this process shows. Made once at start; the parts are shared with whoever counts.
//!
//! Output is OpenMetrics text. Encoding reads atomics and takes short locks that the data path does not take; with many
//! traffic series it is long, so it belongs on a blocking thread.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, text};
use prometheus_client::registry::Registry;

use crate::config::settings::TrafficLabelSet;
use crate::telemetry::door::Scope;
use crate::telemetry::family;
use crate::telemetry::log::LogHandle;
use crate::telemetry::process::ProcessStats;
use crate::telemetry::reloads::Reloads;
use crate::telemetry::traffic::{TrafficFamilies, TrafficLimits};
use crate::telemetry::workers::Workers;

/// All metrics. Shared by `Arc`; nothing in it changes but the numbers.
#[derive(Debug)]
pub struct Metrics {
    pub traffic: Arc<TrafficFamilies>,
    pub workers: Arc<Workers>,
    pub limits: Arc<ConnectionLimits>,
    pub reloads: Arc<Reloads>,
    pub process: Arc<ProcessStats>,
    registry: Registry,
}

/// The limits on connections in force, beside what is held now.
#[derive(Debug)]
pub struct ConnectionLimits {
    workers: Arc<Workers>,
    /// Zero: no limit.
    limits: [AtomicU64; Scope::ALL.len()],
}

impl Metrics {
    #[must_use]
    pub fn new(labels: &TrafficLabelSet, limits: TrafficLimits, log: LogHandle) -> Self {
        let traffic = Arc::new(TrafficFamilies::new(labels, limits));
        let workers = Arc::<Workers>::default();
        let limits = Arc::new(ConnectionLimits {
            workers: Arc::clone(&workers),
            limits: [const { AtomicU64::new(0) }; Scope::ALL.len()],
        });
        let reloads = Arc::<Reloads>::default();
        let process = Arc::<ProcessStats>::default();
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Build));
        registry.register_collector(Box::new(Arc::clone(&traffic)));
        registry.register_collector(Box::new(Arc::clone(&workers)));
        registry.register_collector(Box::new(Arc::clone(&limits)));
        registry.register_collector(Box::new(Arc::clone(&reloads)));
        registry.register_collector(Box::new(LogLines(log)));
        registry.register_collector(Box::new(Arc::clone(&process)));
        Self { traffic, workers, limits, reloads, process, registry }
    }

    /// Adds a gauge that is asked at every scrape. `help` is without a full stop.
    pub fn register_gauge(
        &mut self,
        name: &'static str,
        help: &'static str,
        value: impl Fn() -> f64 + Send + Sync + 'static,
    ) {
        debug_assert!(!self.has(name), "{name} is a metric already: a family that is there twice breaks every scrape");
        self.registry.register_collector(Box::new(Asked { name, help, value: Box::new(value) }));
    }

    /// Adds whatever else there is to show.
    pub fn register(&mut self, collector: Box<dyn Collector>) {
        self.registry.register_collector(collector);
    }

    fn has(&self, name: &str) -> bool {
        let mut text = String::new();
        self.encode(&mut text).is_ok() && text.contains(&format!("# HELP {name} "))
    }

    /// Writes the whole exposition.
    pub fn encode(&self, out: &mut impl fmt::Write) -> fmt::Result {
        text::encode(out, &self.registry)
    }
}

impl ConnectionLimits {
    /// What is in force from now on; `None`: no limit.
    pub fn set(&self, scope: Scope, limit: Option<std::num::NonZeroUsize>) {
        let limit = limit.map_or(0, |limit| u64::try_from(limit.get()).unwrap_or(u64::MAX));
        self.limits[scope as usize].store(limit, Ordering::Relaxed);
    }

    #[must_use]
    pub fn limit(&self, scope: Scope) -> Option<u64> {
        Some(self.limits[scope as usize].load(Ordering::Relaxed)).filter(|limit| *limit > 0)
    }
}

impl Collector for ConnectionLimits {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        family::gauges(
            &mut encoder,
            "adit_connections_current",
            "Connections that count towards the limit of the scope",
            Scope::ALL.map(|scope| ([("scope", scope.as_str())], self.workers.open_in(scope))),
        )?;
        let limited = Scope::ALL.into_iter().filter_map(|scope| Some((scope, self.limit(scope)?)));
        family::gauges(
            &mut encoder,
            "adit_connections_limit",
            "The limit in force; a scope without a limit has no sample",
            limited.map(|(scope, limit)| ([("scope", scope.as_str())], limit)),
        )
    }
}

#[derive(Debug)]
struct Build;

impl Collector for Build {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let labels = [("component", "adit"), ("tag", env!("CARGO_PKG_VERSION"))];
        family::gauges(&mut encoder, "istio_build", "Component build info", [(labels, 1_u64)])
    }
}

#[derive(Debug)]
struct LogLines(LogHandle);

impl Collector for LogLines {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Log lines lost because the log could not be written fast enough, or not at all";
        family::counter(&mut encoder, "adit_log_lines_dropped", help, self.0.lines_dropped())
    }
}

/// A gauge that somebody else knows.
struct Asked {
    name: &'static str,
    help: &'static str,
    value: Box<dyn Fn() -> f64 + Send + Sync>,
}

impl fmt::Debug for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asked").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Collector for Asked {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        family::gauge(&mut encoder, self.name, self.help, (self.value)())
    }
}

#[cfg(test)]
mod tests;
