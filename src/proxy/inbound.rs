//! The inbound plaintext door: connections to the local workload that the kernel has captured on their way in.
//!
//! Only addresses of this network namespace are dialled, and under `inbound.plaintext: deny` only the ports that may be
//! reached outside a tunnel; fails closed. The application sees the client's address where
//! `preserveSource` allows it.

use std::net::IpAddr;
use std::sync::atomic::Ordering;

use crate::config::settings::{Plaintext, PreserveSource};
use crate::net::address::{UpstreamAddr, canonical};
use crate::net::own_sockets::{Ends, Way};
use crate::proxy::Opening;
use crate::proxy::account::labels_of;
use crate::proxy::connect::{ConnectError, Connected, Request, connect};
use crate::proxy::gate::{pass, served};
use crate::proxy::original_dst::original_dst;
use crate::proxy::registry::{State, Who};
use crate::proxy::resolve::{Carriage, Target};
use crate::telemetry::CloseReason;

/// From an accepted socket to an established one to the application.
///
/// # Errors
/// Why there is none.
pub async fn open(opening: &mut Opening<'_>) -> Result<Connected, ConnectError> {
    let Opening { worker, entry, settings, downstream, attempts, .. } = opening;
    let dst = original_dst(downstream, entry.peer, settings.capture)
        .map_err(|error| ConnectError { reason: CloseReason::NoOriginalDst, detail: Some(error) })?;
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
    served(worker).await?;
    let who = Who { identity: None, source: entry.peer.ip(), destination: dst.ip(), port: dst.port() };
    let permit = pass(worker, entry, who)?;
    let source = source_to_borrow(worker, settings.preserve_source, entry.peer.ip())?;
    let workload = {
        let snapshot = worker.snapshot();
        let mut facts = entry.facts.borrow_mut();
        facts.source = labels_of(snapshot.workload(&settings.network, entry.peer.ip()));
        let workload = snapshot
            .workload(&settings.network, dst.ip())
            .or_else(|| snapshot.local_workload(&settings.workload, &settings.node))
            .cloned();
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
        client: entry.peer,
        downstream: Some(downstream),
        network: &settings.network,
        limits: &settings.connect,
        tunnel: &settings.tunnel,
        source,
        way: if source.is_some() { Way::Borrowed } else { Way::In },
    };
    let result = connect(worker, &request, attempts).await;
    entry.touch();
    result
}

/// The client's address, if the application is to see it. An address of our own is not borrowed: its connection is
/// local already, and answers would not come back to adit.
pub(super) fn source_to_borrow(
    worker: &crate::proxy::worker::Worker,
    preserve: PreserveSource,
    client: IpAddr,
) -> Result<Option<IpAddr>, ConnectError> {
    if preserve == PreserveSource::Off || worker.is_local(client) {
        return Ok(None);
    }
    match (worker.shared.can_borrow_source[usize::from(client.is_ipv6())].load(Ordering::Relaxed), preserve) {
        (true, _) => Ok(Some(client)),
        (false, PreserveSource::Require) => Err(CloseReason::SourceUnavailable.into()),
        (false, _) => Ok(None),
    }
}
