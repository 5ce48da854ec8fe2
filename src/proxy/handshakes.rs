//! Bounded handshakes: how many peers that connect may be in their handshake at the same time, and who is next.
//!
//! In: what waits, each with the deadline of its whole handshake. Out: what may begin now, and what is shed. The slots
//! ([`Slots`]) are of the process, the queue ([`Queue`]) is of a worker.
//!
//! - The newest begins first: it has the most time left. In first-in-first-out order an overload makes each one begin
//!   just before its peer gives up, and all of the work is for nothing.
//! - Whoever's time is over, or nearly so, is shed without any work, the oldest first; a full queue sheds its oldest.
//! - Whoever has had a tenth of its time makes room when somebody waits for a slot: peers that connect and do not go on
//!   keep nobody out.
//! - What a worker spends on handshakes is bounded while it has other work ([`Pace`]): a fifth of its time.
//!
//! Fails closed: what has no slot does not begin. Deliberately absent: the handshake.

mod pace;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::telemetry::LineLimiter;

pub use pace::{Pace, Paced};

/// Sockets that may wait on one worker.
const WAITING: usize = 1024;
/// What has less of its time left than one part in so many is not worth beginning.
const TOO_LATE: u32 = 10;
/// Such a part of its time a handshake has undisturbed, even if others wait for its slot.
const UNDISTURBED: u32 = 10;
/// How often one that has had it looks whether others wait.
const LOOK: Duration = Duration::from_millis(10);
/// Failed handshakes that the process logs a second.
const LINES: NonZeroU32 = match NonZeroU32::new(10) {
    Some(lines) => lines,
    None => NonZeroU32::MIN,
};

/// The slots of the process, and its limit of lines about failures. Clones are the same.
#[derive(Debug, Clone)]
pub struct Slots(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    free: Arc<Semaphore>,
    limit: Mutex<usize>,
    /// Slots that are lent beyond a limit that was lowered; they go as they come back.
    excess: AtomicUsize,
    /// Workers that wait for a slot, and handshakes that are making room for them.
    wanted: AtomicUsize,
    promised: AtomicUsize,
    lines: Mutex<LineLimiter>,
}

/// A worker that waits for a slot.
struct Wanting<'a>(&'a Shared);

impl<'a> Wanting<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.wanted.fetch_add(1, Ordering::Relaxed);
        Self(shared)
    }
}

impl Drop for Wanting<'_> {
    fn drop(&mut self) {
        take_one(&self.0.promised);
        take_one(&self.0.wanted);
    }
}

/// One less, unless there is none; whether there was.
fn take_one(count: &AtomicUsize) -> bool {
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| count.checked_sub(1)).is_ok()
}

/// One handshake that may run, until this is dropped.
#[derive(Debug)]
pub struct Slot {
    permit: Option<OwnedSemaphorePermit>,
    slots: Slots,
}

impl Slots {
    #[must_use]
    pub fn new(limit: NonZeroUsize) -> Self {
        let limit = limit.get().min(Semaphore::MAX_PERMITS);
        Self(Arc::new(Shared {
            free: Arc::new(Semaphore::new(limit)),
            limit: Mutex::new(limit),
            excess: AtomicUsize::new(0),
            wanted: AtomicUsize::new(0),
            promised: AtomicUsize::new(0),
            lines: Mutex::new(LineLimiter::new(LINES)),
        }))
    }

    /// Applies to the next handshake.
    pub fn set_limit(&self, limit: NonZeroUsize) {
        let new = limit.get().min(Semaphore::MAX_PERMITS);
        let Shared { free, limit, excess, .. } = &*self.0;
        let mut limit = limit.lock().unwrap_or_else(PoisonError::into_inner);
        if new > *limit {
            let more = new - *limit;
            let owed = |owed: usize| Some(owed.saturating_sub(more));
            let before = excess.fetch_update(Ordering::Relaxed, Ordering::Relaxed, owed).unwrap_or(0);
            free.add_permits(more - more.min(before));
        } else {
            let fewer = *limit - new;
            excess.fetch_add(fewer - free.forget_permits(fewer), Ordering::Relaxed);
        }
        *limit = new;
    }

