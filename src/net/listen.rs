//! Named listeners: a door is one socket or, for several workers, a `SO_REUSEPORT` group made by this process.
//!
//! Options are set on the listening socket and inherited by what it accepts: NODELAY, keepalive (all three values),
//! user timeout. `[::]` is dual-stack and falls back to `0.0.0.0` where the kernel has no IPv6. A group first binds one
//! socket without `SO_REUSEPORT`, so that a second adit on the same port fails loudly instead of sharing it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use rustix::io::Errno;
use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};
use thiserror::Error;

use crate::config::settings::Keepalive;

/// Connections the kernel completes before adit accepts them; `net.core.somaxconn` bounds it too.
const BACKLOG: i32 = 4096;

/// A listener that could not be made.
#[derive(Debug, Error)]
#[error("listener {name} cannot listen on {address}: {step}")]
pub struct ListenError {
    pub name: &'static str,
    pub address: SocketAddr,
    pub step: &'static str,
    #[source]
    pub source: io::Error,
}

/// How a door's sockets are made.
#[derive(Debug, Clone, Copy)]
pub struct ListenOptions {
    /// How many sockets share the address.
    pub sockets: usize,
    /// `SO_MARK`, which Linux copies to accepted sockets.
    pub mark: Option<u32>,
    /// `IP_TRANSPARENT`: accept connections to addresses that are not ours (TPROXY).
    pub transparent: bool,
    pub keepalive: Option<Keepalive>,
}

impl ListenOptions {
    /// One plain socket, for HTTP ports.
    pub const PLAIN: Self = Self { sockets: 1, mark: None, transparent: false, keepalive: None };
}

/// Binds `name` at `address`: `options.sockets` non-blocking listening sockets on one port.
///
/// # Errors
/// Names the listener, the address and the step that failed, with the system's error as source.
pub fn bind(
    name: &'static str,
    address: SocketAddr,
    options: ListenOptions,
) -> Result<Vec<std::net::TcpListener>, ListenError> {
    let fail = |address, (step, source)| ListenError { name, address, step, source };
    let mut address = address;
    let first = match bind_one(address, options, false) {
        Err((_, error)) if has_no_ipv6(address, &error) => {
            address.set_ip(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
            bind_one(address, options, false).map_err(|error| fail(address, error))?
        }
        result => result.map_err(|error| fail(address, error))?,
    };
    if options.sockets <= 1 {
        return Ok(vec![first]);
    }
    let bound = first.local_addr().map_err(|error| fail(address, ("getsockname", error)))?;
    // Nobody else had the port a moment ago; now make the group.
    drop(first);
    (0..options.sockets).map(|_| bind_one(bound, options, true).map_err(|error| fail(bound, error))).collect()
}

fn has_no_ipv6(address: SocketAddr, error: &io::Error) -> bool {
    let errno = error.raw_os_error();
    address.ip().is_ipv6()
        && address.ip().is_unspecified()
        && [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL].iter().any(|no| errno == Some(no.raw_os_error()))
}

type Step = (&'static str, io::Error);

fn bind_one(address: SocketAddr, options: ListenOptions, group: bool) -> Result<std::net::TcpListener, Step> {
    let at = |step| move |error| (step, error);
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), None).map_err(at("socket"))?;
    socket.set_reuse_address(true).map_err(at("SO_REUSEADDR"))?;
    if group {
        socket.set_reuse_port(true).map_err(at("SO_REUSEPORT"))?;
    }
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified()).map_err(at("IPV6_V6ONLY"))?;
    }
    set_options(&SockRef::from(&socket), address, options)?;
    socket.bind(&address.into()).map_err(at("bind"))?;
    socket.listen(BACKLOG).map_err(at("listen"))?;
    Ok(socket.into())
}

/// Sets what a listener's options say, of a socket of ours or one that was made elsewhere.
pub(super) fn set_options(
    socket: &SockRef<'_>,
    address: SocketAddr,
    options: ListenOptions,
) -> Result<(), (&'static str, io::Error)> {
    let at = |step| move |error| (step, error);
    let mark = options.mark.unwrap_or(0);
    if socket.mark().map_err(at("SO_MARK"))? != mark {
        socket.set_mark(mark).map_err(at("SO_MARK"))?;
    }
    if options.transparent {
        // On a dual-stack socket the IPv4 option covers mapped addresses, the IPv6 one the rest.
        if address.is_ipv6() {
            socket.set_ip_transparent_v6(true).map_err(at("IPV6_TRANSPARENT"))?;
        }
        socket.set_ip_transparent_v4(true).map_err(at("IP_TRANSPARENT"))?;
    }
    socket.set_tcp_nodelay(true).map_err(at("TCP_NODELAY"))?;
    if let Some(keepalive) = options.keepalive {
        set_keepalive(socket, keepalive).map_err(at("keepalive"))?;
    }
    Ok(())
}

/// Sets the three keepalive values and the user timeout, each explicitly.
///
/// # Errors
/// What `setsockopt` says.
pub fn set_keepalive(socket: &SockRef<'_>, keepalive: Keepalive) -> io::Result<()> {
    let values = TcpKeepalive::new()
        .with_time(keepalive.idle)
        .with_interval(keepalive.interval)
        .with_retries(keepalive.probes.get());
    socket.set_tcp_keepalive(&values)?;
    socket.set_tcp_user_timeout(keepalive.user_timeout)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A blocking listener on a free loopback port.
    pub(crate) fn loopback_listener() -> std::net::TcpListener {
        let listener = bind("test", SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), ListenOptions::PLAIN)
            .expect("a free port")
            .remove(0);
        listener.set_nonblocking(false).expect("blocking");
        listener
    }

    #[test]
    fn a_group_shares_one_port_and_a_second_group_fails_loudly() {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let options = ListenOptions { sockets: 3, ..ListenOptions::PLAIN };
        let group = bind("outbound", any, options).expect("group");
        let address = group[0].local_addr().expect("address");
        assert!(group.iter().all(|socket| socket.local_addr().expect("address") == address));
        let error = bind("outbound", address, options).expect_err("taken");
        assert_eq!(error.to_string(), format!("listener outbound cannot listen on {address}: bind"));
        assert_eq!(error.source.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn accepted_sockets_inherit_every_option() {
        let keepalive = Keepalive::default();
        let options = ListenOptions { keepalive: Some(keepalive), ..ListenOptions::PLAIN };
        let listener = bind("outbound", SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), options).expect("bind").remove(0);
        listener.set_nonblocking(false).expect("blocking");
        let _client = std::net::TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
        let accepted = listener.accept().expect("accept").0;
        let socket = SockRef::from(&accepted);
        assert!(socket.tcp_nodelay().expect("nodelay"));
        assert!(socket.keepalive().expect("keepalive"));
        assert_eq!(socket.tcp_keepalive_time().expect("time"), keepalive.idle);
        assert_eq!(socket.tcp_keepalive_interval().expect("interval"), keepalive.interval);
        assert_eq!(socket.tcp_keepalive_retries().expect("retries"), keepalive.probes.get());
        assert_eq!(socket.tcp_user_timeout().expect("user timeout"), keepalive.user_timeout);
    }

    #[test]
    fn the_wildcard_is_dual_stack() {
        let listener =
            bind("outbound", "[::]:0".parse().expect("address"), ListenOptions::PLAIN).expect("bind").remove(0);
        let port = listener.local_addr().expect("address").port();
        std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("over IPv4");
    }
}
