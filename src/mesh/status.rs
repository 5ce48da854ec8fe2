//! What is known about the state's source: for `/mesh`, metrics, readiness, `adit status`. One value on a watch channel,
//! replaced at every attempt that counts.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Serialize, Serializer};

use crate::config::problem::Problems;

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MeshStatus {
    /// As set: files and folders.
    pub sources: Vec<PathBuf>,
    /// What is waited for before the first state; empty once there is one.
    pub waiting_for: Vec<String>,
    /// Of the published state; 0 before the first.
    pub generation: u64,
    pub hash: Arc<str>,
    #[serde(serialize_with = "rfc3339_if_any")]
    pub applied_at: Option<SystemTime>,
    pub files: usize,
    pub workloads: usize,
    pub services: usize,
    pub policies: usize,
    /// Whether what the files say now is what is published.
    pub in_sync: bool,
    /// The last content that was refused; stays when a later one is applied.
    pub last_rejected: Option<Rejection>,
    pub reloads: ReloadCounts,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rejection {
    #[serde(serialize_with = "rfc3339")]
    pub at: SystemTime,
    pub problems: Arc<Problems>,
}

/// Attempts since the start. A look that finds nothing new is not an attempt, unless somebody asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct ReloadCounts {
    pub applied: u64,
    pub rejected: u64,
    pub unchanged: u64,
}

/// What one attempt led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReloadOutcome {
    Applied {
        generation: u64,
        /// Resources that entered, were replaced or left; 0 when only comments changed.
        changes: usize,
    },
    Unchanged {
        generation: u64,
    },
    /// The state before stays.
    Rejected(Arc<Problems>),
    /// There is no state yet, and no file to make one from.
    Waiting(Arc<Problems>),
}

impl MeshStatus {
    /// Whether a state was published; adit is not ready before.
    #[must_use]
    pub const fn has_state(&self) -> bool {
        self.generation > 0
    }
}

fn rfc3339<S: Serializer>(at: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_seconds(*at))
}

#[expect(clippy::ref_option, reason = "serde calls it so")]
fn rfc3339_if_any<S: Serializer>(at: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
    match at {
        Some(at) => rfc3339(at, serializer),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::problem::{Origin, Problem};

    #[test]
    fn as_json_it_has_readable_times() {
        let rejection = Rejection {
            at: SystemTime::UNIX_EPOCH,
            problems: Arc::new(Problem::of(Origin::File("a.yaml".into()), "wrong").into()),
        };
        let status =
            MeshStatus { applied_at: Some(rejection.at), last_rejected: Some(rejection), ..MeshStatus::default() };
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(json["appliedAt"], "1970-01-01T00:00:00Z");
        assert_eq!(json["lastRejected"]["at"], "1970-01-01T00:00:00Z");
        assert_eq!(json["lastRejected"]["problems"][0]["origin"], "a.yaml");
        assert_eq!(serde_json::to_value(MeshStatus::default()).unwrap()["appliedAt"], serde_json::Value::Null);
    }
}
