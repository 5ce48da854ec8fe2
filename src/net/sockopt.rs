//! The few socket options and queries that neither socket2 nor rustix wraps. With `proxy::worker::memory` the only
//! module with `unsafe`.
//!
//! Every function takes a borrowed descriptor, so it is open for the length of the call, and passes the kernel a
//! pointer and length of a local variable.

#![expect(unsafe_code, reason = "setsockopt, getsockopt and ioctl have no safe wrapper for these options")]

use std::io;
use std::net::SocketAddrV6;
use std::os::fd::{AsFd, AsRawFd};

/// What adit reads of `struct tcp_info` (linux/tcp.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpInfo {
    /// The state as the kernel numbers it; see [`TcpInfo::is_closed`].
    pub state: u8,
    /// Unanswered window or keepalive probes.
    pub probes: u8,
    /// Segments sent and not acknowledged.
    pub unacked: u32,
    /// Milliseconds since the last acknowledgement arrived.
    pub last_ack_recv_ms: u32,
    /// Bytes written and not yet sent.
    pub notsent_bytes: u32,
    /// The peer's receive window in bytes.
    pub snd_wnd: u32,
    pub snd_mss: u32,
}

impl TcpInfo {
    /// Whether there is no connection any more: it was reset, or given up.
    #[must_use]
    pub const fn is_closed(&self) -> bool {
        const TCP_CLOSE: u8 = 7;
        self.state == TCP_CLOSE
    }
}

/// Long enough for every field read here; a shorter answer (an older kernel) leaves zeros.
const TCP_INFO_LEN: usize = 256;

/// Reads `TCP_INFO`.
///
/// # Errors
/// What `getsockopt` says.
pub fn tcp_info(socket: impl AsFd) -> io::Result<TcpInfo> {
    let mut raw = [0_u8; TCP_INFO_LEN];
    get(socket, libc::IPPROTO_TCP, libc::TCP_INFO, &mut raw)?;
    let word = |at: usize| raw.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes);
    Ok(TcpInfo {
        state: raw[0],
        probes: raw[3],
        snd_mss: word(16),
        unacked: word(24),
        last_ack_recv_ms: word(56),
        notsent_bytes: word(144),
        snd_wnd: word(228),
    })
}

/// The kernel's number for the network namespace of the socket; it is never given twice.
///
/// # Errors
/// What `getsockopt` says: ENOPROTOOPT before Linux 5.14.
pub fn netns_cookie(socket: impl AsFd) -> io::Result<u64> {
    let mut raw = [0_u8; 8];
    get(socket, libc::SOL_SOCKET, libc::SO_NETNS_COOKIE, &mut raw)?;
    Ok(u64::from_ne_bytes(raw))
}

/// How many bytes were written and are not yet acknowledged (`SIOCOUTQ`).
///
/// # Errors
/// What `ioctl` says.
pub fn unacknowledged(socket: impl AsFd) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is open (borrowed); TIOCOUTQ (the same number as SIOCOUTQ) writes one int.
    let status = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    usize::try_from(bytes).map_err(io::Error::other)
}

/// `TCP_NOTSENT_LOWAT`: the socket takes no more while so many bytes wait in it to be sent, beside those on their way.
///
/// # Errors
/// What `setsockopt` says.
pub fn set_unsent_limit(socket: impl AsFd, bytes: i32) -> io::Result<()> {
    set(socket, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, bytes)
}

/// `IP_BIND_ADDRESS_NO_PORT`: binding a source address does not reserve a port before `connect`.
///
/// # Errors
/// What `setsockopt` says.
pub fn set_bind_address_no_port(socket: impl AsFd) -> io::Result<()> {
    set(socket, libc::SOL_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)
}

/// An option of `SOL_SOCKET` that no kernel has, and the programs of capture at the socket answer; the kernel itself is through
/// with it at once, where it would search conntrack for `SO_ORIGINAL_DST`.
pub const NOTED_DST: u16 = 0x6164;

/// Where a connection that was captured at the client's socket was going; it is forgotten with the answer.
///
/// # Errors
/// ENOPROTOOPT when nothing is noted, by whatever programs there are; what `getsockopt` says.
pub fn noted_dst(socket: impl AsFd) -> io::Result<SocketAddrV6> {
    // `struct sockaddr_in6`: family, port, flow, address, scope. IPv4 addresses are mapped.
    let mut raw = [0_u8; 28];
    get(socket, libc::SOL_SOCKET, NOTED_DST.into(), &mut raw)?;
    let [_, _, port_high, port_low, _, _, _, _, ip @ .., _, _, _, _] = raw;
    let ip: [u8; 16] = ip;
    Ok(SocketAddrV6::new(ip.into(), u16::from_be_bytes([port_high, port_low]), 0, 0))
}

/// What is not written stays as it is.
fn get(socket: impl AsFd, level: libc::c_int, option: libc::c_int, value: &mut [u8]) -> io::Result<()> {
    let mut len = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    let fd = socket.as_fd();
    // SAFETY: the descriptor is open (borrowed); `value` is writable for `len` bytes and lives through the call.
    let status = unsafe { libc::getsockopt(fd.as_raw_fd(), level, option, value.as_mut_ptr().cast(), &raw mut len) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn set(socket: impl AsFd, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<libc::c_int>()).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open (borrowed); `value` is readable for `len` bytes and lives through the call.
    let status = unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, option, (&raw const value).cast(), len) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, TcpStream};

    fn pair() -> (TcpStream, TcpStream) {
        let listener = crate::net::listen::tests::loopback_listener();
        let client = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
        (client, listener.accept().expect("accept").0)
    }

    #[test]
    fn without_programs_nothing_is_noted() {
        let error = noted_dst(&pair().1).expect_err("not captured");
        assert_eq!(error.raw_os_error(), Some(libc::ENOPROTOOPT), "{error}");
    }

    #[test]
    fn queries_see_the_unread_and_the_unacknowledged() {
        let (mut client, mut server) = pair();
        assert_eq!(unacknowledged(&client).expect("outq"), 0);
        assert!(tcp_info(&client).expect("info").snd_wnd > 0);
        client.set_nonblocking(true).expect("nonblocking");
        // Fill both buffers: then something is unsent or the window is closed.
        while client.write(&[7; 65536]).is_ok() {}
        assert!(unacknowledged(&client).expect("outq") > 0);
        let limit = std::time::Instant::now() + std::time::Duration::from_secs(10);
        loop {
            let info = tcp_info(&client).expect("info");
            assert!(info.notsent_bytes > 0);
            assert!(!info.is_closed());
            if info.snd_wnd < info.snd_mss {
                break;
            }
            assert!(std::time::Instant::now() < limit, "a full reader closes its window: {info:?}");
            std::thread::yield_now();
        }
        let mut sink = vec![0; 1 << 20];
        assert!(server.read(&mut sink).expect("read") > 0);
        // Unread bytes make this a reset. What was not acknowledged never will be, and still counts.
        drop(server);
        while !tcp_info(&client).expect("info").is_closed() {
            assert!(std::time::Instant::now() < limit, "a reset closes");
            std::thread::yield_now();
        }
        assert!(unacknowledged(&client).expect("outq") > 0);
    }

    #[test]
    fn no_port_is_reserved_by_binding() {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("socket");
        set_bind_address_no_port(&socket).expect("option");
        socket.bind(&std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).expect("bind");
        assert_eq!(socket.local_addr().expect("address").as_socket().expect("inet").port(), 0);
    }
}
