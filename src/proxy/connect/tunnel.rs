//! Connect through a tunnel: a stream to a workload's HBONE port, asked to go on to the workload's own.
//!
//! In: where the workload is and who it may be. Out: a stream whose CONNECT was answered with 200. Never falls back to
//! dialling in the clear.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use tokio::time::Instant;

use crate::hbone::request::{Authority, ConnectRequest, Traceparent, reason_of};
use crate::hbone::{self, OpenError, Opened, Stream, Tunnel, TunnelKey};
use crate::identity::SpiffeId;
use crate::mesh::Workload;
use crate::net::address::UpstreamAddr;
use crate::proxy::connect::{ConnectError, Request};
use crate::proxy::resolve::Target;
use crate::proxy::worker::Worker;
use crate::telemetry::CloseReason;

/// An established stream.
#[derive(Debug)]
pub struct Tunnelled {
    pub stream: Stream,
    pub tunnel: Rc<Tunnel>,
    /// Where the far side was asked to go on to.
    pub authority: Arc<str>,
}

/// Where the tunnel to a workload goes.
pub(super) fn next_hop(address: UpstreamAddr) -> UpstreamAddr {
    UpstreamAddr::new(SocketAddr::new(address.ip(), hbone::PORT))
}

/// Opens a stream to `workload`, which has `address`.
pub(super) async fn open(
    worker: &Worker,
    request: &Request<'_>,
    address: UpstreamAddr,
    workload: &Workload,
    deadline: Instant,
) -> Result<Tunnelled, ConnectError> {
    let Some(pool) = &worker.tunnel_pool else { return Err(CloseReason::NoIdentity.into()) };
    let allowed = allowed(request.target, workload);
    let hop = next_hop(address).socket_addr();
    let key = TunnelKey::new(hop, allowed, request.client.ip(), Arc::clone(&workload.uid));
    let authority = Authority::of_address(address.socket_addr());
    let baggage = {
        let (settings, snapshot) = (worker.settings(), worker.snapshot());
        let local = snapshot.local_workload(&settings.workload, &settings.node);
        local.and_then(|workload| worker.baggage.of(workload))
    };
    let (_, service) = request.target.labels();
    let connect = ConnectRequest {
        authority: &authority,
        baggage: baggage.as_ref(),
        client: request.client.socket_addr(),
        service: service.as_deref().map(|service| &*service.hostname),
        trace: worker.with_random(Traceparent::random),
        network: None,
    };
    match pool.open(&key, connect.build(), request.tunnel, deadline).await {
        Ok(Opened { stream, tunnel, .. }) => Ok(Tunnelled { stream, tunnel, authority: authority.to_string().into() }),
        Err(error) => Err(failed(&error)),
    }
}

/// With the words of every level: the reason alone does not say which address or which certificate.
fn failed(error: &OpenError) -> ConnectError {
    let mut words = error.to_string();
    if let OpenError::Refused { headers, .. } = error
        && let Some(reason) = reason_of(headers)
    {
        words.push_str(", ");
        words.push_str(&reason);
    }
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        words.push_str(": ");
        words.push_str(&cause.to_string());
        source = cause.source();
    }
    ConnectError { reason: error.close_reason(), detail: Some(io::Error::other(words)) }
}

/// Who may answer: the workload itself, and whom its service names.
fn allowed(target: &Target, workload: &Workload) -> Arc<[SpiffeId]> {
    let names: &[Arc<str>] = match target {
        Target::Single { .. } => &[],
        Target::Service { state, .. } => &state.service.subject_alt_names,
    };
    if names.is_empty() {
        return Arc::clone(&workload.identity);
    }
    let also = names.iter().filter_map(|name| name.parse().ok());
    workload.identity.iter().cloned().chain(also).collect()
}
