//! What became of attempts to load new settings or new state: counted by result, with the time of each and the hash of
//! what is in force. Touched at reloads only, so a lock is fine.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use crate::telemetry::family;

/// What is loaded and reloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reloaded {
    Config,
    Mesh,
}

impl Reloaded {
    const ALL: [Self; 2] = [Self::Config, Self::Mesh];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Mesh => "mesh",
        }
    }
}

#[derive(Debug, Default)]
pub struct Reloads {
    of: [Mutex<Record>; Reloaded::ALL.len()],
}

#[derive(Debug, Clone, Default)]
struct Record {
    applied: u64,
    rejected: u64,
    applied_at: Option<SystemTime>,
    rejected_at: Option<SystemTime>,
    hash: String,
}

impl Reloads {
    /// New content, known by `hash`, is in force since `at`.
    pub fn applied(&self, what: Reloaded, hash: &str, at: SystemTime) {
        let mut record = self.of[what as usize].lock().unwrap_or_else(PoisonError::into_inner);
        record.applied += 1;
        record.applied_at = Some(at);
        hash.clone_into(&mut record.hash);
    }

    /// New content was not valid; the old stays.
    pub fn rejected(&self, what: Reloaded, at: SystemTime) {
        let mut record = self.of[what as usize].lock().unwrap_or_else(PoisonError::into_inner);
        record.rejected += 1;
        record.rejected_at = Some(at);
    }

    fn records(&self) -> Vec<(&'static str, Record)> {
        let read = |what: Reloaded| self.of[what as usize].lock().unwrap_or_else(PoisonError::into_inner).clone();
        Reloaded::ALL.into_iter().map(|what| (what.as_str(), read(what))).collect()
    }
}

impl Collector for Reloads {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        let records = self.records();
        family::counters(
            encoder,
            "adit_reloads",
            "Attempts to load new settings or new state",
            records.iter().flat_map(|(what, record)| {
                let of = |result, count| ([("what", *what), ("result", result)], count);
                [of("applied", record.applied), of("rejected", record.rejected)]
            }),
        )?;
        family::gauges(
            encoder,
            "adit_reload_timestamp_seconds",
            "When the last attempt with this result was, since the Unix epoch in seconds",
            records.iter().flat_map(|(what, record)| {
                let of =
                    |result, at: Option<SystemTime>| at.map(|at| ([("what", *what), ("result", result)], unix(at)));
                [of("applied", record.applied_at), of("rejected", record.rejected_at)].into_iter().flatten()
            }),
        )?;
        let in_force = records.iter().filter(|(_, record)| !record.hash.is_empty());
        family::gauges(
            encoder,
            "adit_in_force",
            "The hash of the settings and of the state in force",
            in_force.map(|(what, record)| ([("what", *what), ("hash", record.hash.as_str())], 1_u64)),
        )
    }
}

fn unix(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
