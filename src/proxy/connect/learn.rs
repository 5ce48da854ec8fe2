//! What a try to connect tells of the endpoints that were picked for it.

use crate::proxy::balance::Picked;
use crate::proxy::connect::ConnectError;
use crate::proxy::worker::Worker;
use crate::telemetry::CloseReason;
use crate::telemetry::access::Attempt;

/// Notes what a try has shown of the endpoints that were picked for it.
pub(super) fn learn(worker: &Worker, picked: &[Picked], failure: Option<&ConnectError>, attempts: &[Attempt]) {
    let Some(attempt) = attempts.last() else { return };
    match failure {
        None => picked.iter().for_each(|picked| worker.endpoint_worked(picked, attempt.address, attempt.took)),
        // Through a gateway it is the gateway that was tried.
        Some(error) if blames_endpoint(error) => {
            if let Some(picked) = picked.last() {
                worker.endpoint_failed(picked, attempt.address, error.reason);
            }
        }
        Some(_) => {}
    }
}

/// Whether a failure tells something of the endpoint, and not of us, of the client or of what is denied.
pub(super) const fn blames_endpoint(error: &ConnectError) -> bool {
    !error.blameless
        && matches!(
            error.reason,
            CloseReason::ConnectTimeout
                | CloseReason::ConnectUnreachable
                | CloseReason::ConnectRefused
                | CloseReason::ConnectReset
                | CloseReason::TunnelConnectTimeout
                | CloseReason::TunnelHandshakeTimeout
                | CloseReason::TlsFailed
                | CloseReason::PeerRefused
                | CloseReason::Http2Failed
                | CloseReason::TunnelRefused
                | CloseReason::TunnelResponseTimeout
                | CloseReason::TunnelLost
        )
}
