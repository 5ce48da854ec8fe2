//! The SOCKS5 door (RFC 1928): CONNECT without authentication, to an IPv4 or IPv6 address or a name.
//!
//! The reply is sent after the upstream connect and says how it went; a client that is gone by then resets its upstream. Names of known services resolve in the state,
//! other names by the system's resolver under `egress: allowAny`, one address after the other until one answers. Loopback and link-local destinations are refused
//! unless a workload of the state has the address, or `socks5AllowLocal` is on. Fails closed.

pub mod request;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::config::settings::{Connect, Egress};
use crate::net::address::OriginalDst;
use crate::net::local::is_loopback_or_link_local;
use crate::proxy::Opening;
use crate::proxy::connect::{ConnectError, Connected};
use crate::proxy::hostnames::{Resolve as _, System, WITHIN};
use crate::proxy::outbound::{connect_to, connect_within, look_up, note_source, question};
use crate::proxy::resolve::{Target, of_service};
use crate::telemetry::{CloseReason, PeerText};

use request::{
    Destination, LONGEST_GREETING, LONGEST_REQUEST, METHOD_NO_AUTH, METHOD_NONE, Parsed, Reply, SocksError,
    encode_reply, parse_greeting, parse_request,
};

/// For the greeting and the request together.
const REQUEST_WITHIN: Duration = Duration::from_secs(10);
/// Addresses of one name that are tried.
const MOST_ADDRESSES: usize = 8;
/// For a reply of a few bytes to a client that does not read.
const REPLY_WITHIN: Duration = Duration::from_secs(5);

/// From an accepted socket to an established upstream one, whose client has been told so.
///
/// # Errors
/// Why there is none; the client has been told, if it spoke SOCKS5.
pub async fn open(opening: &mut Opening<'_>) -> Result<Connected, ConnectError> {
    let result = match destination(&mut opening.downstream).await {
        Ok(destination) => Box::pin(go(opening, destination)).await,
        Err(Unanswerable::Socks(error)) => {
            if let Some(reply) = error.reply() {
                send(&mut opening.downstream, &encode_reply(reply, None)).await?;
            }
            return Err(ConnectError::new(CloseReason::SocksProtocol, Some(std::io::Error::other(error))));
        }
        Err(Unanswerable::Connection(error)) => return Err(error),
    };
    match result {
        Ok(connected) => {
            let reply = encode_reply(Reply::Succeeded, connected.local());
            let connected = Untold(Some(connected));
            send(&mut opening.downstream, &reply).await?;
            connected.told()
        }
        Err(error) => {
            send(&mut opening.downstream, &encode_reply(reply_for(&error), None)).await?;
            Err(error)
        }
    }
}

/// An upstream connection that the client has not been told of: reset when dropped, however that comes.
struct Untold(Option<Connected>);

impl Untold {
    fn told(mut self) -> Result<Connected, ConnectError> {
        self.0.take().ok_or_else(|| CloseReason::DownstreamGone.into())
    }
}

impl Drop for Untold {
    fn drop(&mut self) {
        if let Some(connected) = self.0.take() {
            connected.abandon();
        }
    }
}

/// A client whose request never became one.
enum Unanswerable {
    Socks(SocksError),
    Connection(ConnectError),
}

impl From<ConnectError> for Unanswerable {
    fn from(error: ConnectError) -> Self {
        Self::Connection(error)
    }
}

/// Greeting and request, however they are split into packets; nothing that follows them is read.
async fn destination(downstream: &mut TcpStream) -> Result<Destination, Unanswerable> {
    let exchange = async {
        let offers_no_auth = read_message(downstream, LONGEST_GREETING, parse_greeting).await?;
        if !offers_no_auth {
            send(downstream, &METHOD_NONE).await?;
            return Err(Unanswerable::Socks(SocksError::Method));
        }
        send(downstream, &METHOD_NO_AUTH).await?;
        read_message(downstream, LONGEST_REQUEST, parse_request).await
    };
    timeout(REQUEST_WITHIN, exchange)
        .await
        .unwrap_or_else(|_elapsed| Err(Unanswerable::Connection(CloseReason::SocksTimeout.into())))
}

