//! What is known of an endpoint from using it: open connections, how long connecting took lately, whether it fails.
//!
//! It hangs on the workload and on the service, outlives their versions, and is the one part of the state that changes
//! under its readers: counters that all workers add to, none of which guards anything else, hence relaxed atomics. Times
//! are milliseconds of a clock that the caller brings. Nothing here decides who is chosen.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// A recent latency counts half after so many milliseconds.
const HALF_LIFE_MS: u64 = 10_000;
/// Each new latency moves the mean by one part in so many.
const WEIGHT: u64 = 4;
/// No try has lasted so long, in microseconds: what overflows is worth no more.
const LONGEST_US: u64 = u32::MAX as u64;

/// Of a workload. Equal to every other: two versions of a workload do not differ by it.
#[derive(Debug, Clone, Default)]
pub struct Live(Arc<Counters>);

impl PartialEq for Live {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Live {}

#[derive(Debug, Default)]
struct Counters {
    open: AtomicU32,
    failures: AtomicU32,
    /// Mean latency in microseconds, and the second half of the clock when it was measured.
    latency: AtomicU64,
    /// Not to be chosen before; 0: it is fine.
    ejected_until: AtomicU64,
    /// Ejections since it was last fine.
    ejections: AtomicU32,
    /// Whether somebody has taken the try that decides whether it is back.
    on_trial: AtomicBool,
}

/// Whether an endpoint may be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Fine,
    /// It was ejected and its time is over: one connection may see whether it works again.
    OnTrial,
    Ejected,
}

impl Live {
    /// Whether both are of the same workload.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Connections that use it.
    #[must_use]
    pub fn open(&self) -> u32 {
        self.0.open.load(Ordering::Relaxed)
    }

    /// Counts one more connection until the returned value is dropped, unless there are `limit` already.
    #[must_use]
    pub fn take(&self, limit: Option<NonZeroU32>) -> Option<InUse> {
        let in_use = InUse(Arc::clone(&self.0));
        let before = self.0.open.fetch_add(1, Ordering::Relaxed);
        // Dropped where it is too many, which takes the count back.
        limit.is_none_or(|limit| before < limit.get()).then_some(in_use)
    }

    #[must_use]
    pub fn standing(&self, now_ms: u64) -> Standing {
        match self.0.ejected_until.load(Ordering::Relaxed) {
            0 => Standing::Fine,
            until if now_ms < until => Standing::Ejected,
            _ => Standing::OnTrial,
        }
    }

    /// Takes the one try that an endpoint on trial gets; for everybody else it stays ejected for `time`.
    #[must_use]
    pub fn try_out(&self, now_ms: u64, time: Duration) -> bool {
        let counters = &*self.0;
        let until = counters.ejected_until.load(Ordering::Relaxed);
        let taken = until != 0
            && until <= now_ms
            && counters
                .ejected_until
                .compare_exchange(until, now_ms + millis(time), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if taken {
            counters.on_trial.store(true, Ordering::Relaxed);
        }
        taken
    }

    /// Whether a failure is that of the one try. Other failures of an ejected endpoint tell nothing new: those connections
    /// began before it was ejected, or had no other choice.
    #[must_use]
    pub fn ends_trial(&self) -> bool {
        self.0.on_trial.swap(false, Ordering::Relaxed)
    }

    /// Connecting to it worked, and took so long. Returns whether it had been ejected.
    pub fn succeeded(&self, now_ms: u64, took: Duration) -> bool {
        let counters = &*self.0;
        if counters.failures.load(Ordering::Relaxed) != 0 {
            counters.failures.store(0, Ordering::Relaxed);
        }
        let was_out = counters.ejected_until.load(Ordering::Relaxed) != 0;
        if was_out {
            counters.ejected_until.store(0, Ordering::Relaxed);
            counters.ejections.store(0, Ordering::Relaxed);
            counters.on_trial.store(false, Ordering::Relaxed);
        }
        let took = u64::try_from(took.as_micros()).unwrap_or(LONGEST_US).min(LONGEST_US);
        let before = self.latency_us(now_ms);
        let mean = if before == 0 { took } else { before - before / WEIGHT + took / WEIGHT };
        // Two workers may overwrite each other: one sample is lost, which is no matter.
        counters.latency.store(mean.min(LONGEST_US) << 32 | now_ms & LONGEST_US, Ordering::Relaxed);
        was_out
    }

    /// Connecting to it failed, or a tunnel to it was lost. Returns how often in a row.
    #[must_use]
    pub fn failed(&self) -> u32 {
        self.0.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1)
    }

