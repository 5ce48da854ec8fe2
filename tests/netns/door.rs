//! A listening socket that tells where what it accepts was going, and sockets with the options that adit sets.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use adit::net::sockopt;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, Protocol, Socket, Type};

use super::host::Host;
use super::wait::LIMIT;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];
}

/// A dual-stack listener in a host.
pub struct Door {
    listener: Socket,
    transparent: bool,
}

/// An accepted connection, addresses canonical.
pub struct Accepted {
    pub stream: TcpStream,
    pub peer: SocketAddr,
    /// Our end.
    pub local: SocketAddr,
    /// Where the client was going.
    pub original: SocketAddr,
}

impl Door {
    /// An application's.
    pub fn open(host: &Host, port: u16) -> Self {
        Self::bind(host, port, None, false)
    }

    /// One like adit's, with its mark, which accepted sockets inherit; `transparent` if tproxy leads to it.
    pub fn capture(host: &Host, port: u16, mark: u32, transparent: bool) -> Self {
        Self::bind(host, port, Some(mark), transparent)
    }

    fn bind(host: &Host, port: u16, mark: Option<u32>, transparent: bool) -> Self {
        let listener = host.run(|| {
            let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP)).expect("a socket");
            socket.set_only_v6(false).expect("IPV6_V6ONLY");
            socket.set_reuse_address(true).expect("SO_REUSEADDR");
            if let Some(mark) = mark {
                socket.set_mark(mark).expect("SO_MARK");
            }
            if transparent {
                socket.set_ip_transparent_v6(true).expect("IPV6_TRANSPARENT");
            }
            socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into()).expect("bind");
            socket.listen(128).expect("listen");
            socket
        });
        Self { listener, transparent }
    }

    /// The next connection; panics if there is none within the limit.
    pub fn accept(&self) -> Accepted {
        assert!(self.wait(LIMIT), "no connection came");
        let (socket, peer) = self.listener.accept().expect("accept");
        let canonical = |address: &socket2::SockAddr| {
            let address = address.as_socket().expect("an IP address");
            SocketAddr::new(address.ip().to_canonical(), address.port())
        };
        let (peer, local) = (canonical(&peer), canonical(&socket.local_addr().expect("a local address")));
        let original = match (self.transparent, local.ip()) {
            (true, _) => local,
            (false, IpAddr::V4(_)) => socket.original_dst_v4().map_or(local, |address| canonical(&address)),
            (false, IpAddr::V6(_)) => socket.original_dst_v6().map_or(local, |address| canonical(&address)),
        };
        Accepted { stream: TcpStream::from(socket), peer, local, original }
    }

    /// Whether nobody is waiting to be accepted.
    pub fn is_quiet(&self) -> bool {
        !self.wait(Duration::ZERO)
    }

    fn wait(&self, limit: Duration) -> bool {
        let limit = Timespec::try_from(limit).expect("a limit in range");
        poll(&mut [PollFd::new(&self.listener, PollFlags::IN)], Some(&limit)).expect("poll") > 0
    }
}

/// How to open a connection; the default is what an application does.
#[derive(Debug, Clone, Copy, Default)]
pub struct Dial {
    /// `SO_MARK`.
    pub mark: Option<u32>,
    /// Bind this source, local or not (`IP_TRANSPARENT` and `IP_FREEBIND`).
    pub source: Option<SocketAddr>,
    /// How long connecting may take; `None`: the usual limit.
    pub limit: Option<Duration>,
}

impl Dial {
    pub fn connect(self, host: &Host, to: SocketAddr) -> std::io::Result<TcpStream> {
        host.run(|| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
            if let Some(mark) = self.mark {
                socket.set_mark(mark)?;
            }
            if let Some(source) = self.source {
                if to.is_ipv4() {
                    socket.set_ip_transparent_v4(true)?;
                    socket.set_freebind_v4(true)?;
                } else {
                    socket.set_ip_transparent_v6(true)?;
                    socket.set_freebind_v6(true)?;
                }
                // As adit does: the port is chosen when the other end is known.
                if source.port() == 0 {
                    sockopt::set_bind_address_no_port(&socket)?;
                }
                socket.bind(&source.into())?;
            }
            socket.connect_timeout(&to.into(), self.limit.unwrap_or(LIMIT))?;
            Ok(TcpStream::from(socket))
        })
    }
}

/// Sends a line each way; panics if it does not arrive.
pub fn talk(a: &mut TcpStream, b: &mut TcpStream) {
    say(a, b, *b"ping");
    say(b, a, *b"pong");
}

fn say(from: &mut TcpStream, to: &mut TcpStream, line: [u8; 4]) {
    from.write_all(&line).expect("write");
    to.set_read_timeout(Some(LIMIT)).expect("SO_RCVTIMEO");
    let mut got = [0; 4];
    to.read_exact(&mut got).expect("what the other side wrote");
    assert_eq!(got, line);
}
