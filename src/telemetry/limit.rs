//! A limit on how many lines a listener may log: failures before a connection is authorized are cheap for a peer to
//! cause, so only a few a second are written, and the rest is counted and summarised. Pure: the clock is an argument.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

/// At most `per_second` lines in any second-long window; one per listener and worker, so no lock.
#[derive(Debug, Clone)]
pub struct LineLimiter {
    per_second: u32,
    window_started: Option<Instant>,
    admitted: u32,
    suppressed: u64,
}

const WINDOW: Duration = Duration::from_secs(1);

impl LineLimiter {
    #[must_use]
    pub const fn new(per_second: NonZeroU32) -> Self {
        Self { per_second: per_second.get(), window_started: None, admitted: 0, suppressed: 0 }
    }

    /// Whether a line may be written now; if not, it is counted.
    pub fn admit(&mut self, now: Instant) -> bool {
        let running = self.window_started.is_some_and(|started| now.saturating_duration_since(started) < WINDOW);
        if !running {
            self.window_started = Some(now);
            self.admitted = 0;
        }
        if self.admitted < self.per_second {
            self.admitted += 1;
            return true;
        }
        self.suppressed = self.suppressed.saturating_add(1);
        false
    }

    /// How many lines were held back since the last summary: asked by the sweep; `Some` once their window is over.
    pub fn summary(&mut self, now: Instant) -> Option<u64> {
        let over = self.window_started.is_none_or(|started| now.saturating_duration_since(started) >= WINDOW);
        if self.suppressed == 0 || !over {
            return None;
        }
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_a_second_and_a_summary() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut limiter = LineLimiter::new(NonZeroU32::new(3).expect("three"));
        assert_eq!(limiter.summary(at(0)), None);
        assert_eq!((0..10).filter(|_| limiter.admit(at(1))).count(), 3);
        assert_eq!(limiter.summary(at(500)), None, "the window is not over");
        assert_eq!(limiter.summary(at(1001)), Some(7));
        assert_eq!(limiter.summary(at(1001)), None);
        assert_eq!((0..10).filter(|_| limiter.admit(at(1002))).count(), 3, "a new window");
    }

    #[test]
    fn a_flood_is_bounded_and_nothing_is_lost() {
        let start = Instant::now();
        let mut limiter = LineLimiter::new(NonZeroU32::new(5).expect("five"));
        let (mut admitted, mut summarised) = (0_u64, 0_u64);
        for ms in 0..10_000_u64 {
            let now = start + Duration::from_millis(ms);
            summarised += limiter.summary(now).unwrap_or(0);
            admitted += u64::from(limiter.admit(now));
        }
        assert_eq!(admitted, 50);
        summarised += limiter.summary(start + Duration::from_secs(20)).unwrap_or(0);
        assert_eq!(admitted + summarised, 10_000);
    }

    #[test]
    fn a_clock_that_goes_back_is_harmless() {
        let start = Instant::now() + Duration::from_secs(100);
        let mut limiter = LineLimiter::new(NonZeroU32::MIN);
        assert!(limiter.admit(start));
        assert!(!limiter.admit(start - Duration::from_secs(50)));
    }
}
