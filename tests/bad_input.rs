//! Random bytes at every port of a running daemon. It still serves afterwards, has not panicked, and holds on to nothing.
//! The bytes come from a fixed seed, so a failure comes again.

#![allow(clippy::panic, reason = "a test fails by panicking, in its helpers too")]

#[path = "netns/kit.rs"]
#[allow(dead_code, unused_imports, unreachable_pub, reason = "shared by test binaries, none of which uses all of it")]
mod kit;
#[path = "support/serve.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared by test binaries, none of which uses all of it")]
mod serve;
#[path = "socks5/wire.rs"]
#[allow(dead_code, reason = "shared by test binaries, none of which uses all of it")]
mod wire;

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use fastrand::Rng;
use socket2::SockRef;

use kit::daemon::get;
use kit::door::Dial;
use kit::{Adit, LIMIT, Lab, isolated, until};
use serve::echo;
use wire::{ask, to_address};

const PORTS: [u16; 6] = [15000, 15001, 15006, 15020, 15021, 15080];
const CONNECTIONS: usize = 150;
/// Connections that are open at a time, some of them idle.
const OPEN: usize = 40;
const SETTINGS: &str = "listen: { socks5: \"127.0.0.1:15080\" }\npreserveSource: off\n";

/// What a conversation at this port may begin with, so that the random part meets every state of a parser.
const BEGINNINGS: [&[u8]; 12] = [
    b"",
    &[5],
    &[5, 1, 0],
    &[5, 1, 0, 5, 1, 0, 3],
    &[5, 1, 0, 5, 1, 0, 1],
    &[5, 1, 0, 5, 1, 0, 4, 0x20],
    b"GET ",
    b"GET /mesh HTTP/1.1\r\nHost: localhost\r\n",
    b"PUT /logging HTTP/1.1\r\nHost: localhost\r\nX-Adit: 1\r\nContent-Length: 30\r\n\r\n",
    b"PUT /logging HTTP/1.1\r\nHost: localhost\r\nX-Adit: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nAccept: ",
    b"GET /healthz/ready HTTP/1.1\r\n",
];

/// Sends something, perhaps reads a little, and leaves in some way or other; returns what is still open.
fn bother(stream: TcpStream, random: &mut Rng) -> Option<TcpStream> {
    let mut stream = stream;
    stream.set_nodelay(true).expect("TCP_NODELAY");
    stream.set_write_timeout(Some(Duration::from_secs(1))).expect("SO_SNDTIMEO");
    let _ = stream.write_all(BEGINNINGS[random.usize(..BEGINNINGS.len())]);
    for _ in 0..random.usize(0..4) {
        let most = [4, 40, 400, 20_000][random.usize(..4)];
        let mut bytes = vec![0; random.usize(..most)];
        random.fill(&mut bytes);
        // The door may have closed already.
        let _ = stream.write_all(&bytes);
    }
    match random.u8(0..4) {
        0 => drop(stream),
        1 => {
            SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
            drop(stream);
        }
        2 => {
            let _ = stream.shutdown(Shutdown::Write);
            stream.set_read_timeout(Some(Duration::from_millis(20))).expect("SO_RCVTIMEO");
            let _ = stream.read(&mut [0; 1000]);
            return Some(stream);
        }
        _ => return Some(stream),
    }
    None
}

fn descriptors(adit: &Adit) -> usize {
    let path = format!("/proc/{}/fd", adit.pid().as_raw_nonzero());
    std::fs::read_dir(path).expect("a running daemon").count()
}

fn serves(lab: &Lab) {
    let (mut client, answer) = ask(&lab.adit, &to_address((lab.server.v4, 7000).into()));
    assert_eq!(answer.code, 0);
    client.write_all(b"still there").expect("write");
    client.shutdown(Shutdown::Write).expect("shutdown");
    let mut back = String::new();
    client.read_to_string(&mut back).expect("a clean end");
    assert_eq!(back, "still there");
    for (port, path) in [(15000, "/status"), (15020, "/metrics"), (15021, "/healthz/ready"), (15021, "/healthz/live")] {
        let answer = get(&lab.adit, port, path).unwrap_or_default();
        assert!(answer.starts_with("HTTP/1.1 200"), "{port}{path}: {answer}");
    }
}

#[test]
fn random_bytes_at_every_port() {
    isolated(|| {
        let lab = Lab::new();
        // Nothing random may leave this machine, and no name be looked up for long.
        lab.adit.ip("route delete 0.0.0.0/0\nroute delete ::/0\n");
        echo(&lab.server, 7000);
        let daemon = lab.adit(SETTINGS, "");
        serves(&lab);
        let before = descriptors(&daemon);
        let mut random = Rng::with_seed(0xad17);
        let mut open = Vec::new();
        let start = Instant::now();
        for round in 0..CONNECTIONS {
            for port in PORTS {
                let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
                match Dial::default().connect(&lab.adit, address) {
                    Ok(stream) => open.extend(bother(stream, &mut random)),
                    // A capture door that nothing was captured for resets at once.
                    Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{port}: {error}"),
                }
                if open.len() > OPEN {
                    open.swap_remove(random.usize(..open.len()));
                }
            }
            // In the middle of it, too.
            if round % 50 == 25 {
                serves(&lab);
            }
        }
        drop(open);
        assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
        until(LIMIT + LIMIT, "all descriptors to be back", || (descriptors(&daemon) <= before + 8).then_some(()));
        serves(&lab);
        let panicked: Vec<String> = daemon.log().into_iter().filter(|line| line.contains("panicked")).collect();
        assert!(panicked.is_empty(), "{panicked:#?}");
        // Each was somebody's mistake, never the daemon's own.
        let own: Vec<String> = daemon
            .log()
            .into_iter()
            .filter(|line| line.contains("\terror\t") || line.contains("\twarn\t"))
            .filter(|line| !line.contains("\taccess\t") && !line.contains("more connections failed early"))
            .collect();
        assert!(own.is_empty(), "{own:#?}");
    });
}
