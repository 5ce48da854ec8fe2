//! What the application sees of its clients where capture at the socket shows them: adit connects from an address of its own,
//! and programs tell whose connection it is. adit is played by sockets that do as it does, but in the last test.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use adit::net::bpf::Hook;
use adit::net::redirect::{CLIENT_MARK, Options};
use socket2::{Domain, Protocol, Socket, Type};

use crate::command::succeeds;
use crate::connect::{apply, at, dial, options, programs_at, tracks};
use crate::kit::daemon::{Adit, get};
use crate::kit::door::{Dial, talk};
use crate::kit::{Door, Family, Host, LIMIT, Lab, isolated_in_cgroup, until};

const HOOKS: [Hook; 2] = [Hook::Bind4, Hook::Bind6];

/// Somebody who is not there.
fn client(family: Family, port: u16) -> SocketAddr {
    match family {
        Family::V4 => SocketAddr::from(([192, 0, 2, 9], port)),
        Family::V6 => SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 9], port)),
    }
}

/// As adit dials for `client`.
fn told(client: SocketAddr) -> Dial {
    Dial { mark: Some(CLIENT_MARK), source: Some(client), ..Dial::default() }
}

fn own(stream: &TcpStream) -> SocketAddr {
    let address = stream.local_addr().expect("an address");
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[test]
fn the_application_sees_its_clients() {
    isolated_in_cgroup(|cgroup| {
        let lab = Lab::new();
        let application = Door::open(&lab.adit, 8080);
        apply(&lab.adit, &options(cgroup));
        // An address that came later is not known to be one of this namespace.
        lab.adit.ip("addr add 10.77.0.99/32 dev lo\naddr add fd77::99/128 dev lo nodad\n");
        let later = ["10.77.0.99", "fd77::99"].map(|ip| ip.parse().expect("an address"));
        for (family, later) in Family::BOTH.into_iter().zip(later) {
            for to in [at(&lab.adit, family, 8080), SocketAddr::new(later, 8080)] {
                for port in [50_000, 0] {
                    let client = client(family, port);
                    let mut upstream = told(client).connect(&lab.adit, to).expect("the handshake completes");
                    let mut accepted = application.accept();
                    let want = SocketAddr::new(client.ip(), if port == 0 { own(&upstream).port() } else { port });
                    assert_eq!((accepted.peer, accepted.local), (want, to));
                    let asked = accepted.stream.peer_addr().expect("an address");
                    assert_eq!(SocketAddr::new(asked.ip().to_canonical(), asked.port()), want);
                    // adit itself is told the truth.
                    assert_eq!(upstream.peer_addr().expect("an address"), to);
                    assert_ne!(own(&upstream).ip(), client.ip());
                    talk(&mut upstream, &mut accepted.stream);
                }
            }
        }
        assert!(!tracks(&lab.adit));
        // As long as the programs are there, and through an `apply` in between.
        let upstream = told(client(Family::V4, 50_001)).connect(&lab.adit, at(&lab.adit, Family::V4, 8080));
        let _upstream = upstream.expect("the handshake completes");
        let accepted = application.accept();
        apply(&lab.adit, &options(cgroup));
        let asked = accepted.stream.peer_addr().expect("an address");
        assert_eq!((asked.ip().to_canonical(), asked.port()), (client(Family::V4, 0).ip(), 50_001));
        assert_eq!(programs_at(cgroup, HOOKS), [1; 2]);
        apply(&lab.adit, &Options { preserve_source: false, ..options(cgroup) });
        assert_eq!(programs_at(cgroup, HOOKS), [0; 2]);
        apply(&lab.adit, &options(cgroup));
        lab.adit.run(adit::net::redirect::remove).expect("removed");
        assert_eq!(programs_at(cgroup, HOOKS), [0; 2]);
        let refused = told(client(Family::V4, 0));
        let error = bound(&lab.adit, CLIENT_MARK, refused.source.expect("a client")).expect_err("nobody takes it");
        assert_eq!(error.kind(), ErrorKind::AddrNotAvailable);
    });
}

/// A listener that only knows IPv4 has sockets of another family.
#[test]
fn an_application_of_ipv4_alone_sees_them_too() {
    isolated_in_cgroup(|cgroup| {
        let lab = Lab::new();
        apply(&lab.adit, &options(cgroup));
        let application: TcpListener = lab.adit.run(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).expect("a socket");
            socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8080)).into()).expect("bind");
            socket.listen(8).expect("listen");
            socket.into()
        });
        let client = client(Family::V4, 50_000);
        let mut upstream = told(client).connect(&lab.adit, at(&lab.adit, Family::V4, 8080)).expect("the handshake");
        let (mut accepted, peer) = application.accept().expect("a connection");
        assert_eq!((peer, accepted.peer_addr().expect("an address")), (client, client));
        talk(&mut upstream, &mut accepted);
    });
}

