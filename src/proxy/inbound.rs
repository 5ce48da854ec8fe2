//! The inbound plaintext door: connections to the local workload that the kernel has captured on their way in.
//!
//! Only addresses of this network namespace are dialled, and under `inbound.plaintext: deny` only the ports that may be
//! reached outside a tunnel; fails closed. The application sees the client's address where
//! `preserveSource` allows it.
//!
//! Peers that `inbound.proxyProtocolFrom` names must say in a PROXY protocol header whom they speak for; that is then the
//! client, for policy, limits, logs and the application. From others no byte is looked at: what looks like a header is the
//! application's. The header's destination is not believed, and loops are recognised by the socket's own ends.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::net::TcpStream;

use crate::config::Settings;
use crate::config::settings::{Plaintext, PreserveSource};
use crate::net::address::{PeerAddr, UpstreamAddr, canonical};
use crate::net::dial::Source;
use crate::net::own_sockets::{Ends, Way};
use crate::proxy::Opening;
use crate::proxy::account::labels_of;
use crate::proxy::connect::{ConnectError, Connected, Request, connect};
use crate::proxy::gate::{pass, served};
use crate::proxy::original_dst::{Known, original_dst};
use crate::proxy::proxy_header::read_header;
use crate::proxy::rate::Key;
use crate::proxy::registry::{Entry, State, Who};
use crate::proxy::resolve::{Carriage, Target};
use crate::proxy::worker::Worker;
use crate::telemetry::CloseReason;

/// From an accepted socket to an established one to the application.
///
/// # Errors
/// Why there is none.
pub async fn open(opening: &mut Opening<'_>) -> Result<Connected, ConnectError> {
    let Opening { worker, entry, settings, downstream, attempts, .. } = opening;
    let dst = original_dst(downstream, entry.peer, Known::inbound(settings.capture))
        .map_err(|error| ConnectError::new(CloseReason::NoOriginalDst, Some(error)))?;
    entry.facts.borrow_mut().original_dst = Some(dst);
    let address = UpstreamAddr::from(dst);
    let ends = Ends { local: entry.peer.socket_addr(), remote: canonical(dst.socket_addr()) };
    if worker.shared.own_sockets.contains_inward(ends) || worker.is_own(address) {
        return Err(CloseReason::LoopRefused.into());
    }
    if !worker.is_local(dst.ip()) {
        return Err(CloseReason::NotLocal.into());
    }
    if settings.inbound.plaintext == Plaintext::Deny && !settings.inbound.plaintext_ports.contains(&dst.port()) {
        return Err(CloseReason::PlaintextDenied.into());
    }
    let client = identify(entry, downstream).await?;
    served(worker).await?;
    note_source(worker, entry, client)?;
    let who = Who { identity: None, source: client.ip(), destination: dst.ip(), port: dst.port() };
    let permit = pass(worker, entry, who)?;
    let source = source_to_show(worker, settings, client.socket_addr(), dst.ip())?;
    let workload = {
        let snapshot = worker.snapshot();
        let mut facts = entry.facts.borrow_mut();
        let workload =
            snapshot.workload(&settings.network, dst.ip()).cloned().or_else(|| worker.served().workload.clone());
        facts.destination = labels_of(workload.as_ref());
        facts.upstream = Some(address);
        workload
    };
    entry.set_state(State::Connecting);
    let target = Target::Single { address, workload, service: None, carriage: Carriage::Plain };
    let request = Request {
        target: &target,
        permit,
        dst,
        client,
        downstream: Some(downstream),
        network: &settings.network,
        limits: &settings.connect,
        tunnel: &settings.tunnel,
        source,
        way: source.map_or(Way::In, Source::way),
    };
    let result = connect(worker, &request, attempts).await;
    entry.touch();
    result
}

/// Who connects: the peer, or whom it names, if it is one that must.
async fn identify(entry: &Entry, downstream: &TcpStream) -> Result<PeerAddr, ConnectError> {
    let inbound = &entry.settings.inbound;
    let peer = entry.peer.ip();
    if inbound.proxy_protocol_from.iter().any(|range| range.contains(&peer))
        // Boxed: few peers must.
        && let Some((source, _)) = Box::pin(read_header(downstream, inbound.proxy_protocol_timeout)).await?
    {
        entry.facts.borrow_mut().client = Some(PeerAddr::new(source));
    }
    Ok(entry.client())
}

/// What the state knows of the client, which must not connect more often than it may.
fn note_source(worker: &Worker, entry: &Entry, client: PeerAddr) -> Result<(), CloseReason> {
    let snapshot = worker.snapshot();
    let known = snapshot.workload(&entry.settings.network, client.ip());
    entry.facts.borrow_mut().source = labels_of(known);
    worker.shared.rates.admit(&entry.settings.limits, || {
        known.map_or_else(|| Key::Address(client.ip()), |workload| Key::Workload(Arc::clone(&workload.uid)))
    })
}

/// The client's address, if the application at `dst` is to see it; port 0 where that is not known. An address of our own is
/// not borrowed: its connection is local already, and answers would not come back to adit. Nor can one of the other family be,
/// which a load balancer may name.
pub(super) fn source_to_show(
    worker: &Worker,
    settings: &Settings,
    client: SocketAddr,
    dst: IpAddr,
) -> Result<Option<Source>, ConnectError> {
    let preserve = settings.preserve_source;
    if preserve == PreserveSource::Off || worker.is_local(client.ip()) {
        return Ok(None);
    }
    if client.is_ipv4() != dst.is_ipv4() {
        let required = preserve == PreserveSource::Require;
        return if required { Err(CloseReason::SourceUnavailable.into()) } else { Ok(None) };
    }
    match (worker.shared.can_show_source[usize::from(client.is_ipv6())].load(Ordering::Relaxed), preserve) {
        (true, _) => Ok(Some(Source::new(settings.capture, client))),
        (false, PreserveSource::Require) => Err(CloseReason::SourceUnavailable.into()),
        (false, _) => Ok(None),
    }
}
