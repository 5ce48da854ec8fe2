//! Listening sockets that were made elsewhere: by a service manager, or by the version before. Each is looked at before it
//! is used: it must be what its listener would have made.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::net::{AddressFamily, SocketType, sockopt};
use socket2::SockRef;

use crate::net::listen::{ListenError, ListenOptions, bind, set_options};

/// The sockets of one listener, worker by worker.
#[derive(Debug)]
pub struct Adopted {
    /// One list for each worker; each has at least one.
    pub workers: Vec<Vec<TcpListener>>,
    /// How many of the given sockets are in use; nothing: the listener was opened anew.
    pub taken: usize,
    /// Those that are not, and why.
    pub refused: Vec<Refused>,
}

/// A socket that is of no use for its listener. It is closed with this.
#[derive(Debug)]
pub struct Refused {
    pub why: String,
    _socket: OwnedFd,
}

/// Takes the `given` sockets for `name` at `address` if they listen there, and binds new ones otherwise. With fewer sockets
/// than workers each socket is shared by several of them, with more some workers have several: none is closed, since the
/// kernel has already told connections to wait at it.
///
/// # Errors
/// As [`bind()`].
pub fn adopt_or_bind(
    name: &'static str,
    address: SocketAddr,
    options: ListenOptions,
    given: Vec<OwnedFd>,
) -> Result<Adopted, ListenError> {
    let (mut taken, mut refused) = (Vec::new(), Vec::new());
    for socket in given {
        match usable(&socket, address) {
            Ok(()) => taken.push(TcpListener::from(socket)),
            Err(why) => refused.push(Refused { why, _socket: socket }),
        }
    }
    if taken.is_empty() {
        let workers = bind(name, address, options)?.into_iter().map(|listener| vec![listener]).collect();
        return Ok(Adopted { workers, taken: 0, refused });
    }
    let failed = |step| move |source| ListenError { name, address, step, source };
    for listener in &taken {
        listener.set_nonblocking(true).map_err(failed("O_NONBLOCK"))?;
    }
    let count = taken.len();
    let mut workers: Vec<Vec<TcpListener>> = (0..options.sockets.max(1)).map(|_| Vec::new()).collect();
    for index in count..workers.len() {
        let shared = taken[index % count].try_clone().map_err(failed("dup"))?;
        workers[index].push(shared);
    }
    let to = workers.len();
    for (index, listener) in taken.into_iter().enumerate() {
        workers[index % to].push(listener);
    }
    Ok(Adopted { workers, taken: count, refused })
}

/// Sets on an adopted socket what its listener's options say. Not before this process serves: until then another one may do
/// so with the very same socket, and with options of its own.
///
/// # Errors
/// Names the step that failed.
pub fn take_up(listener: &TcpListener, options: ListenOptions) -> Result<(), (&'static str, io::Error)> {
    let local = listener.local_addr().map_err(|error| ("getsockname", error))?;
    set_options(&SockRef::from(listener), local, options)
}

/// Whether it is a TCP socket that listens where it should.
fn usable(socket: &OwnedFd, wanted: SocketAddr) -> Result<(), String> {
    let asked = || -> io::Result<bool> {
        let domain = sockopt::socket_domain(socket)?;
        let internet = domain == AddressFamily::INET || domain == AddressFamily::INET6;
        let stream = sockopt::socket_type(socket)? == SocketType::STREAM;
        Ok(internet && stream && sockopt::socket_acceptconn(socket)?)
    };
    match asked() {
        Ok(true) => {}
        Ok(false) => return Err("it is not a listening TCP socket".to_owned()),
        Err(error) => return Err(format!("it is not a socket: {error}")),
    }
    let local = SockRef::from(&socket.as_fd()).local_addr().ok().and_then(|address| address.as_socket());
    let local = local.ok_or_else(|| "it has no address".to_owned())?;
    let dual = wanted.is_ipv6() && wanted.ip().is_unspecified() && local.is_ipv6();
    if dual && SockRef::from(&socket.as_fd()).only_v6().unwrap_or_default() {
        return Err("it does not take IPv4".to_owned());
    }
    if is_at(local, wanted) { Ok(()) } else { Err(format!("it listens on {local}")) }
}

