//! The bench's load generator against relays that are honest, and relays that are not: its checks must be able to fail.
//!
//! The relays live in this process, a thread per direction, on loopback and port 0.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, in its helpers too")]

#[path = "../benches/peers"]
#[expect(dead_code, reason = "the bench uses the rest")]
mod peers {
    pub(super) mod account;
    pub(super) mod load;
    pub(super) mod namespace;
    pub(super) mod recipe;
    pub(super) mod shape;
    pub(super) mod stats;
}

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use adit::config::settings::Workers;
use peers::account::Usage;
use peers::load::{Books, HalfClose, Load, Timing};
use peers::recipe::{self, Found, Programs};
use peers::shape::{self, Crowds, Direction, Shape};
use socket2::{Domain, Socket, Type};

const ANY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
const TIMING: Timing = Timing {
    warm_up: Duration::from_millis(20),
    length: Duration::from_millis(250),
    settle: Duration::from_millis(1200),
};
const BOOKS: Books =
    Books { usage: || Ok(Usage::default()), resident: || Ok(1 << 20), sockets: || Ok(vec![vec![30, 10]]) };
/// Few: the relays are threads, two for each connection.
const CROWDS: Crowds = Crowds { idle: 20, burst: 20 };

/// What a relay does to the bytes of one direction; it gets how many went before.
type Tamper = fn(u64, &mut Vec<u8>);

const HONEST: Tamper = |_, _| {};
const FLIPS_A_BIT: Tamper = |before, bytes| {
    if before < 100 && before + bytes.len() as u64 >= 100 {
        bytes[99 - usize::try_from(before).unwrap()] ^= 1;
    }
};
const LOSES_A_BYTE: Tamper = |before, bytes| {
    if before < 100 && before + bytes.len() as u64 >= 100 {
        bytes.pop();
    }
};
const DOUBLES_A_BYTE: Tamper = |before, bytes| {
    if before < 100 && before + bytes.len() as u64 >= 100 {
        bytes.push(*bytes.last().unwrap());
    }
};

/// Starts a relay to `server` that tampers with what servers send (`down`) or with what clients send. Returns its door.
fn relay(server: SocketAddrV4, down: bool, tamper: Tamper) -> SocketAddrV4 {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::V4(ANY).into()).unwrap();
    socket.listen(64).unwrap();
    let listener = TcpListener::from(socket);
    let SocketAddr::V4(door) = listener.local_addr().unwrap() else { panic!("not IPv4") };
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let Ok(upstream) = TcpStream::connect(server) else { return };
            let (up, back) = if down { (HONEST, tamper) } else { (tamper, HONEST) };
            let (from, to) = (client.try_clone().unwrap(), upstream.try_clone().unwrap());
            thread::spawn(move || copy(from, to, up));
            thread::spawn(move || copy(upstream, client, back));
        }
    });
    door
}

fn copy(mut from: TcpStream, mut to: TcpStream, tamper: Tamper) {
    let mut before = 0;
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let mut bytes = buffer[..length].to_vec();
        tamper(before, &mut bytes);
        before += length as u64;
        if to.write_all(&bytes).is_err() {
            break;
        }
    }
    // The other end may be gone already.
    let _ = to.shutdown(Shutdown::Write);
}

fn direct() -> Load {
    Load::bind(ANY, |server| server, BOOKS).unwrap()
}

fn through(down: bool, tamper: Tamper) -> Load {
    Load::bind(ANY, |server| relay(server, down, tamper), BOOKS).unwrap()
}

fn shapes() -> Vec<Shape> {
    shape::chosen(&[], CROWDS).unwrap()
}

#[test]
fn every_shape_measures_and_conserves_bytes() {
    for mut load in [direct(), through(false, HONEST)] {
        load.verify().unwrap();
        for shape in shapes() {
            let measured = load.run(shape, TIMING).unwrap_or_else(|error| panic!("{}: {error:#}", shape.name()));
            assert!(measured.units > 0, "{}: {measured:?}", shape.name());
            assert!(measured.sent >= measured.units, "{}: {measured:?}", shape.name());
            assert_eq!(measured.sent, measured.received, "{}", shape.name());
            // Connections that only stay take what they take.
            let timed = !matches!(shape, Shape::Idle { .. } | Shape::Spread { .. });
            assert!(measured.wall_ns >= 250_000_000 || !timed, "{}: {measured:?}", shape.name());
        }
    }
}

