//! The stretch of time in which a shape is measured, after its warm-up.
//!
//! Invariant: units and CPU time are read at the same two moments.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::super::account::Usage;
use super::super::stats;
use super::{Load, Measured, Timing, nanoseconds};

/// Runs from the first `turn` on.
pub(super) struct Window {
    warm: Instant,
    length: Duration,
    usage: fn() -> Result<Usage>,
    first: Option<Mark>,
    last: Option<Mark>,
    /// Latencies in nanoseconds, measured ones only.
    latencies: Vec<u32>,
}

struct Mark {
    at: Instant,
    units: u64,
    idle: Duration,
    usage: Usage,
}

impl Window {
    pub(super) fn new(timing: Timing, usage: fn() -> Result<Usage>) -> Self {
        let warm = Instant::now() + timing.warm_up;
        // Room for every sample of a second or two, so that the load does not grow a vector while it measures.
        Self { warm, length: timing.length, usage, first: None, last: None, latencies: Vec::with_capacity(1 << 19) }
    }

    /// Called on every turn of a shape's loop with the units completed so far. False from the moment when the shape should end.
    pub(super) fn turn(&mut self, load: &Load, units: u64) -> Result<bool> {
        if self.last.is_some() {
            return Ok(false);
        }
        let now = Instant::now();
        let Some(first) = &self.first else {
            if now >= self.warm {
                self.first = Some(self.mark(load, units)?);
            }
            return Ok(true);
        };
        if now.duration_since(first.at) < self.length {
            return Ok(true);
        }
        self.last = Some(self.mark(load, units)?);
        Ok(false)
    }

    /// Notes how long a unit took that began at `begun`, unless it ended outside the window.
    pub(super) fn took(&mut self, begun: Instant) {
        if self.first.is_some() && self.last.is_none() {
            self.latencies.push(u32::try_from(begun.elapsed().as_nanos()).unwrap_or(u32::MAX));
        }
    }

    /// The figures, once `turn` has said false.
    pub(super) fn measured(&mut self, sent: u64, received: u64) -> Result<Measured> {
        let (first, last) = self.first.as_ref().zip(self.last.as_ref()).context("the window never closed")?;
        let wall = last.at.duration_since(first.at);
        let latency_ns = (!self.latencies.is_empty()).then(|| stats::percentiles(&mut self.latencies, [500, 990, 999]));
        Ok(Measured {
            wall_ns: nanoseconds(wall),
            units: last.units - first.units,
            spent: last.usage.since(&first.usage),
            load_idle_ns: nanoseconds(last.idle.saturating_sub(first.idle)),
            latency_ns,
            memory: None,
            sockets: Vec::new(),
            sent,
            received,
        })
    }

    fn mark(&self, load: &Load, units: u64) -> Result<Mark> {
        Ok(Mark { usage: (self.usage)()?, at: Instant::now(), units, idle: load.bell.idle() })
    }
}