    /// Handshakes that run now.
    #[must_use]
    pub fn running(&self) -> usize {
        let limit = *self.0.limit.lock().unwrap_or_else(PoisonError::into_inner);
        (limit + self.0.excess.load(Ordering::Relaxed)).saturating_sub(self.0.free.available_permits())
    }

    /// Waits for a slot; whoever asked first gets the next one.
    pub async fn take(self) -> Option<Slot> {
        let free = || Arc::clone(&self.0.free);
        let permit = if let Ok(permit) = free().try_acquire_owned() {
            permit
        } else {
            let _wanting = Wanting::new(&self.0);
            // Never closed.
            free().acquire_owned().await.ok()?
        };
        Some(Slot { permit: Some(permit), slots: self })
    }

    /// Returns when a handshake that begins now, with so much time, is to make room for another.
    pub async fn make_room(&self, time: Duration) {
        tokio::time::sleep(time / UNDISTURBED).await;
        let Shared { wanted, promised, .. } = &*self.0;
        let one_more = |promised| (promised < wanted.load(Ordering::Relaxed)).then_some(promised + 1);
        while promised.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_err() {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Whether one more line about a failed handshake may be logged; a lock, and only for failures.
    #[must_use]
    pub fn admit_line(&self, now: std::time::Instant) -> bool {
        self.0.lines.lock().unwrap_or_else(PoisonError::into_inner).admit(now)
    }

    /// How many lines were left out since this was last asked.
    #[must_use]
    pub fn left_out(&self, now: std::time::Instant) -> Option<u64> {
        self.0.lines.lock().unwrap_or_else(PoisonError::into_inner).summary(now)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if take_one(&self.slots.0.excess)
            && let Some(permit) = self.permit.take()
        {
            permit.forget();
        }
    }
}

/// Something that waits for its handshake to begin.
#[derive(Debug)]
struct Waiting<T> {
    what: T,
    /// By when the whole handshake must be complete.
    deadline: Instant,
    /// When it is too late to begin.
    too_late: Instant,
}

/// What waits on one worker, the oldest first.
#[derive(Debug)]
pub struct Queue<T> {
    waiting: RefCell<VecDeque<Waiting<T>>>,
    /// Handshakes of this worker that run, and those between the queue and their task.
    running: Cell<usize>,
    arrived: Notify,
    pub pace: Pace,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        let waiting = RefCell::default();
        Self { waiting, running: Cell::new(0), arrived: Notify::new(), pace: Pace::default() }
    }
}

impl<T> Queue<T> {
    /// Adds what has `time` from now on for its whole handshake; returns what had to make room.
    #[must_use]
    pub fn push(&self, what: T, now: Instant, time: Duration) -> Option<T> {
        let mut waiting = self.waiting.borrow_mut();
        let shed = if waiting.len() >= WAITING { waiting.pop_front().map(|oldest| oldest.what) } else { None };
        waiting.push_back(Waiting { what, deadline: now + time, too_late: now + time - time / TOO_LATE });
        self.arrived.notify_one();
        shed
    }

    /// The newest, with its deadline. Whoever takes it tells [`Self::done`] when its handshake is over.
    #[must_use]
    pub fn begin(&self) -> Option<(T, Instant)> {
        let newest = self.waiting.borrow_mut().pop_back()?;
        self.running.set(self.running.get() + 1);
        Some((newest.what, newest.deadline))
    }

    pub fn done(&self) {
        self.running.set(self.running.get().saturating_sub(1));
    }

    /// The oldest, if it is too late for it.
    #[must_use]
    pub fn shed(&self, now: Instant) -> Option<T> {
        let mut waiting = self.waiting.borrow_mut();
        waiting.pop_front_if(|oldest| oldest.too_late <= now).map(|oldest| oldest.what)
    }

    /// Any that still waits; when nobody shall begin any more.
    #[must_use]
    pub fn drop_one(&self) -> Option<T> {
        self.waiting.borrow_mut().pop_front().map(|oldest| oldest.what)
    }

    /// When it is too late for the oldest.
    #[must_use]
    pub fn next_too_late(&self) -> Option<Instant> {
        self.waiting.borrow().front().map(|oldest| oldest.too_late)
    }

    /// Returns when something was added.
    pub async fn arrival(&self) {
        self.arrived.notified().await;
    }

    /// What waits and what runs.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.borrow().len() + self.running.get()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests;