#[test]
fn memory_and_workers_are_looked_at_while_it_matters() {
    static RESIDENT: AtomicU64 = AtomicU64::new(0);
    // Grows with every look, so the last look before differs from the last one after.
    let resident = || Ok(RESIDENT.fetch_add(1 << 20, Ordering::Relaxed));
    let mut load = Load::bind(ANY, |server| server, Books { resident, ..BOOKS }).unwrap();
    for shape in [Shape::Idle { connections: 5 }, Shape::Burst { connections: 20 }] {
        let measured = load.run(shape, TIMING).unwrap();
        let memory = measured.memory.unwrap();
        assert!(memory.before < memory.after && measured.sockets.is_empty(), "{measured:?}");
        assert_eq!(measured.latency_ns, None);
    }
    let measured = load.run(Shape::Spread { connections: 5 }, TIMING).unwrap();
    assert_eq!((measured.units, measured.sockets), (5, vec![vec![30, 10]]));
}

/// Memory that goes on changing is not waited for beyond the time that there is.
#[test]
fn a_burst_ends_although_memory_never_settles() {
    static RESIDENT: AtomicU64 = AtomicU64::new(0);
    let resident = || Ok(RESIDENT.fetch_add(1 << 20, Ordering::Relaxed));
    let mut load = Load::bind(ANY, |server| server, Books { resident, ..BOOKS }).unwrap();
    let began = Instant::now();
    load.run(Shape::Burst { connections: 10 }, TIMING).unwrap();
    assert!(began.elapsed() > TIMING.settle * 2, "{:?}", began.elapsed());
}

#[test]
fn a_burst_that_changes_a_byte_is_found() {
    assert!(through(false, FLIPS_A_BIT).run(Shape::Burst { connections: 10 }, TIMING).is_err());
}

#[test]
fn latencies_are_ordered_and_none_is_zero() {
    let measured = direct().run(Shape::Request { size: 128, connections: 4 }, TIMING).unwrap();
    let [p50, p99, p999] = measured.latency_ns.unwrap();
    assert!(0 < p50 && p50 <= p99 && p99 <= p999, "{p50} {p99} {p999}");
}

#[test]
fn a_changed_byte_is_found() {
    for down in [false, true] {
        assert!(through(down, FLIPS_A_BIT).verify().is_err(), "down: {down}");
        let request = Shape::Request { size: 128, connections: 2 };
        assert!(through(down, FLIPS_A_BIT).run(request, TIMING).is_err(), "down: {down}");
    }
}

#[test]
fn a_lost_or_doubled_byte_is_found_in_bulk() {
    for (direction, down) in [(Direction::Up, false), (Direction::Down, true)] {
        for tamper in [LOSES_A_BYTE, DOUBLES_A_BYTE] {
            assert!(through(down, tamper).verify().is_err(), "{direction:?}");
            let error = through(down, tamper).run(Shape::Bulk { direction, connections: 2 }, TIMING).unwrap_err();
            let error = format!("{error:#}");
            assert!(error.contains("sent") && error.contains("received"), "{direction:?}: {error}");
        }
    }
}

/// A peer that holds messages back for a while makes those late that were due meanwhile, too.
#[test]
#[expect(clippy::disallowed_methods, reason = "the peer is slow, nobody waits for anything")]
fn a_message_counts_from_when_it_was_due() {
    let holds: Tamper = |before, bytes| {
        // The second message: the hello has eight bytes, a message 128.
        if before <= 8 + 128 && before + bytes.len() as u64 > 8 + 128 {
            thread::sleep(TIMING.length * 3 / 5);
        }
    };
    let measured = through(false, holds).run(Shape::Beside { bulk: 0 }, TIMING).unwrap();
    let [p50, ..] = measured.latency_ns.unwrap();
    assert!(p50 > 15_000_000, "most were due while it slept: {measured:?}");
}