    /// Leaves it alone: for `first`, and twice as long each time until it works again, at most `most`; up to a tenth longer
    /// by `jitter` (0 to 1). Returns for how long.
    pub fn eject(&self, now_ms: u64, first: Duration, most: Duration, jitter: f64) -> Duration {
        let times = self.0.ejections.fetch_add(1, Ordering::Relaxed);
        let time = first.saturating_mul(1 << times.min(16)).min(most);
        let time = time + time.mul_f64(jitter.clamp(0.0, 1.0) / 10.0);
        self.0.ejected_until.store(now_ms.saturating_add(millis(time)).max(1), Ordering::Relaxed);
        self.0.failures.store(0, Ordering::Relaxed);
        time
    }

    /// How long connecting took lately, in microseconds, the less the longer ago; 0: not known.
    #[must_use]
    pub fn latency_us(&self, now_ms: u64) -> u64 {
        let packed = self.0.latency.load(Ordering::Relaxed);
        // The clock's second half wraps every seven weeks; so does the difference.
        let age = now_ms.wrapping_sub(packed & LONGEST_US) & LONGEST_US;
        (packed >> 32) >> (age / HALF_LIFE_MS).min(63)
    }
}

/// One connection to an endpoint.
#[derive(Debug)]
pub struct InUse(Arc<Counters>);

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn connections_are_counted_up_to_the_limit() {
        let live = Live::default();
        let limit = NonZeroU32::new(2);
        let (first, second) = (live.take(limit), live.take(limit));
        assert!(first.is_some() && second.is_some() && live.take(limit).is_none());
        assert_eq!(live.open(), 2);
        drop(first);
        assert!(live.take(limit).is_some());
        assert_eq!(live.open(), 1, "what was not kept does not count");
        assert!(live.take(None).is_some());
    }

    #[test]
    fn an_ejected_endpoint_gets_one_try_and_comes_back_when_it_works() {
        let live = Live::default();
        assert_eq!((live.failed(), live.failed(), live.standing(0)), (1, 2, Standing::Fine));
        assert_eq!(live.eject(1000, SECOND, 60 * SECOND, 0.0), SECOND);
        assert_eq!((live.standing(1999), live.standing(2000)), (Standing::Ejected, Standing::OnTrial));
        assert!(!live.try_out(1999, SECOND), "not yet");
        assert!(live.try_out(2000, 5 * SECOND) && !live.try_out(2000, 5 * SECOND), "one of two gets it");
        assert_eq!((live.standing(6999), live.standing(7000)), (Standing::Ejected, Standing::OnTrial));
        assert!(live.succeeded(7000, Duration::from_micros(80)));
        assert_eq!((live.standing(7000), live.failed()), (Standing::Fine, 1), "failures count anew");
    }

    #[test]
    fn ejections_grow_until_it_works() {
        let live = Live::default();
        let times: Vec<u64> = (0..5).map(|_| live.eject(0, SECOND, 6 * SECOND, 0.0).as_secs()).collect();
        assert_eq!(times, [1, 2, 4, 6, 6]);
        let _ = live.succeeded(0, SECOND);
        assert_eq!(live.eject(0, SECOND, 6 * SECOND, 0.0), SECOND);
    }

    #[test]
    fn a_latency_is_forgotten() {
        let live = Live::default();
        assert_eq!(live.latency_us(5), 0);
        let _ = live.succeeded(1000, Duration::from_micros(800));
        assert_eq!([1000, 11_000, 21_000, 1_000_000].map(|now| live.latency_us(now)), [800, 400, 200, 0]);
        let _ = live.succeeded(1000, Duration::from_micros(1600));
        assert_eq!(live.latency_us(1000), 1000);
        let _ = live.succeeded(u64::from(u32::MAX), Duration::from_micros(800));
        assert_eq!(live.latency_us(u64::from(u32::MAX) + 10_000), 400, "across the clock's second half");
    }

    proptest! {
        #[test]
        fn a_time_is_within_its_bounds(first in 1_u64..100_000, more in 0_u64..1_000_000, times in 1_usize..40, jitter in -1.0..2.0_f64) {
            let live = Live::default();
            let (first, most) = (Duration::from_millis(first), Duration::from_millis(first + more));
            for _ in 0..times {
                let time = live.eject(1, first, most, jitter);
                prop_assert!(time >= first && time <= most + most / 10);
                prop_assert_eq!(live.standing(1), Standing::Ejected);
            }
        }
    }
}