/// Reads exactly one message: looks at what has arrived, and takes it only when it is complete, so that bytes a client
/// sends ahead stay for the relay.
async fn read_message<T>(
    downstream: &mut TcpStream,
    longest: usize,
    parse: impl Fn(&[u8]) -> Parsed<T>,
) -> Result<T, Unanswerable> {
    let mut message = Vec::with_capacity(longest);
    loop {
        let mut ahead = vec![0; longest - message.len()];
        let count = downstream.peek(&mut ahead).await.map_err(gone)?;
        if count == 0 {
            return Err(Unanswerable::Connection(CloseReason::DownstreamGone.into()));
        }
        let known = message.len();
        message.extend_from_slice(ahead.get(..count).unwrap_or_default());
        let parsed = parse(&message).map_err(Unanswerable::Socks)?;
        let take = parsed.as_ref().map_or(count, |(_, whole)| whole - known);
        let mut taken = vec![0; take];
        tokio::io::AsyncReadExt::read_exact(downstream, &mut taken).await.map_err(gone)?;
        if let Some((value, _)) = parsed {
            return Ok(value);
        }
    }
}

fn gone(error: std::io::Error) -> ConnectError {
    ConnectError::new(CloseReason::DownstreamGone, Some(error))
}

async fn send(downstream: &mut TcpStream, bytes: &[u8]) -> Result<(), ConnectError> {
    match timeout(REPLY_WITHIN, downstream.write_all(bytes)).await {
        Ok(result) => result.map_err(gone),
        Err(_elapsed) => Err(CloseReason::DownstreamGone.into()),
    }
}

async fn go(opening: &mut Opening<'_>, destination: Destination) -> Result<Connected, ConnectError> {
    if let Destination::Name(name, port) = &destination {
        opening.requested = Some(PeerText::from_bytes(format!("{name}:{port}").as_bytes()));
    }
    note_source(opening)?;
    match destination {
        Destination::Address(address) => go_to_address(opening, OriginalDst::new(address)).await,
        Destination::Name(name, port) => {
            if let Some((dst, target)) = known_service(opening, &name, port)? {
                return connect_to(opening, dst, &target).await;
            }
            if let Ok(ip) = name.parse::<IpAddr>() {
                return go_to_address(opening, OriginalDst::new(SocketAddr::new(ip, port))).await;
            }
            if opening.settings.egress == Egress::RegistryOnly {
                return Err(CloseReason::UnknownDestination.into());
            }
            let addresses = look_up_name(&name).await?;
            // Boxed: those who name an address need no room for it.
            Box::pin(go_to_any(opening, addresses, port)).await
        }
    }
}

/// Tries one address of a name after the other, once each if there are several. All together have the time of one
/// connection.
async fn go_to_any(opening: &mut Opening<'_>, ips: Vec<IpAddr>, port: u16) -> Result<Connected, ConnectError> {
    let mut limits = opening.settings.connect.clone();
    let until = Instant::now() + limits.deadline;
    if ips.len() > 1 {
        limits.attempts = NonZeroU32::MIN;
    }
    let mut last = ConnectError::from(CloseReason::NameUnresolved);
    for ip in ips.into_iter().take(MOST_ADDRESSES) {
        limits.deadline = until.saturating_duration_since(Instant::now());
        if limits.deadline.is_zero() {
            break;
        }
        match go_within(opening, OriginalDst::new(SocketAddr::new(ip, port)), &limits).await {
            Err(error) if error.reason != CloseReason::DownstreamGone => last = error,
            result => return result,
        }
    }
    Err(last)
}

async fn go_to_address(opening: &mut Opening<'_>, dst: OriginalDst) -> Result<Connected, ConnectError> {
    let settings = Rc::clone(&opening.settings);
    go_within(opening, dst, &settings.connect).await
}

async fn go_within(opening: &mut Opening<'_>, dst: OriginalDst, limits: &Connect) -> Result<Connected, ConnectError> {
    if opening.worker.is_own(dst.into()) {
        return Err(CloseReason::LoopRefused.into());
    }
    let target = look_up(opening, dst)?;
    let known = !matches!(&target, Target::Single { workload: None, .. });
    if !known && !opening.settings.socks5_allow_local && is_loopback_or_link_local(dst.ip()) {
        return Err(CloseReason::LocalDestination.into());
    }
    connect_within(opening, dst, &target, limits).await
}

