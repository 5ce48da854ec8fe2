//! The outbound door: connections of the local workload that the kernel has captured on their way out.

use std::rc::Rc;
use std::sync::Arc;

use tokio::net::TcpStream;

use crate::config::Settings;
use crate::config::settings::Connect;
use crate::mesh::Workload;
use crate::net::address::{OriginalDst, UpstreamAddr, canonical};
use crate::net::own_sockets::{Ends, Way};
use crate::proxy::Opening;
use crate::proxy::account::labels_of;
use crate::proxy::authorize::Permit;
use crate::proxy::connect::{ConnectError, Connected, Request, Tunnelled, Via, connect};
use crate::proxy::original_dst::{Known, original_dst};
use crate::proxy::proxy_header::introduce;
use crate::proxy::rate::Key;
use crate::proxy::registry::{State, Using};
use crate::proxy::resolve::{Question, Target, resolve};
use crate::proxy::review::look_for_endpoint;
use crate::proxy::worker::Worker;
use crate::telemetry::{CloseReason, SecurityPolicy};

/// From an accepted socket to an established upstream one.
///
/// # Errors
/// Why there is none.
pub async fn open(opening: &mut Opening<'_>) -> Result<Connected, ConnectError> {
    let Opening { worker, entry, settings, downstream, .. } = &*opening;
    let dst = original_dst(downstream, entry.peer, Known::outbound(settings.capture))
        .map_err(|error| ConnectError::new(CloseReason::NoOriginalDst, Some(error)))?;
    // What comes from one of our own upstream sockets would be dialled again, and again.
    let ends = Ends { local: entry.peer.socket_addr(), remote: canonical(dst.socket_addr()) };
    if is_own_socket(worker, ends) || worker.is_own(dst.into()) {
        return Err(looped(downstream));
    }
    note_source(opening)?;
    let target = look_up(opening, dst)?;
    connect_to(opening, dst, &target).await
}

/// A client that was reset while it waited to be accepted has left its port to others, and an upstream connection of ours
/// may have got it since: then its peer looks like ours, and conntrack has forgotten where it was going. It is just gone.
fn looped(downstream: &TcpStream) -> ConnectError {
    let error = downstream.take_error().ok().flatten();
    let reason = if error.is_some() { CloseReason::DownstreamGone } else { CloseReason::LoopRefused };
    ConnectError::new(reason, error)
}

/// Without a mark the rules know adit's connections by its user, and may not know them at all: then a connection that is
/// only just being dialled counts too.
fn is_own_socket(worker: &Worker, ends: Ends) -> bool {
    let own = &worker.shared.own_sockets;
    match worker.shared.mark {
        Some(_) => own.contains(ends),
        None => own.contains_dialled(ends),
    }
}

/// Resolves `dst` in the current snapshot and notes it in the connection's facts.
pub(super) fn look_up(opening: &Opening<'_>, dst: OriginalDst) -> Result<Target, ConnectError> {
    let (snapshot, served) = (opening.worker.snapshot(), opening.worker.served());
    opening.entry.facts.borrow_mut().original_dst = Some(dst);
    let question = question(&opening.settings, served.workload.as_deref(), dst);
    opening.worker.with_random(|random| resolve(&snapshot, &question, random)).map_err(ConnectError::from)
}

/// What is asked of the state for a connection of the local workload's, which is `source` if the state has it.
pub(super) fn question<'a>(settings: &'a Settings, source: Option<&'a Workload>, dst: OriginalDst) -> Question<'a> {
    Question {
        dst,
        network: &settings.network,
        client_namespace: &settings.workload.namespace,
        source,
        egress: settings.egress,
    }
}

/// The source of what leaves is the workload that this daemon serves, whatever address the client has. Counts the
/// connection: once, however many addresses are tried for it.
///
/// # Errors
/// It makes more connections than it may.
pub(super) fn note_source(opening: &Opening<'_>) -> Result<(), CloseReason> {
    let Opening { worker, entry, settings, .. } = opening;
    let served = worker.served();
    let local = served.workload.as_ref();
    entry.facts.borrow_mut().source = labels_of(local);
    worker.shared.rates.admit(&settings.limits, || {
        local.map_or_else(|| Key::Address(entry.peer.ip()), |workload| Key::Workload(Arc::clone(&workload.uid)))
    })
}

/// Connects to a resolved target and notes where that led.
pub(super) async fn connect_to(
    opening: &mut Opening<'_>,
    dst: OriginalDst,
    target: &Target,
) -> Result<Connected, ConnectError> {
    let settings = Rc::clone(&opening.settings);
    connect_within(opening, dst, target, &settings.connect).await
}

/// [`connect_to`], within other limits than the settings'.
pub(super) async fn connect_within(
    opening: &mut Opening<'_>,
    dst: OriginalDst,
    target: &Target,
    limits: &Connect,
) -> Result<Connected, ConnectError> {
    let Opening { worker, entry, settings, downstream, attempts, .. } = opening;
    {
        let (destination, service) = target.labels();
        let mut facts = entry.facts.borrow_mut();
        facts.destination = destination;
        facts.service = service;
    }
    entry.set_state(State::Connecting);
    let request = Request {
        target,
        permit: Permit::own(),
        dst,
        client: entry.peer,
        downstream: Some(downstream),
        network: &settings.network,
        limits,
        tunnel: &settings.tunnel,
        source: None,
        way: Way::Out,
    };
    let mut result = connect(worker, &request, attempts).await;
    if let (Ok(connected), Target::Service { state, .. }) = (&mut result, target)
        && let Some(version) = state.service.proxy_protocol
    {
        // Boxed: few connections need it.
        let introducing = introduce(&mut connected.via, version, entry.peer.socket_addr(), dst.socket_addr());
        if let Err(error) = Box::pin(introducing).await {
            result = Err(error);
        }
    }
    if let Ok(Connected { workload: Some(workload), using, .. }) = &mut result {
        entry.set_using(Using { workload: Arc::clone(workload), counted: std::mem::take(using) });
        // It may have left while it was connected to.
        look_for_endpoint(entry, &worker.snapshot());
    }
    let mut facts = entry.facts.borrow_mut();
    match &result {
        Ok(connected) => {
            facts.upstream = Some(connected.hop);
            facts.destination = labels_of(connected.workload.as_ref());
            if let Via::Tunnel(tunnelled) = &connected.via {
                let Tunnelled { tunnel, authority, labels, .. } = &**tunnelled;
                if labels.is_some() {
                    facts.destination.clone_from(labels);
                }
                facts.security = SecurityPolicy::MutualTls;
                facts.source_identity = worker.own_identity();
                facts.destination_identity = Some(tunnel.about.identity.id.shared());
                facts.hbone_addr = Some(Arc::clone(authority));
            }
        }
        Err(_) => facts.upstream = attempts.last().map(|attempt| UpstreamAddr::new(attempt.address)),
    }
    drop(facts);
    entry.touch();
    result
}