#[test]
fn a_changed_or_lost_byte_is_found_beside_bulk() {
    for (bulk, tamper) in [(0, FLIPS_A_BIT), (2, FLIPS_A_BIT), (2, LOSES_A_BYTE)] {
        assert!(through(false, tamper).run(Shape::Beside { bulk }, TIMING).is_err(), "{bulk}");
    }
    // Of the bulk alone: no small message has so many bytes.
    let loses: Tamper = |before, bytes| {
        if before > 1 << 20 {
            bytes.pop();
        }
    };
    let error = format!("{:#}", through(false, loses).run(Shape::Beside { bulk: 2 }, TIMING).unwrap_err());
    assert!(error.contains("bytes on a connection"), "{error}");
}

#[test]
fn a_second_answer_to_a_short_connection_is_found() {
    let doubles: Tamper = |_, bytes| bytes.push(bytes[0]);
    assert!(through(true, doubles).run(Shape::Short { parallel: 4 }, TIMING).is_err());
}

/// A process that is starting holds copies of all sockets for a moment, so one that was closed can still ring.
#[test]
fn processes_that_start_meanwhile_are_no_matter_to_short_connections() {
    let over = AtomicBool::new(false);
    let measured = thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                assert!(Command::new("true").status().unwrap().success());
            }
        });
        let measured = (0..4).try_for_each(|_| {
            let measured = direct().run(Shape::Short { parallel: 16 }, TIMING)?;
            anyhow::ensure!(measured.units > 0 && measured.sent == measured.received, "{measured:?}");
            Ok(())
        });
        over.store(true, Ordering::Relaxed);
        measured
    });
    measured.unwrap();
}

#[test]
fn idle_connections_must_live() {
    // Ends the connection after the first byte down, so that it is gone when it is asked again.
    let server = |server| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::V4(ANY).into()).unwrap();
        socket.listen(64).unwrap();
        let listener = TcpListener::from(socket);
        let SocketAddr::V4(door) = listener.local_addr().unwrap() else { panic!("not IPv4") };
        thread::spawn(move || {
            for mut client in listener.incoming().map_while(Result::ok) {
                let mut upstream = TcpStream::connect::<SocketAddrV4>(server).unwrap();
                let (mut hello, mut byte) = ([0; 8], [0; 1]);
                client.read_exact(&mut hello).unwrap();
                upstream.write_all(&hello).unwrap();
                upstream.read_exact(&mut byte).unwrap();
                client.write_all(&byte).unwrap();
            }
        });
        door
    };
    let mut load = Load::bind(ANY, server, BOOKS).unwrap();
    let error = load.run(Shape::Idle { connections: 3 }, TIMING).unwrap_err();
    assert!(format!("{error:#}").contains("after the idle time"), "{error:#}");
}

#[test]
fn filters_choose_whole_parts_of_names() {
    let names = |only: &[&str]| -> Result<Vec<String>, String> {
        let only: Vec<String> = only.iter().map(|&filter| filter.to_owned()).collect();
        let shapes = shape::chosen(&only, CROWDS).map_err(|error| error.to_string())?;
        Ok(shapes.iter().map(|shape| shape.name()).collect())
    };
    assert_eq!(names(&["bulk-up", "idle"]).unwrap(), ["idle", "bulk-up-1", "bulk-up-8"]);
    assert_eq!(names(&["request-128-1"]).unwrap(), ["request-128-1"]);
    assert!(names(&["request-128-6"]).unwrap_err().contains("request-128-64"));
    assert_eq!(names(&["request-16384"]).unwrap(), ["request-16384-1", "request-16384-64"]);
    assert_eq!(names(&[]).unwrap().len(), 14);
}

