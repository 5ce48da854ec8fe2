//! Proves that the application sees the client's address: one connection to ourselves in a foreign name. Without the capture
//! rules that bring the answers back, binding such an address succeeds and every connect times out; without the programs of
//! capture at the socket, binding it fails.
//!
//! Proved again every few seconds, because rules come and go: `prefer` turns itself off and on again with a warning and
//! a gauge, `require` keeps adit not ready while it does not work. Fails closed for `require`: a family in which this host
//! has an address but no proof counts as not working, whether or not it has a route.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};

use crate::config::settings::{Capture, PreserveSource};
use crate::net::address::{UpstreamAddr, canonical};
use crate::net::dial::{DialOptions, Source, dial};
use crate::net::listen::{ListenOptions, bind};
use crate::net::local;
use crate::net::own_sockets::OwnSockets;
use crate::proxy::worker::Shared;

/// Between two proofs while it works, and while it does not: rules are often applied just after the start.
const WHILE_ON: Duration = Duration::from_secs(10);
const WHILE_OFF: Duration = Duration::from_secs(1);
/// A connection on this host takes microseconds, or never ends.
const WITHIN: Duration = Duration::from_millis(500);

/// Documentation addresses: nobody's, so borrowing them disturbs nobody.
const BORROWED: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 77)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x77))];

/// What an application is told, where it is told the port as well.
const PORT: u16 = 7777;

/// The name of the readiness blocker.
pub(super) const BLOCKER: &str = "preserveSource";

/// Proves the path once and notes the result in `shared`; says so when it changes.
pub(super) async fn prove(shared: &Shared, preserve: PreserveSource, capture: Capture, first: bool) {
    let mut failed: Option<String> = None;
    let mut news = first;
    for (family, borrowed) in BORROWED.into_iter().enumerate() {
        let result = match pairs(borrowed) {
            // Nobody can reach this host by that family.
            Ok(pairs) if pairs.is_empty() => continue,
            Ok(pairs) => attempt_any(shared, capture, &pairs).await,
            Err(error) => Err(format!("our own addresses are not known: {error}")),
        };
        let before = shared.can_show_source[family].swap(result.is_ok(), Ordering::Relaxed);
        news |= before != result.is_ok();
        match result {
            Ok(()) if !before => tracing::info!(from = %borrowed, "source preservation works"),
            Ok(()) => {}
            Err(error) => failed = Some(error),
        }
    }
    match (failed, preserve) {
        (None, _) => shared.readiness.clear(BLOCKER),
        (Some(error), PreserveSource::Require) => shared.readiness.block(BLOCKER, Some(error)),
        (Some(error), _) if news => tracing::warn!(
            error,
            "source preservation is off: the application sees adit's address; are the capture rules applied?"
        ),
        (Some(_), _) => {}
    }
}

/// Proves the path again and again.
pub(super) async fn keep_proving(shared: Arc<Shared>, preserve: PreserveSource, capture: Capture) {
    loop {
        let works = shared.can_show_source.iter().any(|works| works.load(Ordering::Relaxed));
        sleep(if works { WHILE_ON } else { WHILE_OFF }).await;
        prove(&shared, preserve, capture, false).await;
    }
}

/// What to borrow, and the address of ours to connect to from there; one pair that works proves it. None if this host has
/// no address of that family that others can reach.
///
/// Where there is no route to `borrowed`, its answers would not even be sent: then a neighbour of an address of ours stands
/// in. If the rules are there, it never hears of it.
fn pairs(borrowed: IpAddr) -> io::Result<Vec<(IpAddr, IpAddr)>> {
    if let Some(ourselves) = source_to(borrowed) {
        return Ok(vec![(borrowed, ourselves)]);
    }
    let own = local::addresses()?;
    let first = own.iter().find(|ip| ip.is_ipv4() == borrowed.is_ipv4());
    let Some(ourselves) = first.copied() else { return Ok(Vec::new()) };
    let neighbours = [3, 1].map(|bits| neighbour(ourselves, bits)).into_iter().filter(|ip| !own.contains(ip));
    // The last one fails, and says why.
    Ok(neighbours.chain([borrowed]).map(|ip| (ip, ourselves)).collect())
}

/// Of these with 3 and 1, one at least is a host's, whatever the network's length.
fn neighbour(ip: IpAddr, bits: u8) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => Ipv4Addr::from_bits(ip.to_bits() ^ u32::from(bits)).into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() ^ u128::from(bits)).into(),
    }
}

/// The address by which this host would reach `other`; none without a route.
fn source_to(other: IpAddr) -> Option<IpAddr> {
    let domain = if other.is_ipv4() { socket2::Domain::IPV4 } else { socket2::Domain::IPV6 };
    let socket = socket2::Socket::new(domain, socket2::Type::DGRAM, None).ok()?;
    socket.connect(&SocketAddr::new(other, 9).into()).ok()?;
    let ip = socket.local_addr().ok()?.as_socket()?.ip();
    (!local::is_loopback_or_link_local(ip)).then_some(ip)
}

async fn attempt_any(shared: &Shared, capture: Capture, pairs: &[(IpAddr, IpAddr)]) -> Result<(), String> {
    let mut result = Ok(());
    for (borrowed, ourselves) in pairs {
        let source = Source::new(capture, SocketAddr::new(*borrowed, PORT));
        result = attempt(shared, source, *ourselves).await;
        if result.is_ok() {
            break;
        }
    }
    result
}

async fn attempt(shared: &Shared, source: Source, ourselves: IpAddr) -> Result<(), String> {
    let borrowed = source.ip();
    let listener = bind("proof", SocketAddr::new(ourselves, 0), ListenOptions::PLAIN)
        .map_err(|error| format!("{error}: {}", error.source))?
        .remove(0);
    let listener = TcpListener::from_std(listener).map_err(|error| error.to_string())?;
    let address = UpstreamAddr::new(listener.local_addr().map_err(|error| error.to_string())?);
    let options = DialOptions { mark: shared.mark, source: Some(source), way: source.way() };
    match timeout(WITHIN, dial(address, options, &OwnSockets::default())).await {
        Ok(Ok(dialled)) => {
            let arrived = timeout(WITHIN, listener.accept()).await;
            // Leave no connection waiting in TIME_WAIT with a borrowed address.
            crate::proxy::relay::reset(dialled.stream);
            match arrived {
                Ok(Ok((_, peer))) if is_seen(source, canonical(peer)) => Ok(()),
                Ok(Ok((_, peer))) => Err(format!("a connection from {borrowed} to ourselves arrives from {peer}")),
                // Captured: adit would take it for a new connection, and borrow again, and again.
                Ok(Err(_)) | Err(_) => Err(format!("a connection from {borrowed} to ourselves is captured")),
            }
        }
        Ok(Err(error)) => {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            Err(format!("{error}{cause}"))
        }
        Err(_elapsed) => Err(format!("a connection from {borrowed} to ourselves gets no answer")),
    }
}

/// Whether an application that accepts from `peer` sees the client.
fn is_seen(source: Source, peer: SocketAddr) -> bool {
    match source {
        Source::Borrowed(ip) => peer.ip() == ip,
        Source::Told(client) => peer == client,
    }
}
