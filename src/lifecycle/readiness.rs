//! Readiness: ready is when nothing blocks. Each blocker has a name, since when, and the last error, so that
//! a probe's answer says what to look at. A blocker that heals makes the process ready again without a restart.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

/// One reason why the process is not ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocker {
    /// Which part, for example `mesh`, `listeners`, `descriptors`, `drain`.
    pub name: String,
    pub since: SystemTime,
    /// What is known about why.
    pub error: Option<String>,
}

/// Shared by whoever can block readiness; read by the probe, never by the data path.
#[derive(Debug, Clone, Default)]
pub struct Readiness {
    blockers: Arc<Mutex<BTreeMap<String, Blocker>>>,
}

impl Readiness {
    /// Blocks under `name`; an existing blocker keeps its `since` and takes the new error.
    pub fn block(&self, name: &str, error: Option<String>) {
        let mut blockers = self.blockers.lock().unwrap_or_else(PoisonError::into_inner);
        blockers
            .entry(name.to_owned())
            .and_modify(|blocker| blocker.error.clone_from(&error))
            .or_insert_with(|| Blocker { name: name.to_owned(), since: SystemTime::now(), error });
    }

    /// Takes the blocker `name` back.
    pub fn clear(&self, name: &str) {
        self.blockers.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// Sorted by name; empty means ready.
    #[must_use]
    pub fn blockers(&self) -> Vec<Blocker> {
        self.blockers.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.blockers.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_healed_blocker_makes_ready_and_keeps_since() {
        let readiness = Readiness::default();
        readiness.block("mesh", None);
        let since = readiness.blockers()[0].since;
        readiness.block("mesh", Some("no such file".into()));
        assert_eq!(
            readiness.blockers(),
            vec![Blocker { name: "mesh".into(), since, error: Some("no such file".into()) }]
        );
        assert!(!readiness.is_ready());
        readiness.clear("mesh");
        assert!(readiness.is_ready());
    }
}