/// Whether a socket that listens on `local` is what `wanted` asks for: port 0 is any port, and `[::]` is `0.0.0.0` where
/// there is no IPv6.
fn is_at(local: SocketAddr, wanted: SocketAddr) -> bool {
    let any_of_both = wanted.ip() == IpAddr::from([0_u16; 8]) && local.ip().is_unspecified();
    let same_ip = local.ip() == wanted.ip() || any_of_both;
    same_ip && (local.port() == wanted.port() || wanted.port() == 0)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const ANY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

    fn options(workers: usize) -> ListenOptions {
        ListenOptions { sockets: workers, ..ListenOptions::PLAIN }
    }

    /// The sockets of another process, and where they listen.
    fn given(sockets: usize) -> (Vec<OwnedFd>, SocketAddr) {
        let group = bind("outbound", ANY, options(sockets)).expect("bound");
        let address = group[0].local_addr().expect("bound");
        (group.into_iter().map(OwnedFd::from).collect(), address)
    }

    #[test]
    fn every_socket_is_used_by_some_worker_and_every_worker_has_one() {
        for (sockets, workers) in [(1, 1), (1, 4), (2, 3), (3, 2), (5, 1), (4, 4)] {
            let (group, address) = given(sockets);
            let adopted = adopt_or_bind("outbound", address, options(workers), group).expect("adopted");
            assert_eq!((adopted.taken, adopted.refused.len()), (sockets, 0));
            assert_eq!(adopted.workers.len(), workers);
            assert!(adopted.workers.iter().all(|listeners| !listeners.is_empty()), "{sockets} for {workers}");
            let all: Vec<_> = adopted.workers.iter().flatten().collect();
            assert_eq!(all.len(), sockets.max(workers));
            assert!(all.iter().all(|listener| listener.local_addr().expect("bound") == address));
            let inodes: std::collections::BTreeSet<_> =
                all.iter().map(|listener| rustix::fs::fstat(listener).expect("open").st_ino).collect();
            assert_eq!(inodes.len(), sockets, "none is left out");
        }
    }

    #[test]
    fn sockets_elsewhere_are_left_and_the_listener_is_opened_anew() {
        let (group, old) = given(2);
        let elsewhere = SocketAddr::from(([127, 0, 0, 2], 0));
        let adopted = adopt_or_bind("outbound", elsewhere, options(2), group).expect("bound");
        assert_eq!(adopted.taken, 0);
        let why: Vec<_> = adopted.refused.iter().map(|refused| refused.why.clone()).collect();
        assert_eq!(why, vec![format!("it listens on {old}"); 2]);
        assert_eq!(adopted.workers[1][0].local_addr().expect("bound").ip(), elsewhere.ip());
    }

    #[test]
    fn what_does_not_listen_is_refused() {
        let (reader, _writer) = io::pipe().expect("a pipe");
        let udp = std::net::UdpSocket::bind(ANY).expect("bound");
        let (mut group, address) = given(1);
        let connected = std::net::TcpStream::connect(address).expect("connected");
        group.extend([reader.into(), udp.into(), OwnedFd::from(connected)]);
        let adopted = adopt_or_bind("outbound", address, options(1), group).expect("adopted");
        assert_eq!((adopted.taken, adopted.refused.len()), (1, 3));
        assert!(adopted.refused[0].why.starts_with("it is not a socket"), "{:?}", adopted.refused[0]);
        assert_eq!(adopted.refused[1].why, "it is not a listening TCP socket");
        assert_eq!(adopted.refused[2].why, "it is not a listening TCP socket");
    }

    #[test]
    fn an_address_is_what_it_was_configured_as() {
        let at = |local: &str, wanted: &str| is_at(local.parse().expect("address"), wanted.parse().expect("address"));
        assert!(at("127.0.0.1:80", "127.0.0.1:80"));
        assert!(at("127.0.0.1:80", "127.0.0.1:0"));
        assert!(at("[::]:80", "[::]:80") && at("0.0.0.0:80", "[::]:80"));
        assert!(!at("[::]:80", "0.0.0.0:80"), "it would accept IPv6 too");
        assert!(!at("127.0.0.1:80", "[::]:80") && !at("127.0.0.1:80", "127.0.0.1:81") && !at("[::1]:80", "[::]:80"));
    }
}
