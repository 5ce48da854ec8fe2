//! Pace: how fast a worker may begin handshakes, so that the connections it carries keep most of its time.
//!
//! A handshake is a millisecond or so of arithmetic at one go. While the worker has other work, handshakes get a fifth
//! of its time; of what would be idle time they get nearly all. Told as a balance of time: what others work earns a
//! quarter of itself, idle time earns four times itself, and a handshake spends what it takes. One may begin while the
//! balance is not negative.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

/// The most that can be saved up: a crowd after a quiet time begins at once, and delays nobody for longer than this.
const SAVED: i64 = 20_000_000;
/// Between two looks at the balance.
const LOOK: Duration = Duration::from_millis(1);

/// A worker's balance, in nanoseconds.
#[derive(Debug)]
pub struct Pace {
    balance: Cell<i64>,
    /// When the balance was last settled, and how long the worker had been busy by then.
    settled: Cell<Option<(Instant, Duration)>>,
    /// What handshakes took since then.
    spent: Cell<Duration>,
}

impl Default for Pace {
    fn default() -> Self {
        Self { balance: Cell::new(SAVED), settled: Cell::new(None), spent: Cell::default() }
    }
}

impl Pace {
    /// Returns when one more handshake may begin. Only on a worker's own runtime.
    pub async fn ready(&self) {
        while !self.settle(Instant::now(), Handle::current().metrics().worker_total_busy_duration(0)) {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Brings the balance up to date; whether it is not negative. `busy`: how long the worker has ever been.
    fn settle(&self, now: Instant, busy: Duration) -> bool {
        if let Some((then, busy_then)) = self.settled.replace(Some((now, busy))) {
            let wall = now.saturating_duration_since(then);
            let busy = busy.saturating_sub(busy_then).min(wall);
            let spent = self.spent.take();
            let (others, idle) = (busy.saturating_sub(spent), wall - busy);
            let earned = nanos(others) / 4 + nanos(idle).saturating_mul(4);
            self.balance.set((self.balance.get() + earned - nanos(spent)).clamp(-SAVED, SAVED));
        }
        self.balance.get() >= 0
    }

    fn spend(&self, took: Duration) {
        self.spent.set(self.spent.get() + took);
    }
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// A handshake whose time is counted.
pub struct Paced<'a, F> {
    pub work: Pin<&'a mut F>,
    pub pace: &'a Pace,
}

impl<F: Future> Paced<'_, F> {
    pub async fn run(mut self) -> F::Output {
        poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<F::Output> {
        let begun = Instant::now();
        let result = self.work.as_mut().poll(cx);
        self.pace.spend(begun.elapsed());
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many handshakes of a millisecond a second of the worker's time has room for, if others want `load` of it.
    fn in_a_second(load: f64) -> u32 {
        let pace = Pace::default();
        let (mut now, mut busy) = (Instant::now(), Duration::ZERO);
        let end = now + Duration::from_secs(1);
        let (step, mut begun) = (Duration::from_millis(1), 0);
        while now < end {
            if pace.settle(now, busy) {
                pace.spend(step);
                begun += 1;
                (now, busy) = (now + step, busy + step);
            } else {
                (now, busy) = (now + step, busy + step.mul_f64(load));
            }
        }
        begun
    }

    #[test]
    fn a_fifth_beside_other_work_and_nearly_all_of_what_is_idle() {
        let (beside, alone) = (in_a_second(1.0), in_a_second(0.0));
        assert!((180..=230).contains(&beside), "{beside}");
        assert!(alone >= 790, "{alone}");
    }
}
