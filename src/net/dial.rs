//! Opening an upstream socket: every option that adit sets on what it dials is set here.
//!
//! A socket may dial in a client's name ([`Source`]). NODELAY and the mark are set at once; keepalive and user timeout follow
//! when the connection has lived for a second ([`crate::net::listen::set_keepalive`]), so that a short connection does not pay
//! for them: until then the connect deadline bounds it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::io::Errno;
use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::config::settings::Capture;
use crate::net::address::{UpstreamAddr, canonical};
use crate::net::own_sockets::{Ends, OwnSocket, OwnSockets, Way};
use crate::net::redirect::CLIENT_MARK;
use crate::net::sockopt;
use crate::telemetry::CloseReason;

/// What every upstream socket gets.
#[derive(Debug, Clone, Copy)]
pub struct DialOptions {
    pub mark: Option<NonZeroU32>,
    /// In whose name to connect, if not in adit's own.
    pub source: Option<Source>,
    pub way: Way,
}

/// How the application comes to see the client's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The socket has it, with a port of the kernel's choosing: needs `IP_TRANSPARENT`, and rules that bring the answers back.
    Borrowed(IpAddr),
    /// Programs at the sockets tell the application (`adit redirect apply --kind connect`); this one keeps an address of
    /// ours. Port 0: the client's is not known.
    Told(SocketAddr),
}

impl Source {
    /// The way there is with this kind of capture.
    #[must_use]
    pub const fn new(capture: Capture, client: SocketAddr) -> Self {
        match capture {
            Capture::Redirect | Capture::Tproxy => Self::Borrowed(client.ip()),
            Capture::Connect => Self::Told(client),
        }
    }

    /// The client's.
    #[must_use]
    pub const fn ip(self) -> IpAddr {
        match self {
            Self::Borrowed(ip) => ip,
            Self::Told(address) => address.ip(),
        }
    }

    /// How a socket that connects to the local workload in this name counts among our own.
    #[must_use]
    pub const fn way(self) -> Way {
        match self {
            Self::Borrowed(_) => Way::Borrowed,
            Self::Told(_) => Way::In,
        }
    }
}

/// What went wrong, by what it means for the caller.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The client's name cannot be taken.
    #[error("cannot connect from {source_ip}")]
    Source {
        source_ip: IpAddr,
        #[source]
        error: io::Error,
    },
    /// No socket, or an option was refused.
    #[error("cannot open a socket")]
    Socket(#[source] io::Error),
    /// The destination's or the network's answer.
    #[error("cannot connect to {address}")]
    Connect {
        address: UpstreamAddr,
        #[source]
        error: io::Error,
    },
}

impl DialError {
    /// The word for it.
    #[must_use]
    pub fn close_reason(&self) -> CloseReason {
        match self {
            Self::Source { .. } => CloseReason::SourceUnavailable,
            Self::Socket(_) => CloseReason::ConnectError,
            Self::Connect { error, .. } => match error.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::CONNREFUSED) => CloseReason::ConnectRefused,
                Some(Errno::TIMEDOUT) => CloseReason::ConnectTimeout,
                Some(Errno::HOSTUNREACH | Errno::NETUNREACH | Errno::NETDOWN | Errno::HOSTDOWN | Errno::ACCESS) => {
                    CloseReason::ConnectUnreachable
                }
                Some(Errno::CONNRESET) => CloseReason::ConnectReset,
                _ => CloseReason::ConnectError,
            },
        }
    }
}

/// An established upstream connection.
#[derive(Debug)]
pub struct Dialled {
    pub stream: TcpStream,
    /// Registered as ours for as long as this lives.
    pub own: OwnSocket,
}

/// Connects to `address`. Has no deadline of its own: the caller's stage has.
///
/// # Errors
/// See [`DialError`].
pub async fn dial(address: UpstreamAddr, options: DialOptions, own: &OwnSockets) -> Result<Dialled, DialError> {
    begin(address, options, own)?.await
}

/// Begins to connect to `address`.
///
/// # Errors
/// See [`DialError`].
pub fn begin(address: UpstreamAddr, options: DialOptions, own: &OwnSockets) -> Result<Dialling, DialError> {
    let socket = open(address.socket_addr(), options)?;
    let fail = |error| DialError::Connect { address, error };
    let own = {
        // Without a mark the rules may lead the connection back to us, to be accepted before `connect` returns.
        let _dialling = options.mark.is_none().then(|| own.dialling());
        match socket.connect(&address.socket_addr().into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(Errno::INPROGRESS.raw_os_error()) => {}
            Err(error) => return Err(fail(error)),
        }
        let local = socket.local_addr().map_err(fail)?.as_socket().map_or(address.socket_addr(), canonical);
        own.remember(Ends { local, remote: canonical(address.socket_addr()) }, options.way)
    };
    let stream = TcpStream::from_std(socket.into()).map_err(DialError::Socket)?;
    Ok(Dialling { address, dialled: Some(Dialled { stream, own }) })
}

