//! What comes to the tunnel door and does not become a tunnel: garbage, halves, slow ones, and a storm of good ones.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustls::{ClientConnection, pki_types::ServerName};

use crate::bytes::random;
use crate::kit::door::Dial;
use crate::kit::wait::pause;
use crate::kit::{LIMIT, isolated, until};
use crate::raw::{PREFACE, Peer, SETTINGS, config, frame};
use crate::siege::{ECHO, Siege};
use crate::world::metric;

fn dial(siege: &Siege) -> TcpStream {
    let socket = Dial::default().connect(siege.camp(), siege.door()).expect("the kernel accepts");
    socket.set_read_timeout(Some(LIMIT)).expect("SO_RCVTIMEO");
    socket.set_write_timeout(Some(LIMIT)).expect("SO_SNDTIMEO");
    socket
}

/// The ClientHello that a good client would send.
fn hello(siege: &Siege) -> Vec<u8> {
    let name = ServerName::try_from("nobody.invalid").expect("a name");
    let mut client = ClientConnection::new(config(&siege.leaf), name).expect("a configuration");
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).expect("a vector");
    bytes
}

/// Until the other side ends, however it does.
fn wait_end(mut socket: &TcpStream, what: &str) {
    socket.set_read_timeout(Some(LIMIT)).expect("SO_RCVTIMEO");
    let start = Instant::now();
    let mut buffer = [0; 4096];
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("{what} goes on")
            }
            Err(_reset) => return,
        }
        assert!(start.elapsed() < LIMIT * 2, "{what} goes on");
    }
}

fn failures(siege: &Siege) -> f64 {
    metric(&siege.lab.adit, "adit_tls_handshake_failures_total{role=\"server\"}")
}

