//! Asking the process to stop: by signal or by a request through the admin API. Any of them drains; only a second signal
//! ends at once.

use tokio::sync::mpsc;

use crate::app::signals::{Asked, Signals};
use crate::app::{housekeeping, reload, upgrade};

/// Who can end the process.
pub(super) struct Asking {
    signals: Signals,
    /// Whether a signal has asked for it already.
    signalled: bool,
    drain_requests: mpsc::Receiver<()>,
    reloads: mpsc::Sender<reload::Request>,
    upgrades: mpsc::Sender<upgrade::Request>,
}

impl Asking {
    #[must_use]
    pub(super) fn new(
        signals: Signals,
        drain_requests: mpsc::Receiver<()>,
        reloads: mpsc::Sender<reload::Request>,
        upgrades: mpsc::Sender<upgrade::Request>,
    ) -> Self {
        Self { signals, signalled: false, drain_requests, reloads, upgrades }
    }

    /// Returns when the process is asked to stop; passes requests to reload and upgrade on meanwhile.
    pub(super) async fn asked(&mut self) {
        loop {
            tokio::select! {
                asked = self.signals.next() => match asked {
                    Asked::Drain => { self.signalled = true; return }
                    Asked::Reload => self.reload(),
                    Asked::Upgrade => self.upgrade(),
                },
                Some(()) = self.drain_requests.recv() => return,
            }
        }
    }

    /// Returns at the second signal. A request is not one: an orchestrator asks for a drain, and then sends the signal that
    /// it always sends.
    pub(super) async fn told_again(&mut self, superseded: bool) {
        loop {
            match self.signals.next().await {
                Asked::Drain if self.signalled => return,
                Asked::Drain => {
                    self.signalled = true;
                    // A version that has been followed asks for no time before: that would hold the watchdog of the other off.
                    if superseded {
                        tokio::task::spawn_local(housekeeping::extend_stop());
                    }
                }
                Asked::Reload => self.reload(),
                // Whoever is to follow is there, or nobody is to follow a process that ends.
                Asked::Upgrade => {}
            }
        }
    }

    fn reload(&self) {
        tracing::info!("reload asked for by SIGHUP");
        // A full queue means that a reload is already asked for.
        let _ = self.reloads.try_send(None);
    }

    fn upgrade(&self) {
        tracing::info!("upgrade asked for by SIGUSR2");
        if self.upgrades.try_send(None).is_err() {
            tracing::warn!("an upgrade is under way already");
        }
    }
}
