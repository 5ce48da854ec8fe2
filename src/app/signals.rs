//! Signals: SIGTERM and SIGINT drain, a second one exits at once, SIGHUP reads everything again, SIGUSR2 upgrades.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    Drain,
    Reload,
    Upgrade,
}

/// The signals that adit listens for, from the moment this exists.
#[derive(Debug)]
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    user_defined2: Signal,
}

impl Signals {
    /// # Errors
    /// The system's, when a handler cannot be installed.
    pub(super) fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            user_defined2: signal(SignalKind::user_defined2())?,
        })
    }

    /// The next signal. Cancel safe.
    pub(super) async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Drain,
            _ = self.interrupt.recv() => Asked::Drain,
            _ = self.hang_up.recv() => Asked::Reload,
            _ = self.user_defined2.recv() => Asked::Upgrade,
        }
    }
}