/// Whoever has the ends of a connection that came to nothing is not taken for its client.
#[test]
fn what_a_failed_connection_leaves_is_nobody_elses() {
    isolated_in_cgroup(|cgroup| {
        let lab = Lab::new();
        apply(&lab.adit, &options(cgroup));
        lab.adit.sysctl("ipv4/ip_local_port_range", "40000 40003");
        let to = at(&lab.adit, Family::V4, 8080);
        for _ in 0..32 {
            let error = told(client(Family::V4, 0)).connect(&lab.adit, to).expect_err("nobody listens");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
        }
        let application = Door::open(&lab.adit, 8080);
        let mut open = Vec::new();
        for _ in 0..4 {
            let plain = dial(&lab.adit, to);
            let accepted = application.accept();
            assert_eq!(accepted.peer, own(&plain));
            open.push((plain, accepted));
        }
    });
}

fn bound(host: &Host, mark: u32, to: SocketAddr) -> std::io::Result<SocketAddr> {
    host.run(|| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_mark(mark)?;
        socket.bind(&to.into())?;
        Ok(socket.local_addr()?.as_socket().expect("an IP address"))
    })
}

#[test]
fn only_adit_speaks_for_a_client_and_only_here() {
    isolated_in_cgroup(|cgroup| {
        let lab = Lab::new();
        apply(&lab.adit, &options(cgroup));
        for family in Family::BOTH {
            for (host, mark) in [(&lab.adit, 0), (&lab.adit, 1337), (&lab.client, CLIENT_MARK)] {
                let error = bound(host, mark, client(family, 0)).expect_err("a foreign address");
                assert_eq!(error.kind(), ErrorKind::AddrNotAvailable, "{}: {error}", host.name);
            }
            let own = at(&lab.adit, family, 9000);
            assert_eq!(bound(&lab.adit, 1337, own).expect("one of its own"), own);
        }
    });
}

/// The whole way, as an operator goes it.
#[test]
fn the_application_behind_the_daemon_sees_its_clients() {
    isolated_in_cgroup(|cgroup| {
        let lab = Lab::new();
        let mut daemon = Adit::start(&lab.adit, "capture: connect\npreserveSource: require\n", "");
        until(LIMIT, "the programs to be missed", || {
            get(&lab.adit, 15021, "/healthz/ready").filter(|answer| answer.contains("preserveSource"))
        });
        succeeds(&lab.adit, &format!("redirect apply --kind connect --cgroup {}", cgroup.display()));
        daemon.wait_ready(&lab.adit);
        let application = Door::open(&lab.adit, 8080);
        for family in Family::BOTH {
            let mut stream = dial(&lab.client, at(&lab.adit, family, 8080));
            let mut accepted = application.accept();
            assert_eq!(accepted.peer, own(&stream));
            let captured = accepted.stream.peer_addr().expect("an address");
            assert_eq!((captured.ip().to_canonical(), captured.port()), (accepted.peer.ip(), accepted.peer.port()));
            talk(&mut stream, &mut accepted.stream);
            let connections = get(&lab.adit, 15000, "/connections").expect("an answer");
            assert!(connections.contains(&accepted.peer.to_string()), "{connections}");
        }
        assert!(!tracks(&lab.adit));
        succeeds(&lab.adit, "redirect remove");
        daemon.stop();
    });
}
