//! Original destination: where the client was going before the kernel handed its connection to adit.

use rustix::io::Errno;
use socket2::SockRef;
use tokio::net::TcpStream;

use crate::net::address::{OriginalDst, PeerAddr};

/// Recovers the original destination: `SO_ORIGINAL_DST`, and the local address where the kernel delivers to it
/// (`transparent`) and for a connection that was not captured at all.
///
/// # Errors
/// The socket is gone already.
pub fn original_dst(socket: &TcpStream, peer: PeerAddr, transparent: bool) -> std::io::Result<OriginalDst> {
    if !transparent {
        let socket = SockRef::from(socket);
        let asked = if peer.ip().is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
        match asked {
            Ok(address) => {
                if let Some(address) = address.as_socket() {
                    return Ok(OriginalDst::new(address));
                }
            }
            // No such connection in conntrack: it was not redirected. Or this kernel has no conntrack.
            Err(error)
                if [Errno::NOENT, Errno::NOPROTOOPT, Errno::OPNOTSUPP]
                    .iter()
                    .any(|errno| error.raw_os_error() == Some(errno.raw_os_error())) => {}
            Err(error) => return Err(error),
        }
    }
    socket.local_addr().map(OriginalDst::new)
}