/// A client that is not what it seems, before, during and after the handshake. All are counted.
#[test]
fn garbage() {
    isolated(|| {
        let siege = Siege::new("tunnel: { handshakeTimeout: 2s }");
        siege.applications();
        let friend = siege.friend();
        let before = siege.calm(1);
        let hello = hello(&siege);
        let torn = |at: usize| hello[..at].to_vec();
        let mut twisted = hello.clone();
        twisted[60..].reverse();
        let record = |kind: u8, length: u16| [&[kind, 3, 3][..], &length.to_be_bytes()].concat();
        let starts: Vec<(&str, Vec<u8>)> = vec![
            ("an HTTP/1 request", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
            ("HTTP/2 in the clear", [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()),
            ("random bytes", random(1, 100_000)),
            ("zeros", vec![0; 70_000]),
            ("a record of no kind", [record(99, 16), vec![0; 16]].concat()),
            ("a record that is too large", [record(22, 0xffff), vec![0; 0x1_0000]].concat()),
            ("records of nothing", record(22, 0).repeat(1000)),
            ("an alert", [record(21, 2), vec![2, 40]].concat()),
            ("application data at once", [record(23, 32), vec![7; 32]].concat()),
            (
                "a hello of 16 MiB",
                [record(22, 0x4000), vec![1, 0xff, 0xff, 0xff], vec![0; 0x4000 - 4]].concat().repeat(3),
            ),
            ("a twisted hello", twisted),
            ("two hellos", hello.repeat(2)),
            ("a hello and random bytes", [hello.clone(), random(2, 5000)].concat()),
            ("a hello and HTTP/2 in the clear", [hello.clone(), PREFACE.to_vec()].concat()),
            ("nothing", Vec::new()),
            ("half a record", torn(3)),
            ("half a hello", torn(hello.len() / 2)),
        ];
        let counted = failures(&siege);
        let count = starts.len() + 5;
        thread::scope(|scope| {
            for (what, bytes) in &starts {
                let siege = &siege;
                scope.spawn(move || {
                    let mut socket = dial(siege);
                    // It may be cut off in the middle.
                    let _ = socket.write_all(bytes);
                    wait_end(&socket, what);
                });
            }
            // After the handshake.
            let after: [(&str, &[u8]); 5] = [
                ("no preface", b""),
                ("half a preface", &PREFACE[..12]),
                ("another preface", b"PRI * HTTP/3.0\r\n\r\nSM\r\n\r\n"),
                ("HTTP/1", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
                ("a preface without SETTINGS", PREFACE),
            ];
            for (what, bytes) in after {
                let siege = &siege;
                scope.spawn(move || {
                    let mut peer = Peer::handshaken(siege.camp(), siege.door(), &siege.leaf).expect("a handshake");
                    peer.write(bytes);
                    // Not by the peer itself, which would answer.
                    wait_end(peer.socket(), what);
                });
            }
        });
        until(LIMIT, "all of them to be counted", || (failures(&siege) - counted >= count as f64 - 0.5).then_some(()));
        siege.settled("garbage", &before);
        friend.well("garbage");
        siege.finish();
    });
}

/// Many sockets that send a byte of a hello each second: more than there are slots. Who is quick is served meanwhile.
#[test]
fn slow_handshakes() {
    isolated(|| {
        const SLOW: usize = 300;
        // A tenth of the time that a slow one has, and what a busy machine adds.
        const QUICK: Duration = Duration::from_secs(3);
        let siege = Siege::new("");
        siege.applications();
        let friend = siege.friend();
        let before = siege.calm(1);
        let hello = hello(&siege);
        let mut sockets: Vec<_> = (0..SLOW).map(|_| dial(&siege)).collect();
        thread::scope(|scope| {
            scope.spawn(|| {
                for byte in &hello[..3] {
                    for socket in &mut sockets {
                        // Some have been shed by now.
                        let _ = socket.write(&[*byte]);
                    }
                    pause(Duration::from_secs(1));
                }
            });
            // All slots are taken, and all the others wait too.
            for _ in 0..5 {
                let start = Instant::now();
                drop(siege.peer());
                assert!(start.elapsed() < QUICK, "{:?} for a handshake among slow ones", start.elapsed());
                pause(Duration::from_millis(200));
            }
        });
        for socket in &sockets {
            wait_end(socket, "a slow handshake");
        }
        drop(siege.peer());
        siege.settled("slow handshakes", &before);
        friend.well("slow handshakes");
        siege.finish();
    });
}

/// Demand C16: full handshakes in loops, as many as there are cores for and then some, while a connection in a tunnel makes progress.
/// Throughput with and without them cannot be compared on a machine whose cores do both sides' arithmetic and others' work too; what is
/// tested is the mechanism: established connections never stand still, handshakes get a part of the worker's time and go on.
#[test]
fn a_storm_of_handshakes() {
    isolated(|| {
        const CLIENTS: usize = 8;
        const STORM: Duration = Duration::from_secs(4);
        let siege = Siege::new("limits: { handshakes: 16 }\ntunnel: { handshakeTimeout: 2s }");
        siege.applications();
        let friend = siege.friend();
        let before = siege.calm(1);
        let bulk = Bulk::start(&siege);
        let config = config(&siege.leaf);
        let (made, tried) = (AtomicU64::new(0), AtomicU64::new(0));
        let start = Instant::now();
        thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| {
                    while start.elapsed() < STORM {
                        tried.fetch_add(1, Ordering::Relaxed);
                        let socket = Dial::default().connect(siege.camp(), siege.door()).expect("the kernel accepts");
                        if Peer::over(socket, &config).is_ok() {
                            made.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        let (made, tried) = (made.into_inner(), tried.into_inner());
        let stalled = bulk.stop();
        let took = friend.well("a storm of handshakes");
        note(&format!("{made} of {tried} handshakes; bulk stood still for {stalled:?}; {} round trips", took.len()));
        assert!(made > 0, "handshakes are not starved either");
        assert!(stalled < Duration::from_secs(2), "{stalled:?} for 16 KB and back");
        siege.settled("a storm", &crate::siege::Held { streams: 0.0, tunnels: 0.0, connections: 0.0, ..before });
        siege.finish();
    });
}

/// Somebody who sends as much as goes, and notes for how long nothing did.
struct Bulk {
    over: Arc<AtomicBool>,
    thread: thread::JoinHandle<Duration>,
}

impl Bulk {
    fn start(siege: &Siege) -> Self {
        let mut peer = Peer::connect(&siege.lab.client, siege.door(), &siege.leaf);
        let stream = peer.open(&siege.authority(ECHO));
        let over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&over);
        let thread = thread::spawn(move || {
            let mut longest = Duration::ZERO;
            while !told.load(Ordering::Relaxed) {
                let start = Instant::now();
                peer.ping_pong(stream, &[b'b'; 16_000]);
                longest = longest.max(start.elapsed());
            }
            longest
        });
        Self { over, thread }
    }

    fn stop(self) -> Duration {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().expect("bulk goes on")
    }
}

#[expect(clippy::print_stderr, reason = "seen when it fails, or by who asks")]
fn note(what: &str) {
    eprintln!("{what}");
}