/// A socket whose connection nobody has heard of yet, and the future of that. The far side may have accepted it all the same:
/// whoever gives up on it then must not let that look like a client that came, said nothing and ended in order.
#[derive(Debug)]
#[must_use = "it is given up when it is dropped"]
pub struct Dialling {
    address: UpstreamAddr,
    /// Until it is established.
    dialled: Option<Dialled>,
}

/// By hand: as a block it would keep everything twice, in each connection's set-up.
impl Future for Dialling {
    type Output = Result<Dialled, DialError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let address = self.address;
        let fail = |error| DialError::Connect { address, error };
        let Some(Dialled { stream, .. }) = &self.dialled else {
            return Poll::Ready(Err(DialError::Socket(Errno::BADF.into())));
        };
        ready!(stream.poll_write_ready(cx)).map_err(fail)?;
        // A socket that failed is not only writable but also closed for writing; only then it is asked why.
        let ready = ready!(pin!(stream.ready(Interest::WRITABLE)).poll(cx)).map_err(fail)?;
        if ready.is_write_closed()
            && let Some(error) = stream.take_error().map_err(fail)?
        {
            return Poll::Ready(Err(fail(error)));
        }
        Poll::Ready(self.dialled.take().ok_or_else(|| DialError::Socket(Errno::BADF.into())))
    }
}

impl Drop for Dialling {
    fn drop(&mut self) {
        if let Some(Dialled { stream, .. }) = &self.dialled {
            // A socket that refuses the option is already gone.
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }
}

fn open(address: SocketAddr, options: DialOptions) -> Result<Socket, DialError> {
    let socket =
        Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), None).map_err(DialError::Socket)?;
    socket.set_tcp_nodelay(true).map_err(DialError::Socket)?;
    let mark = match options.source {
        Some(Source::Told(_)) => Some(CLIENT_MARK),
        Some(Source::Borrowed(_)) | None => options.mark.map(NonZeroU32::get),
    };
    if let Some(mark) = mark {
        socket.set_mark(mark).map_err(DialError::Socket)?;
    }
    let named = match options.source {
        Some(Source::Borrowed(source_ip)) => borrow_source(&socket, source_ip),
        Some(Source::Told(client)) => tell_source(&socket, client),
        None => Ok(()),
    };
    match (named, options.source) {
        (Err(error), Some(source)) => Err(DialError::Source { source_ip: source.ip(), error }),
        _ => Ok(socket),
    }
}

/// The programs take the address from here, and have the socket bound to nothing. Without them this is refused, since the
/// address is not ours.
fn tell_source(socket: &Socket, client: SocketAddr) -> io::Result<()> {
    sockopt::set_bind_address_no_port(socket)?;
    socket.bind(&client.into())
}

/// Binds to an address that is not ours, leaving the port to `connect`.
fn borrow_source(socket: &Socket, source_ip: IpAddr) -> io::Result<()> {
    if source_ip.is_ipv4() {
        socket.set_ip_transparent_v4(true)?;
        socket.set_freebind_v4(true)?;
    } else {
        socket.set_ip_transparent_v6(true)?;
        socket.set_freebind_v6(true)?;
    }
    sockopt::set_bind_address_no_port(socket)?;
    socket.bind(&SocketAddr::new(source_ip, 0).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::listen::tests::loopback_listener;

    const PLAIN: DialOptions = DialOptions { mark: None, source: None, way: Way::Out };

    #[tokio::test]
    async fn a_dialled_socket_is_known_as_ours_until_dropped() {
        let listener = loopback_listener();
        let own = OwnSockets::default();
        let address = UpstreamAddr::new(listener.local_addr().expect("address"));
        let dialled = dial(address, PLAIN, &own).await.expect("connect");
        assert!(dialled.stream.nodelay().expect("nodelay"));
        let peer = listener.accept().expect("accept").1;
        let ends = Ends { local: peer, remote: address.socket_addr() };
        assert!(own.contains(ends));
        drop(dialled);
        assert!(!own.contains(ends));
    }

    #[tokio::test]
    async fn giving_up_on_a_connection_that_was_just_accepted_resets_it() {
        let listener = loopback_listener();
        let own = OwnSockets::default();
        let address = UpstreamAddr::new(listener.local_addr().expect("address"));
        {
            let mut dialling = Box::pin(dial(address, PLAIN, &own));
            let waker = std::task::Waker::noop();
            // Nothing has told the runtime yet that the kernels have connected.
            assert!(dialling.as_mut().poll(&mut Context::from_waker(waker)).is_pending());
        }
        let mut accepted = listener.accept().expect("accept").0;
        accepted.set_read_timeout(Some(Duration::from_secs(10))).expect("SO_RCVTIMEO");
        let error = io::Read::read(&mut accepted, &mut [0]).expect_err("a reset");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn a_refusal_says_where() {
        let address = UpstreamAddr::new(loopback_listener().local_addr().expect("address"));
        let error = dial(address, PLAIN, &OwnSockets::default()).await.expect_err("nobody listens any more");
        assert_eq!(error.to_string(), format!("cannot connect to {address}"));
        assert!(matches!(error, DialError::Connect { error, .. } if error.kind() == io::ErrorKind::ConnectionRefused));
    }
}
