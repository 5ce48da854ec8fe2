//! What tries have shown of endpoints: learned for the next draw, counted, said.

use std::net::SocketAddr;
use std::time::Duration;

use crate::proxy::balance::Picked;
use crate::proxy::balance::eject;
use crate::proxy::worker::Worker;
use crate::telemetry::CloseReason;

impl Worker {
    /// The clock of the endpoints: milliseconds since the process started.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        u64::try_from(self.shared.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// It was connected to, which took so long.
    pub fn endpoint_worked(&self, picked: &Picked, address: SocketAddr, took: Duration) {
        if picked.live.succeeded(self.now_ms(), took) {
            tracing::info!(endpoint = %address, "an ejected endpoint works again");
        }
    }

    /// Connecting to it failed, or its tunnel was lost.
    pub fn endpoint_failed(&self, picked: &Picked, address: SocketAddr, reason: CloseReason) {
        let Some(among) = &picked.among else { return };
        let (now, jitter) = (self.now_ms(), self.with_random(fastrand::Rng::f64));
        let Some(time) = eject::failed(among, &picked.live, self.settings().balance, now, jitter) else { return };
        self.counters.ejected();
        self.shared.ejections.add(&picked.live, address, now);
        let (time, reason) = (humantime::format_duration(time).to_string(), reason.as_str());
        tracing::info!(endpoint = %address, time, reason, "endpoint ejected");
    }
}