#[test]
fn an_epoll_is_counted_once_and_only_if_it_is_full() {
    let epoll = |worker: u32, sockets: u32| {
        let line = |socket| format!("tfd: {:8} events: 8000201d data: {worker:8x}  pos:0 ino:1 sdev:8\n", socket + 10);
        (0..sockets).map(line).fold("pos:\t0\nflags:\t02\n".to_owned(), |text, line| text + &line)
    };
    let socket = "pos:\t0\nflags:\t02\n".to_owned();
    // The control thread has a few; the first worker has its epoll twice.
    let descriptors = [epoll(1, 40), socket.clone(), epoll(2, 60), epoll(3, 5), epoll(1, 40)];
    let mut held = peers::account::held(&descriptors);
    held.sort_unstable();
    assert_eq!(held, [40, 60]);
    assert_eq!(peers::account::held(&[socket]), [0; 0]);
}

#[test]
fn percentiles_and_medians() {
    let mut samples: Vec<u32> = (1..=1000).rev().collect();
    assert_eq!(peers::stats::percentiles(&mut samples, [500, 990, 999]), [500, 990, 999]);
    assert_eq!(peers::stats::percentiles(&mut [7], [500, 990, 999]), [7, 7, 7]);
    assert_eq!(peers::stats::percentiles(&mut [], [500, 990, 999]), [0, 0, 0]);
    assert_eq!(peers::stats::median(vec![3.0, 1.0, 2.0]), Some((2.0, 1.0)));
    assert_eq!(peers::stats::median(vec![4.0, 2.0]), Some((3.0, 2.0 / 3.0)));
    assert_eq!(peers::stats::median(vec![]), None);
    assert_eq!(peers::stats::largest_share(&[vec![3, 1], vec![1, 1], vec![]]), Some(0.75));
    assert_eq!(peers::stats::largest_share(&[vec![5]]), Some(1.0));
    assert_eq!(peers::stats::largest_share(&[vec![], vec![0]]), None);
}

/// Where a relay says nothing more once the server has ended, as Envoy's tunnels do, servers end last.
#[test]
fn a_server_that_must_end_last_does() {
    let mut load = Load::bind(ANY, forgetful, BOOKS).unwrap();
    assert!(load.verify().is_err());
    for server in [one_sided, |server| server] {
        let mut load = Load::bind(ANY, server, BOOKS).unwrap();
        load.half_close = HalfClose::ClientOnly;
        load.verify().unwrap();
        for shape in shapes() {
            let measured = load.run(shape, TIMING).unwrap_or_else(|error| panic!("{}: {error:#}", shape.name()));
            assert!(measured.units > 0 && measured.sent == measured.received, "{}: {measured:?}", shape.name());
        }
    }
    for tamper in [LOSES_A_BYTE, DOUBLES_A_BYTE] {
        let mut load = through(true, tamper);
        load.half_close = HalfClose::ClientOnly;
        let bulk = Shape::Bulk { direction: Direction::Down, connections: 1 };
        assert!(load.run(bulk, TIMING).is_err());
    }
}

/// Ends both halves when the server has ended its own.
fn one_sided(server: SocketAddrV4) -> SocketAddrV4 {
    ends_with_the_server(server, u64::MAX)
}

/// As [`one_sided`], and never has carried all that the client sent by then, however slow the server is.
fn forgetful(server: SocketAddrV4) -> SocketAddrV4 {
    ends_with_the_server(server, 1024 * 1024)
}

fn ends_with_the_server(server: SocketAddrV4, most_up: u64) -> SocketAddrV4 {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::V4(ANY).into()).unwrap();
    socket.listen(64).unwrap();
    let listener = TcpListener::from(socket);
    let SocketAddr::V4(door) = listener.local_addr().unwrap() else { panic!("not IPv4") };
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let Ok(upstream) = TcpStream::connect(server) else { return };
            let (from, mut to) = (client.try_clone().unwrap(), upstream.try_clone().unwrap());
            if most_up == u64::MAX {
                thread::spawn(move || copy(from, to, HONEST));
            } else {
                thread::spawn(move || std::io::copy(&mut from.take(most_up), &mut to));
            }
            thread::spawn(move || {
                copy(upstream.try_clone().unwrap(), client.try_clone().unwrap(), HONEST);
                // Either may be over already.
                let _ = (client.shutdown(Shutdown::Both), upstream.shutdown(Shutdown::Both));
            });
        }
    });
    door
}

