//! File descriptors: the limit, raised once at start, and the budget that the data path lives within.
//!
//! The budget keeps a few descriptors back, so that admin, metrics and drain work while the data path has used up its
//! share. Nothing is ever allocated by the limit: container runtimes set it to a billion.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Kept back from the data path for everything else the process opens: logs, files, admin and metrics connections.
const RESERVE: usize = 32;

/// Raises the soft limit of open files to the hard limit.
///
/// Returns (soft limit before, soft limit now). If the kernel refuses, both are the old one.
#[must_use]
pub fn raise_limit() -> (u64, u64) {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let before = current.unwrap_or(u64::MAX);
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => (before, maximum.unwrap_or(u64::MAX)),
        Err(_) => (before, before),
    }
}

/// How many descriptors the process has open, from `/proc/self/fd`.
#[must_use]
pub fn open_now() -> usize {
    // The listing itself holds one.
    std::fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count().saturating_sub(1))
}

/// Counts the data path's descriptors against its share. Cheap to clone; one atomic operation per change.
#[derive(Debug, Clone)]
pub struct Budget(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    limit: usize,
    used: AtomicUsize,
    share: AtomicUsize,
}

impl Budget {
    /// `limit`: the soft limit; `others`: what is open beside the data path.
    #[must_use]
    pub fn new(limit: u64, others: usize) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let budget = Self(Arc::new(Counts { limit, used: AtomicUsize::new(0), share: AtomicUsize::new(0) }));
        budget.set_others(others);
        budget
    }

    /// What is open beside the data path, as it turns out.
    pub fn set_others(&self, others: usize) {
        self.0.share.store(self.0.limit.saturating_sub(others + RESERVE), Ordering::Relaxed);
    }

    /// Takes `count` descriptors from the share, or `None` when it is used up.
    #[must_use]
    pub fn take(&self, count: usize) -> Option<Lent> {
        let before = self.0.used.fetch_add(count, Ordering::Relaxed);
        if before + count > self.share() {
            self.0.used.fetch_sub(count, Ordering::Relaxed);
            return None;
        }
        Some(Lent { budget: self.clone(), count })
    }

    /// As [`Budget::take`], for what can be done without: only while half of the share is free.
    #[must_use]
    pub fn take_spare(&self, count: usize) -> Option<Lent> {
        if self.used() + count > self.share() / 2 {
            return None;
        }
        self.take(count)
    }

    #[must_use]
    pub fn used(&self) -> usize {
        self.0.used.load(Ordering::Relaxed)
    }

    #[must_use]
    pub fn share(&self) -> usize {
        self.0.share.load(Ordering::Relaxed)
    }
}

/// Descriptors that are accounted for; given back when dropped.
#[derive(Debug)]
pub struct Lent {
    budget: Budget,
    count: usize,
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.budget.0.used.fetch_sub(self.count, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_what_is_left_and_comes_back() {
        let budget = Budget::new(100, 20);
        let other = budget.clone();
        assert_eq!(budget.share(), 48);
        let most = budget.take(47).expect("within the share");
        assert!(budget.take(2).is_none());
        let last = budget.take(1).expect("the last one");
        drop(most);
        assert_eq!(budget.used(), 1);
        drop(last);
        assert_eq!(budget.used(), 0);
        budget.set_others(60);
        assert_eq!(other.share(), 8, "for everyone who holds it");
        let spare = [budget.take_spare(4), budget.take_spare(1)];
        assert_eq!(spare.each_ref().map(Option::is_some), [true, false], "half is kept for what must be");
        assert!(budget.take(4).is_some());
    }

    #[test]
    fn an_infinite_limit_allocates_nothing() {
        assert!(Budget::new(u64::MAX, 10).take(1).is_some());
        assert!(Budget::new(10, 20).take(1).is_none());
    }
}
