//! Connect through a tunnel: a stream to a workload's HBONE port, to a waypoint, or through a gateway, asked to go on from
//! there.
//!
//! In: what is dialled and who may be there. Out: a stream whose CONNECT was answered with 200. Through a gateway that is
//! a stream of a second tunnel inside the first one's. Never falls back to dialling in the clear.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use http::HeaderValue;
use tokio::time::Instant;

use crate::hbone::request::{Authority, ConnectRequest, Traceparent, claims_of, reason_of};
use crate::hbone::{OpenError, Opened, Stream, Tunnel, TunnelKey};
use crate::identity::SpiffeId;
use crate::net::address::UpstreamAddr;
use crate::proxy::connect::{ConnectError, Request};
use crate::proxy::resolve::route::{Asked, Leg};
use crate::proxy::worker::Worker;
use crate::telemetry::{CloseReason, PeerLabels};

/// An established stream.
#[derive(Debug)]
pub struct Tunnelled {
    pub stream: Stream,
    /// Whose other end is the destination's, or its waypoint's: through a gateway the inner one.
    pub tunnel: Rc<Tunnel>,
    /// Where the far side was asked to go on to.
    pub authority: Arc<str>,
    /// What the far side says of the workload that it has chosen, where it has the choice.
    pub labels: Option<Arc<PeerLabels>>,
}

/// Opens a stream to `hop`; `inner`: and in it another tunnel, to one of these.
pub(super) async fn open(
    worker: &Worker,
    request: &Request<'_>,
    leg: &Leg,
    hop: UpstreamAddr,
    inner: Option<&Arc<[SpiffeId]>>,
    deadline: Instant,
) -> Result<Tunnelled, ConnectError> {
    let Some(pool) = &worker.tunnel_pool else { return Err(CloseReason::NoIdentity.into()) };
    let uid = Arc::clone(&leg.workload.uid);
    let key = TunnelKey::new(hop.socket_addr(), Arc::clone(&leg.allowed), request.client.ip(), uid);
    let key = if matches!(leg.asked, Asked::Itself(_)) { key } else { key.to_go_on() };
    let authority = leg.authority(hop);
    let baggage = worker.served().workload.as_ref().and_then(|workload| worker.baggage.of(workload));
    let (_, service) = request.target.labels();
    let connect = ConnectRequest {
        authority: &authority,
        baggage: baggage.as_ref(),
        client: request.client.socket_addr(),
        service: service.as_deref().map(|service| &*service.hostname),
        trace: worker.with_random(Traceparent::random),
        network: None,
    };
    let outer = pool.open(&key, connect.build(), request.tunnel, deadline).await.map_err(|error| failed(&error))?;
    let Some(inner) = inner else { return Ok(established(outer, &authority, None)) };
    // A network whose name no header can carry is as good as unnamed.
    let network = HeaderValue::from_str(request.network).ok();
    let connect = ConnectRequest { network: network.as_ref(), ..connect };
    let opening = pool.open_inside(outer, Arc::clone(inner), connect.build(), request.tunnel, deadline);
    let opened = Box::pin(opening).await.map_err(|error| failed(&error))?;
    let principal = opened.tunnel.about.identity.id.shared();
    let claimed = claims_of(&opened.answer.headers).peer();
    let labels = claimed.map(|claimed| Arc::new(PeerLabels { principal, ..claimed }));
    Ok(established(opened, &authority, labels))
}

fn established(
    Opened { stream, tunnel, .. }: Opened,
    authority: &Authority,
    labels: Option<Arc<PeerLabels>>,
) -> Tunnelled {
    Tunnelled { stream, tunnel, authority: authority.to_string().into(), labels }
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
    let detail = Some(io::Error::other(words));
    ConnectError { blameless: !error.retryable(), ..ConnectError::new(error.close_reason(), detail) }
}
