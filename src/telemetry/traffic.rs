//! The traffic metrics: who talked to whom, how often and how much, under the names and labels that ztunnel uses.
//!
//! In: [`TrafficLabels`] of a connection. Out: an [`Arc<TrafficSeries>`] of atomics that the data path adds to, and at
//! a scrape one sample per series and family. Bytes and openings carry the flag `-`, ends carry the flag they ended with.
//!
//! Bounded three ways: a series that nobody holds and nobody asked for in a while is dropped; there is a hard cap, beyond
//! which connections count in one overflow series per reporter (the last quarter is not for what peers claim of
//! themselves); and `metrics.labels` leaves labels out, whereby series that become equal are one. The lookup takes a lock, so workers keep what they found in a [`TrafficCache`].

mod cache;
mod labels;

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, LabelSetEncoder};

use crate::config::settings::TrafficLabelSet;
use crate::telemetry::close_reason::ResponseFlag;
use crate::telemetry::door::Reporter;
use crate::telemetry::family;

pub use cache::TrafficCache;
pub use labels::{SecurityPolicy, TrafficLabels};
use labels::{Selection, SeriesKey};

const FLAGS: usize = ResponseFlag::ALL.len();

/// How many series there may be, and for how long an unused one is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrafficLimits {
    pub series: NonZeroUsize,
    pub unused_for: Duration,
}

impl Default for TrafficLimits {
    fn default() -> Self {
        let series = const { NonZeroUsize::new(10_000).expect("not zero") };
        Self { series, unused_for: Duration::from_secs(15 * 60) }
    }
}

/// The counters of one label set.
#[derive(Debug, Default)]
pub struct TrafficSeries {
    opened: AtomicU64,
    closed: [AtomicU64; FLAGS],
    sent: AtomicU64,
    received: AtomicU64,
    /// Seconds on the families' own clock.
    last_used: AtomicU64,
}

impl TrafficSeries {
    /// A connection is being carried, whether or not its destination can be reached.
    pub fn opened(&self) {
        self.opened.fetch_add(1, Ordering::Relaxed);
    }

    /// It ended; exactly once for each [`Self::opened`].
    pub fn closed(&self, flag: ResponseFlag) {
        self.closed[flag as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes that came from upstream and went downstream: the response.
    pub fn sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes that came from downstream and went upstream: the request.
    pub fn received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }

    fn closed_with(&self, flag: ResponseFlag) -> u64 {
        self.closed[flag as usize].load(Ordering::Relaxed)
    }
}

/// All traffic series.
#[derive(Debug)]
pub struct TrafficFamilies {
    selection: Mutex<Arc<Selection>>,
    /// Moves whenever the selection does, so that caches know.
    generation: AtomicU64,
    limits: TrafficLimits,
    started: Instant,
    /// Seconds since `started` at the last sweep.
    clock: AtomicU64,
    series: Mutex<HashMap<SeriesKey, Arc<TrafficSeries>>>,
    overflow: [Arc<TrafficSeries>; Reporter::ALL.len()],
    overflowed: AtomicU64,
    expired: AtomicU64,
}

impl TrafficFamilies {
    #[must_use]
    pub fn new(labels: &TrafficLabelSet, limits: TrafficLimits) -> Self {
        Self {
            selection: Mutex::new(Arc::new(Selection::new(labels))),
            generation: AtomicU64::new(0),
            limits,
            started: Instant::now(),
            clock: AtomicU64::new(0),
            series: Mutex::default(),
            overflow: Reporter::ALL.map(|_| Arc::default()),
            overflowed: AtomicU64::new(0),
            expired: AtomicU64::new(0),
        }
    }