/// A service of the state by its host name; its first address of our network stands for where the client was going.
fn known_service(opening: &Opening<'_>, name: &str, port: u16) -> Result<Option<(OriginalDst, Target)>, ConnectError> {
    let settings = &opening.settings;
    let snapshot = opening.worker.snapshot();
    let Some(state) = snapshot.service_by_host(name, &settings.workload.namespace) else { return Ok(None) };
    let vip = state.service.vips.iter().find(|(network, _)| *network == settings.network);
    let ip = vip.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |(_, ip)| *ip);
    let dst = OriginalDst::new(SocketAddr::new(ip, port));
    opening.entry.facts.borrow_mut().original_dst = Some(dst);
    let served = opening.worker.served();
    let question = question(settings, served.workload.as_deref(), dst);
    let target = opening.worker.with_random(|random| of_service(&snapshot, &question, state, random))?;
    if matches!(&target, Target::Single { .. } | Target::Waypoint { .. }) && vip.is_none() {
        // Passed through, or to be told to a waypoint, but there is no address for either.
        return Err(CloseReason::NameUnresolved.into());
    }
    Ok(Some((dst, target)))
}

/// Every address of the name, in the resolver's order.
async fn look_up_name(name: &str) -> Result<Vec<IpAddr>, ConnectError> {
    let unresolved = |detail| ConnectError::new(CloseReason::NameUnresolved, detail);
    match timeout(WITHIN, System.resolve(name)).await {
        Ok(Ok(addresses)) if addresses.is_empty() => Err(unresolved(None)),
        Ok(Ok(addresses)) => Ok(addresses),
        Ok(Err(error)) => Err(unresolved(Some(error))),
        Err(_elapsed) => Err(unresolved(None)),
    }
}

/// What a client is told.
fn reply_for(error: &ConnectError) -> Reply {
    match error.reason {
        // The other end of a tunnel refuses when its application does.
        CloseReason::ConnectRefused | CloseReason::ConnectReset | CloseReason::TunnelRefused => {
            Reply::ConnectionRefused
        }
        CloseReason::ConnectUnreachable if is_about_the_network(error) => Reply::NetworkUnreachable,
        CloseReason::ConnectUnreachable
        | CloseReason::ConnectTimeout
        | CloseReason::TunnelConnectTimeout
        | CloseReason::TunnelHandshakeTimeout
        | CloseReason::TunnelResponseTimeout
        | CloseReason::NameUnresolved
        | CloseReason::HostnameUnresolved
        | CloseReason::NoHealthyUpstream
        | CloseReason::NoServicePort
        | CloseReason::WaypointUnavailable
        | CloseReason::GatewayUnavailable => Reply::HostUnreachable,
        CloseReason::UnknownDestination | CloseReason::LocalDestination | CloseReason::LoopRefused => Reply::NotAllowed,
        _ => Reply::GeneralFailure,
    }
}

/// Whether there is no way to the destination's network, rather than to the destination.
fn is_about_the_network(error: &ConnectError) -> bool {
    let errno = error.detail.as_ref().and_then(std::io::Error::raw_os_error).map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::NETUNREACH | Errno::NETDOWN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tunnel_that_fails_is_told_as_a_connection_that_fails() {
        for (reason, reply) in [
            (CloseReason::TunnelRefused, Reply::ConnectionRefused),
            (CloseReason::TunnelConnectTimeout, Reply::HostUnreachable),
            (CloseReason::TunnelHandshakeTimeout, Reply::HostUnreachable),
            (CloseReason::TunnelResponseTimeout, Reply::HostUnreachable),
            (CloseReason::PeerRefused, Reply::GeneralFailure),
            (CloseReason::NoIdentity, Reply::GeneralFailure),
        ] {
            assert_eq!(reply_for(&reason.into()), reply, "{reason:?}");
        }
    }
}
