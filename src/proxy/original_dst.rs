//! Original destination: where the client was going before the kernel handed its connection to adit.

use std::io;

use rustix::io::Errno;
use socket2::SockRef;
use tokio::net::TcpStream;

use crate::config::settings::Capture;
use crate::net::address::{OriginalDst, PeerAddr};
use crate::net::sockopt::noted_dst;

/// Who knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// It is the local address.
    ByTheSocket,
    /// `SO_ORIGINAL_DST`.
    ByConntrack,
    /// The programs of capture at the socket; failing them, as before, conntrack.
    ByPrograms,
}

impl Known {
    #[must_use]
    pub const fn outbound(capture: Capture) -> Self {
        match capture {
            Capture::Redirect => Self::ByConntrack,
            Capture::Tproxy => Self::ByTheSocket,
            Capture::Connect => Self::ByPrograms,
        }
    }

    #[must_use]
    pub const fn inbound(capture: Capture) -> Self {
        if capture.is_transparent_inbound() { Self::ByTheSocket } else { Self::ByConntrack }
    }
}

/// Recovers the original destination; the local address for a connection that was not captured at all.
///
/// # Errors
/// The socket is gone already.
pub fn original_dst(socket: &TcpStream, peer: PeerAddr, known: Known) -> io::Result<OriginalDst> {
    if known == Known::ByPrograms
        && let Some(address) = unless_unknown(noted_dst(socket))?
    {
        return Ok(OriginalDst::new(address.into()));
    }
    if known != Known::ByTheSocket {
        let socket = SockRef::from(socket);
        let asked = if peer.ip().is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
        if let Some(address) = unless_unknown(asked)?.and_then(|address| address.as_socket()) {
            return Ok(OriginalDst::new(address));
        }
    }
    socket.local_addr().map(OriginalDst::new)
}

/// `None`: no such connection in conntrack, so it was not redirected; or this kernel has no conntrack, or no programs of ours.
fn unless_unknown<T>(asked: io::Result<T>) -> io::Result<Option<T>> {
    match asked {
        Err(error)
            if [Errno::NOENT, Errno::NOPROTOOPT, Errno::OPNOTSUPP]
                .iter()
                .any(|errno| error.raw_os_error() == Some(errno.raw_os_error())) =>
        {
            Ok(None)
        }
        asked => asked.map(Some),
    }
}