    /// `metrics.labels` after a reload. New look-ups use it; what is held keeps counting under the old labels until
    /// nobody uses it any more.
    pub fn set_labels(&self, labels: &TrafficLabelSet) {
        let selection = Arc::new(Selection::new(labels));
        let mut current = self.selection.lock().unwrap_or_else(PoisonError::into_inner);
        if *current != selection {
            *current = selection;
            self.generation.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The series of `labels`; the overflow series when there is no room for another.
    #[must_use]
    pub fn series(&self, labels: &TrafficLabels) -> Arc<TrafficSeries> {
        let key = self.selection().key(labels);
        let mut all = self.lock();
        if let Some(series) = all.get(&key) {
            series.last_used.store(self.clock.load(Ordering::Relaxed), Ordering::Relaxed);
            return Arc::clone(series);
        }
        let limit = self.limits.series.get();
        let room = if labels.source.is_claimed() { limit - limit / 4 } else { limit };
        if all.len() >= room {
            drop(all);
            self.overflowed.fetch_add(1, Ordering::Relaxed);
            return Arc::clone(&self.overflow[labels.reporter as usize]);
        }
        let series = Arc::<TrafficSeries>::default();
        series.last_used.store(self.clock.load(Ordering::Relaxed), Ordering::Relaxed);
        all.insert(key, Arc::clone(&series));
        series
    }

    /// Drops series that nobody holds and that nobody has held or asked for since `unused_for`. Call it regularly, off
    /// the data path; it also moves the clock by which age is told. Returns how many were dropped.
    pub fn sweep(&self, now: Instant) -> usize {
        let clock = now.saturating_duration_since(self.started).as_secs();
        self.clock.fetch_max(clock, Ordering::Relaxed);
        let mut all = self.lock();
        let before = all.len();
        all.retain(|_, series| {
            // The count can only rise through this map, which is locked.
            if Arc::strong_count(series) > 1 {
                series.last_used.store(clock, Ordering::Relaxed);
                return true;
            }
            clock.saturating_sub(series.last_used.load(Ordering::Relaxed)) < self.limits.unused_for.as_secs()
        });
        if all.capacity() > 4 * all.len().max(64) {
            all.shrink_to_fit();
        }
        let dropped = before - all.len();
        drop(all);
        self.expired.fetch_add(u64::try_from(dropped).unwrap_or(u64::MAX), Ordering::Relaxed);
        dropped
    }

    /// How many series there are, the overflow ones not counted.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SeriesKey, Arc<TrafficSeries>>> {
        self.series.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn selection(&self) -> Arc<Selection> {
        Arc::clone(&self.selection.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What is there now, so that encoding holds no lock.
    fn snapshot(&self) -> Vec<(SeriesKey, Arc<TrafficSeries>)> {
        let mut all: Vec<_> = self.lock().iter().map(|(key, series)| (key.clone(), Arc::clone(series))).collect();
        for reporter in Reporter::ALL {
            let series = &self.overflow[reporter as usize];
            if series.opened.load(Ordering::Relaxed) > 0 {
                all.push((self.selection().overflow(reporter), Arc::clone(series)));
            }
        }
        all
    }

    fn encode_traffic(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let all = self.snapshot();
        if all.is_empty() {
            return Ok(());
        }
        let none = |value: fn(&TrafficSeries) -> &AtomicU64| {
            all.iter().map(move |(key, series)| {
                (Sample { key, flag: ResponseFlag::None }, value(series).load(Ordering::Relaxed))
            })
        };
        let ended = |least: fn(ResponseFlag) -> bool| {
            all.iter().flat_map(move |(key, series)| {
                ResponseFlag::ALL.into_iter().filter_map(move |flag| {
                    let count = series.closed_with(flag);
                    let listed = count > 0 || flag == ResponseFlag::None;
                    (listed && least(flag)).then_some((Sample { key, flag }, count))
                })
            })
        };
        family::counters(
            encoder,
            "istio_tcp_connections_opened",
            "The total number of TCP connections opened",
            none(|series| &series.opened),
        )?;
        family::counters(
            encoder,
            "istio_tcp_connections_closed",
            "The total number of TCP connections closed",
            ended(|_| true),
        )?;
        family::counters(
            encoder,
            "istio_tcp_connections_failed",
            "The total number of TCP connections that ended with a failure (unstable)",
            ended(|flag| flag != ResponseFlag::None),
        )?;
        family::counters(
            encoder,
            "istio_tcp_sent_bytes",
            "The size of total bytes sent during response in case of a TCP connection",
            none(|series| &series.sent),
        )?;
        family::counters(
            encoder,
            "istio_tcp_received_bytes",
            "The size of total bytes received during request in case of a TCP connection",
            none(|series| &series.received),
        )
    }
}

impl Collector for TrafficFamilies {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.encode_traffic(&mut encoder)?;
        let encoder = &mut encoder;
        let (series, limit) = (self.len(), self.limits.series.get());
        family::gauge(encoder, "adit_traffic_series", "Label sets that the traffic families hold", series)?;
        family::gauge(encoder, "adit_traffic_series_limit", "Label sets that they may hold", limit)?;
        family::counter(
            encoder,
            "adit_traffic_series_overflows",
            "Lookups that ended in the overflow series",
            self.overflowed.load(Ordering::Relaxed),
        )?;
        family::counter(
            encoder,
            "adit_traffic_series_expired",
            "Label sets that were dropped because nobody used them any more",
            self.expired.load(Ordering::Relaxed),
        )
    }
}

/// The labels of one sample.
struct Sample<'a> {
    key: &'a SeriesKey,
    flag: ResponseFlag,
}

impl prometheus_client::encoding::EncodeLabelSet for Sample<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        self.key.encode(self.flag, encoder)
    }
}

#[cfg(test)]
mod tests;
