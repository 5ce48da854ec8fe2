//! Gives memory back that is free in the allocator and still counts as this process's.
//!
//! glibc keeps what was freed between things that live on, which after a burst is most of what the burst took. Each worker
//! watches its own load ([`Ebb`]) and asks for it back when a burst is over ([`give_back`]): at most once per burst, and
//! not on its own thread. With another C library nothing is done.

use std::time::{Duration, Instant};

/// Fewer connections make no burst.
const BURST: usize = 256;
/// A burst is over when no more than one part in so many of its connections is left, for so long.
const LEFT: usize = 4;
const OVER_AFTER: Duration = Duration::from_secs(5);

/// Sees the end of a burst.
#[derive(Debug, Default)]
pub(super) struct Ebb {
    /// Connections at the height of it.
    most: usize,
    low_since: Option<Instant>,
}

impl Ebb {
    /// To be told how many connections there are, every second or more often. Returns whether a burst has just ended.
    #[must_use]
    pub(super) fn sees(&mut self, connections: usize, now: Instant) -> bool {
        self.most = self.most.max(connections);
        if self.most < BURST || connections > self.most / LEFT {
            self.low_since = None;
            return false;
        }
        let since = *self.low_since.get_or_insert(now);
        let over = now.saturating_duration_since(since) >= OVER_AFTER;
        if over {
            *self = Self { most: connections, low_since: None };
        }
        over
    }
}

/// Asks the allocator to. Takes milliseconds, during which others may wait for memory: not for a worker's thread.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "nobody wraps it")]
pub(super) fn give_back() {
    // SAFETY: it takes no pointer, and any thread may call it at any time.
    let _whether_there_was_any = unsafe { libc::malloc_trim(0) };
}

/// Nothing to ask for.
#[cfg(not(target_env = "gnu"))]
pub(super) fn give_back() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_ends_once_and_only_after_a_while() {
        let (mut ebb, start) = (Ebb::default(), Instant::now());
        let mut sees = |connections, seconds| ebb.sees(connections, start + Duration::from_secs(seconds));
        let burst = [(0, 0), (1000, 1), (10, 2), (10, 6), (10, 7), (10, 30)];
        assert_eq!(burst.map(|(connections, at)| sees(connections, at)), [false, false, false, false, true, false]);
        let again = [(300, 31), (70, 32), (100, 36), (70, 37), (70, 41), (75, 42)];
        assert_eq!(again.map(|(connections, at)| sees(connections, at)), [false, false, false, false, false, true]);
        let few = [(255, 50), (0, 51), (0, 100)];
        assert_eq!(few.map(|(connections, at)| sees(connections, at)), [false, false, false], "that is no burst");
    }

    #[test]
    #[cfg(target_env = "gnu")]
    fn what_is_free_is_given_back() {
        let resident = || {
            let text = std::fs::read_to_string("/proc/thread-self/smaps_rollup").expect("smaps_rollup");
            let line = text.lines().find_map(|line| line.strip_prefix("Rss:")).expect("Rss");
            line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number")
        };
        // Small pieces, of which some that lie between the others live on.
        let mut pieces: Vec<Option<Box<[u8; 1024]>>> = (0..64 * 1024).map(|_| Some(Box::new([1; 1024]))).collect();
        pieces.iter_mut().enumerate().filter(|(at, _)| at % 64 != 0).for_each(|(_, piece)| drop(piece.take()));
        let before = resident();
        give_back();
        let after = resident();
        assert!(after + 32 * 1024 < before, "{before} KiB before, {after} KiB after");
        drop(pieces);
    }
}