fn programs(ztunnel: Option<&str>) -> Programs {
    Programs { adit: env!("CARGO_BIN_EXE_adit").into(), ztunnel: ztunnel.map(PathBuf::from) }
}

#[test]
fn peers_are_chosen_by_name_and_ztunnel_by_its_program() {
    let chosen = |names: &[&str], programs: &Programs| {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        recipe::chosen(&names, programs).map_err(|error| error.to_string())
    };
    let without = chosen(&[], &programs(None)).unwrap();
    assert!(without.iter().all(|name| !name.contains("ztunnel") && !name.contains("captured")), "{without:?}");
    let with = chosen(&[], &programs(Some("/nowhere/ztunnel"))).unwrap();
    assert_eq!(with[without.len()..], ["ztunnel", "ztunnel-tunnel", "adit-self-tunnel"]);
    assert!(chosen(&["ztunel"], &programs(None)).unwrap_err().contains("ztunnel-tunnel"));
    for (given, reason) in [(None, "--ztunnel"), (Some("/nowhere/ztunnel"), "does not exist")] {
        let found = recipe::find("ztunnel", &programs(given)).unwrap();
        assert!(matches!(&found, Found::Missing(missing) if missing.contains(reason)), "{found:?}");
    }
}

#[test]
fn ztunnel_forges_its_identity_for_the_pair_only() {
    for (peer, protocol, forges) in [("ztunnel", "TCP", false), ("ztunnel-tunnel", "HBONE", true)] {
        // Any program that exists; it is asked for its version and not run.
        let found = recipe::find(peer, &programs(Some("/bin/true"))).unwrap();
        let Found::Proxy { recipe, .. } = found else { panic!("{found:?}") };
        let [part] = &recipe.parts[..] else { panic!("{recipe:?}") };
        assert_eq!(part.environment.iter().any(|(name, _)| *name == "FAKE_CA"), forges, "{peer}");
        assert!(recipe.files[0].1.contains(&format!("protocol: {protocol},")), "{peer}: {:?}", recipe.files);
    }
}

#[test]
fn workers_and_family_are_in_the_name() {
    for (peer, workers, family) in
        [("adit", 1, "adit"), ("adit-2", 2, "adit"), ("adit-2-tunnel", 2, "adit"), ("haproxy-captured", 1, "haproxy")]
    {
        assert_eq!((recipe::workers(peer), recipe::family(peer)), (workers, family), "{peer}");
    }
}

#[test]
fn adit_takes_the_configs_that_the_bench_gives_it() {
    let programs = programs(None);
    for (peer, parts) in [
        ("adit", 1),
        ("adit-2", 1),
        ("adit-tproxy", 1),
        ("adit-connect", 1),
        ("adit-tunnel", 2),
        ("adit-self-tunnel", 1),
        ("adit-connect-tunnel", 1),
        ("adit-2-tunnel", 2),
    ] {
        let found = recipe::find(peer, &programs).unwrap();
        let Found::Proxy { recipe, .. } = found else { panic!("{found:?}") };
        assert_eq!(recipe.parts.len(), parts, "{peer}");
        let folder = tempfile::tempdir().unwrap();
        for (name, contents) in &recipe.files {
            std::fs::write(folder.path().join(name), contents).unwrap();
        }
        if let Some(issuer) = &recipe.issuer {
            recipe::tunnel::issue(issuer, folder.path()).unwrap();
        }
        for part in &recipe.parts {
            let file = folder.path().join("config.yaml");
            std::fs::write(&file, part.config.as_ref().unwrap()).unwrap();
            let sources = adit::config::Sources { files: vec![file], ..adit::config::Sources::default() };
            let settings = adit::config::load(&sources).unwrap_or_else(|problems| panic!("{peer}: {problems:?}"));
            assert!(!settings.log.access, "the access log is off, as it is for the others");
            let workers = if peer.contains("-2") { 2 } else { 1 };
            assert_eq!(settings.workers, Workers::Fixed(NonZeroUsize::new(workers).unwrap()), "{peer}");
        }
    }
}
