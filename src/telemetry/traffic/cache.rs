//! A worker's own memory of which series belong to which labels: no lock and no comparison of text per connection.
//!
//! Found by the identity of the shared label sets, which the entry keeps alive, so that an address cannot be reused.
//! Two generations bound it: when the young one is full, it becomes the old one, and what the old one held is let go
//! unless it was asked for meanwhile. [`TrafficCache::rotate`] does the same for what is no longer asked for.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::telemetry::door::Reporter;
use crate::telemetry::traffic::{SecurityPolicy, TrafficFamilies, TrafficLabels, TrafficSeries};

/// Entries of one generation.
const GENERATION: usize = 512;

/// Addresses of shared label sets; compared, never followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Identity {
    source: usize,
    destination: usize,
    service: usize,
    reporter: Reporter,
    security: SecurityPolicy,
}

#[derive(Debug)]
struct Entry {
    /// Keeps the addresses taken.
    _labels: TrafficLabels,
    series: Arc<TrafficSeries>,
}

/// One per worker.
#[derive(Debug, Default)]
pub struct TrafficCache {
    young: HashMap<Identity, Entry>,
    old: HashMap<Identity, Entry>,
    /// Of the families' selection of labels.
    generation: u64,
}

impl TrafficCache {
    /// The series of `labels`, asked of `families` only if it is not known here.
    pub fn series(&mut self, families: &TrafficFamilies, labels: &TrafficLabels) -> Arc<TrafficSeries> {
        let generation = families.generation.load(Ordering::Relaxed);
        if generation != self.generation {
            *self = Self { generation, ..Self::default() };
        }
        let identity = Identity::of(labels);
        if let Some(entry) = self.young.get(&identity) {
            return Arc::clone(&entry.series);
        }
        let entry = self
            .old
            .remove(&identity)
            .unwrap_or_else(|| Entry { _labels: labels.clone(), series: families.series(labels) });
        let series = Arc::clone(&entry.series);
        if self.young.len() >= GENERATION {
            self.rotate();
        }
        self.young.insert(identity, entry);
        series
    }

    /// Lets go of what was not asked for since the last time. Call it about once a minute, so that the series of peers
    /// that are gone can expire.
    pub fn rotate(&mut self) {
        self.old = std::mem::take(&mut self.young);
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Identity {
    fn of(labels: &TrafficLabels) -> Self {
        Self {
            source: Arc::as_ptr(&labels.source).addr(),
            destination: Arc::as_ptr(&labels.destination).addr(),
            service: Arc::as_ptr(&labels.service).addr(),
            reporter: labels.reporter,
            security: labels.security,
        }
    }
}
