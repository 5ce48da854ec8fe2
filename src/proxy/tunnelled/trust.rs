//! Trust in the peers of live tunnels, in both roles: judged again whenever there are new credentials, since a handshake
//! is only the first time.
//!
//! Here is when; what a verdict does to a tunnel it knows itself ([`Tunnel::judge`]). A new leaf of our own changes nothing.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::hbone::Tunnel;
use crate::identity::TlsGeneration;
use crate::proxy::worker::Worker;
use crate::telemetry::{Role, TunnelEnd};

/// Tunnels judged at one go: a chain is a fraction of a millisecond.
const AT_ONE_GO: usize = 8;

/// Judges all tunnels of the worker by new credentials, a few at a time, and the others meanwhile.
pub async fn judge_tunnels(worker: Rc<Worker>, generation: Arc<TlsGeneration>) {
    let mut tunnels = Vec::with_capacity(worker.tunnels.len());
    worker.tunnels.for_each(|tunnel| tunnels.push(Rc::clone(tunnel)));
    for some in tunnels.chunks(AT_ONE_GO) {
        let now = SystemTime::now();
        for tunnel in some.iter().filter(|tunnel| tunnel.end().is_none()) {
            tunnel.judge(&generation, now);
        }
        tokio::task::yield_now().await;
    }
}

/// Judges a tunnel that was made while there came new credentials.
pub(super) fn judge_newcomer(worker: &Worker, tunnel: &Tunnel) {
    let current = worker.shared.tls.as_ref().and_then(|tls| tls.borrow().clone());
    tunnel.judge_newcomer(current.as_deref(), SystemTime::now());
}

/// The sweep's part: what has outlived its root's grace is cut, what peers opened to us and is too old is retired.
pub fn look_after(worker: &Worker, now: Instant, wall: SystemTime) {
    let settings = worker.settings();
    worker.tunnels.for_each(|tunnel| {
        if tunnel.doomed().is_some_and(|until| until <= wall) {
            tunnel.cut(TunnelEnd::Untrusted);
        }
        if tunnel.about.role == Role::Server && is_too_old(tunnel, now, settings.tunnel.max_age) {
            tunnel.retire(TunnelEnd::MaxAge);
        }
    });
}

/// Up to a tenth later than the limit, so that tunnels that came together do not all go together: by the port that
/// the peer has come from.
fn is_too_old(tunnel: &Tunnel, now: Instant, limit: Option<Duration>) -> bool {
    let jitter = f64::from(tunnel.about.peer.port() % 256) / 2560.0;
    let limit = limit.map(|limit| limit + limit.mul_f64(jitter));
    limit.is_some_and(|limit| now.saturating_duration_since(tunnel.opened) >= limit)
}

#[cfg(test)]
mod tests;
