//! A few descriptors kept back, so that the admin, metrics and readiness ports answer while the process has none left.
//! One is given up just before an accept that found none, and taken again when there is one.

use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many connections the surfaces can still accept at exhaustion.
const KEPT: usize = 8;

/// Shared by all HTTP servers; cheap to clone.
#[derive(Debug, Clone)]
pub struct FdReserve {
    files: Arc<Mutex<Vec<File>>>,
}

impl Default for FdReserve {
    fn default() -> Self {
        let reserve = Self { files: Arc::new(Mutex::new(Vec::with_capacity(KEPT))) };
        reserve.refill();
        reserve
    }
}

impl FdReserve {
    /// Frees one descriptor; false when none is left.
    #[must_use]
    pub fn give_up_one(&self) -> bool {
        self.lock().pop().is_some()
    }

    /// Takes back what can be had.
    pub fn refill(&self) {
        let mut files = self.lock();
        while files.len() < KEPT {
            let Ok(file) = File::open("/dev/null") else { return };
            files.push(file);
        }
    }

    /// How many are held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, Vec<File>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_up_is_taken_back() {
        let reserve = FdReserve::default();
        assert_eq!(reserve.len(), KEPT);
        while reserve.give_up_one() {}
        assert!(reserve.is_empty());
        reserve.refill();
        assert_eq!(reserve.len(), KEPT);
    }
}
