//! The phases of the process, announced on one broadcast channel. Phases only move forward. A dropped sender is never
//! an event: whoever cannot hear the channel any more reads [`Lifecycle::phase`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use tokio::sync::broadcast;

/// Room for every phase change there can be, so that no receiver ever lags.
const CHANNEL_CAPACITY: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// Doors are bound; nothing is accepted yet.
    Starting,
    Ready,
    /// Not ready any more, still accepting (`shutdown.preDrain`).
    PreDrain,
    /// Inbound doors are closed; outbound ones stay open for an application that is still finishing.
    DrainInbound,
    /// All doors are closed; connections finish.
    DrainAll,
    /// The deadline is near: what is left is reset, spread over the window.
    Forced,
    Stopped,
}

impl Phase {
    const ALL: [Self; 7] =
        [Self::Starting, Self::Ready, Self::PreDrain, Self::DrainInbound, Self::DrainAll, Self::Forced, Self::Stopped];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::PreDrain | Self::DrainInbound | Self::DrainAll => "draining",
            Self::Forced => "forced",
            Self::Stopped => "stopped",
        }
    }
}

/// Handle to the one phase of the process; cheap to clone.
#[derive(Debug, Clone)]
pub struct Lifecycle {
    current: Arc<AtomicU8>,
    may_accept: Arc<AtomicBool>,
    superseded: Arc<AtomicBool>,
    sender: broadcast::Sender<Phase>,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self {
            current: Arc::new(AtomicU8::new(Phase::Starting as u8)),
            may_accept: Arc::default(),
            superseded: Arc::default(),
            sender: broadcast::Sender::new(CHANNEL_CAPACITY),
        }
    }
}

impl Lifecycle {
    #[must_use]
    pub fn phase(&self) -> Phase {
        let index = usize::from(self.current.load(Ordering::Acquire));
        Phase::ALL.get(index).copied().unwrap_or(Phase::Stopped)
    }

    /// Moves to `phase` and tells everyone; does nothing and returns false when the process is already that far.
    pub fn advance(&self, phase: Phase) -> bool {
        if phase == Phase::Ready {
            // Before the phase itself, which is what others wait for.
            self.may_accept.store(true, Ordering::Release);
        }
        let before = self.current.fetch_max(phase as u8, Ordering::AcqRel);
        if before >= phase as u8 {
            return false;
        }
        // No receivers is fine: they read `phase()` when they start.
        let _ = self.sender.send(phase);
        true
    }

    /// Whether the process has ever been told that it is ready. One that is told to stop before is in a later phase all the
    /// same, and has nothing to judge connections by.
    #[must_use]
    pub fn may_accept(&self) -> bool {
        self.may_accept.load(Ordering::Acquire)
    }

    /// Another process serves from now on: nothing more is accepted here, on no port, and what is open is finished.
    pub fn supersede(&self) {
        // Before the phase itself, which is what others wait for.
        self.superseded.store(true, Ordering::Release);
        self.advance(Phase::DrainAll);
    }

    #[must_use]
    pub fn is_superseded(&self) -> bool {
        self.superseded.load(Ordering::Acquire)
    }

    /// Returns once there is nothing to watch here any more: another process serves, or none does.
    pub async fn relieved(&self) {
        self.reached(Phase::DrainAll).await;
        if !self.is_superseded() {
            self.reached(Phase::Stopped).await;
        }
    }

    /// Subscribe before reading [`Self::phase`], so that no change falls between.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Phase> {
        self.sender.subscribe()
    }

    /// Returns once the process is at `phase` or further.
    pub async fn reached(&self, phase: Phase) {
        let mut receiver = self.subscribe();
        while self.phase() < phase {
            // Closed cannot happen while `self` holds a sender; lagging only means that `phase()` has moved.
            let _ = receiver.recv().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_only_move_forward() {
        let lifecycle = Lifecycle::default();
        assert_eq!(lifecycle.phase(), Phase::Starting);
        assert!(lifecycle.advance(Phase::DrainInbound));
        assert!(!lifecycle.may_accept(), "told to stop before it was ready");
        assert!(!lifecycle.advance(Phase::Ready));
        assert!(!lifecycle.advance(Phase::DrainInbound));
        assert_eq!(lifecycle.phase(), Phase::DrainInbound);
        for (index, phase) in Phase::ALL.iter().enumerate() {
            assert_eq!(*phase as usize, index);
        }
    }

    #[tokio::test]
    async fn only_a_superseded_process_is_relieved_before_its_end() {
        let (ended, superseded) = (Lifecycle::default(), Lifecycle::default());
        superseded.supersede();
        superseded.relieved().await;
        assert_eq!(superseded.phase(), Phase::DrainAll);
        ended.advance(Phase::DrainAll);
        let short = std::time::Duration::from_millis(20);
        tokio::time::timeout(short, ended.relieved()).await.expect_err("it is still draining");
        ended.advance(Phase::Stopped);
        ended.relieved().await;
    }

    #[tokio::test]
    async fn a_late_listener_does_not_wait() {
        let lifecycle = Lifecycle::default();
        lifecycle.advance(Phase::Forced);
        tokio::time::timeout(std::time::Duration::from_secs(1), lifecycle.reached(Phase::DrainAll))
            .await
            .expect("already reached");
    }
}
