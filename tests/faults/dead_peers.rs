//! Peers that die, fall silent, stop reading or end by halves: every connection ends when it should, and none before.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use adit::net::redirect::Kind;
use rustix::process::{Signal, kill_process};

use crate::kit::door::talk;
use crate::kit::{Door, Family, LIMIT, isolated, isolated_within, until};
use crate::world::{Pair, SLACK, World, asking_while, expect_eof, expect_reset, half_close, let_pass, read_out, reset};

/// The shortest that `check` lets pass.
const SHORT: &str = "keepalive: { idle: 1s, interval: 1s, probes: 1, userTimeout: 2s }\n";
const USER_TIMEOUT: Duration = Duration::from_secs(2);
/// For tests that go through several worlds.
const LONG: Duration = Duration::from_secs(180);
const PORT: u16 = 8080;

/// Both ways through the daemon, with a client, a server, and whose host can be cut off: the server's when outbound, the
/// client's when inbound.
struct Ways {
    world: World,
    family: Family,
    server: Door,
    application: Door,
}

impl Ways {
    fn new(settings: &str) -> Self {
        Self::by(Kind::Redirect, Family::V4, settings)
    }

    fn by(kind: Kind, family: Family, settings: &str) -> Self {
        let world = World::captured_by(kind, settings);
        let server = Door::open(&world.lab.server, PORT);
        let application = Door::open(&world.lab.adit, PORT);
        Self { world, family, server, application }
    }

    fn outbound(&self) -> Pair {
        let client = self.world.dial_out_by(self.family, PORT).expect("the capture door accepts");
        Pair { client, server: self.server.accept().stream }
    }

    fn inbound(&self) -> Pair {
        let client = self.world.dial_in_by(self.family, PORT).expect("the capture door accepts");
        Pair { client, server: self.application.accept().stream }
    }

    /// Cuts off the remote end of each way.
    fn cut_off(&self) {
        self.world.lab.server.black_hole("meta l4proto tcp");
        self.world.lab.client.black_hole("meta l4proto tcp");
    }

    /// Until every connection is so old.
    fn wait_age(&self, age: Duration) {
        until(LIMIT, "the connections to be old enough", || {
            let list = self.world.json(&["connections", "--json"]);
            let ages = list["connections"].as_array()?.iter().map(|connection| connection["ageMs"].as_u64());
            ages.flatten().all(|ms| u128::from(ms) >= age.as_millis()).then_some(())
        });
    }
}

/// By each kind of capture and for each family, however the sockets came about.
const EVERY_WAY: [(Kind, Family); 4] = [
    (Kind::Redirect, Family::V4),
    (Kind::Redirect, Family::V6),
    (Kind::Tproxy, Family::V4),
    (Kind::Tproxy, Family::V6),
];

#[test]
fn a_dead_peer_with_data_outstanding_ends_within_the_user_timeout() {
    isolated_within(LONG, || {
        for (kind, family) in EVERY_WAY {
            let ways = Ways::by(kind, family, SHORT);
            let (mut old_out, mut old_in) = (ways.outbound(), ways.inbound());
            old_out.talk();
            old_in.talk();
            // By then the upstream sockets have their keepalive values; younger connections do not.
            ways.wait_age(Duration::from_millis(1500));
            let (mut new_out, mut new_in) = (ways.outbound(), ways.inbound());
            new_out.talk();
            new_in.talk();
            ways.cut_off();
            let start = Instant::now();
            for pair in [&mut old_out, &mut new_out] {
                pair.client.write_all(b"never to arrive").expect("adit takes it");
            }
            for pair in [&mut old_in, &mut new_in] {
                pair.server.write_all(b"never to arrive").expect("adit takes it");
            }
            let limit = USER_TIMEOUT + Duration::from_secs(1) + SLACK;
            for pair in [&old_out, &new_out] {
                assert_eq!(ways.world.closing(&pair.client, limit).reason(), "upstream_user_timeout");
            }
            for pair in [&old_in, &new_in] {
                assert_eq!(ways.world.closing(&pair.client, limit).reason(), "downstream_user_timeout");
            }
            assert!(start.elapsed() < limit, "{:?}", start.elapsed());
            // The ends that live are told so by a reset.
            for stream in [&mut old_out.client, &mut new_out.client, &mut old_in.server, &mut new_in.server] {
                expect_reset(stream, LIMIT);
            }
            let mut world = ways.world;
            world.adit.expect_log("upstream_user_timeout");
            world.adit.expect_log("downstream_user_timeout");
            world.adit.stop();
        }
    });
}

#[test]
fn an_idle_dead_peer_is_found_by_keepalive() {
    isolated(|| {
        let ways = Ways::new(SHORT);
        let (mut outbound, mut inbound) = (ways.outbound(), ways.inbound());
        outbound.talk();
        inbound.talk();
        ways.cut_off();
        // Up to a second and a tick until the upstream socket has its values, then idle, interval, and one interval more
        // to see that nobody answers.
        let limit = Duration::from_millis(1250 + 3000) + SLACK;
        assert_eq!(ways.world.closing(&outbound.client, limit).reason(), "upstream_user_timeout");
        assert_eq!(ways.world.closing(&inbound.client, limit).reason(), "downstream_user_timeout");
        expect_reset(&mut outbound.client, LIMIT);
        expect_reset(&mut inbound.server, LIMIT);
    });
}

/// Idle peers that do answer stay, however long.
#[test]
fn an_idle_living_peer_stays() {
    isolated(|| {
        let ways = Ways::new(SHORT);
        let mut pairs = [ways.outbound(), ways.inbound()];
        let_pass(USER_TIMEOUT * 3);
        pairs.iter_mut().for_each(Pair::talk);
        drop(pairs);
        ways.world.adit.stop();
    });
}

#[test]
fn a_reader_that_pauses_for_three_user_timeouts_loses_nothing() {
    isolated_within(LONG, || {
        let copied = EVERY_WAY.map(|way| (way, "off")).into_iter().take(1);
        for ((kind, family), zero_copy) in EVERY_WAY.map(|way| (way, "auto")).into_iter().chain(copied) {
            let ways = Ways::by(kind, family, &format!("{SHORT}relay: {{ zeroCopy: {zero_copy} }}\n"));
            let mut up = ways.outbound();
            let mut down = ways.outbound();
            let mut inbound = ways.inbound();
            for pair in [&mut up, &mut down, &mut inbound] {
                pair.talk();
            }
            thread::scope(|scope| {
                for (from, into) in
                    [(up.client, up.server), (down.server, down.client), (inbound.server, inbound.client)]
                {
                    scope.spawn(move || pause_and_read(from, into));
                }
            });
            ways.world.adit.stop();
        }
    });
}

/// Sends 16 MiB, which is more than all buffers between hold, into a socket that is not read for a while.
fn pause_and_read(mut from: TcpStream, mut into: TcpStream) {
    const BYTES: usize = 16 << 20;
    let sent: Vec<u8> = (0..BYTES).map(|index| u8::try_from(index / 7 % 251).expect("less")).collect();
    thread::scope(|scope| {
        scope.spawn(|| {
            from.write_all(&sent).expect("nobody gives up");
            half_close(&from);
            expect_eof(&mut from);
        });
        let_pass(USER_TIMEOUT * 3);
        let got = read_out(&mut into, LIMIT).expect("a clean end");
        assert!(got == sent, "{} of {BYTES} bytes, or other ones", got.len());
        half_close(&into);
    });
}

/// What a pause is over, and what waits for its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Paused {
    /// Both halves stay open until all has been read.
    Open,
    /// The sender has ended its half.
    HalfOpen,
    /// Both have ended, and adit has closed its sockets.
    Ended,
}

/// Nothing that adit writes blocks here: what is not read yet is the kernel's, which would give the reader up.
#[test]
fn a_pause_over_what_fits_into_the_kernels_buffer_loses_nothing() {
    isolated(|| {
        let ways = Ways::new(SHORT);
        thread::scope(|scope| {
            for bytes in [100_000, 300_000] {
                for paused in [Paused::Open, Paused::HalfOpen, Paused::Ended] {
                    // How much the kernel takes at once is its own matter; so little it always takes.
                    let bytes = if paused == Paused::Ended { bytes / 4 } else { bytes };
                    for (way, up) in [
                        (Ways::outbound as fn(&Ways) -> Pair, true),
                        (Ways::outbound, false),
                        (Ways::inbound, true),
                        (Ways::inbound, false),
                    ] {
                        let (world, pair) = (&ways.world, way(&ways));
                        scope.spawn(move || pause_over(world, pair, up, bytes, paused));
                    }
                }
            }
        });
        ways.world.adit.stop();
    });
}

fn pause_over(world: &World, pair: Pair, up: bool, bytes: usize, paused: Paused) {
    let port = pair.client.local_addr().expect("an address").port();
    let (mut from, mut into) = if up { (pair.client, pair.server) } else { (pair.server, pair.client) };
    let case = format!("up {up}, {bytes} bytes, {paused:?}");
    socket2::SockRef::from(&into).set_recv_buffer_size(4096).expect("SO_RCVBUF");
    let sent: Vec<u8> = (0..bytes).map(|index| u8::try_from(index / 7 % 251).expect("less")).collect();
    from.write_all(&sent).expect("adit takes it");
    if paused != Paused::Open {
        half_close(&from);
    }
    if paused == Paused::Ended {
        half_close(&into);
        expect_eof(&mut from);
        assert_eq!(world.closing_of(port, LIMIT).reason(), "finished", "{case}");
    }
    let_pass(USER_TIMEOUT * 3);
    let mut got = vec![0; bytes];
    into.set_read_timeout(Some(LIMIT)).expect("SO_RCVTIMEO");
    into.read_exact(&mut got).unwrap_or_else(|error| panic!("{case}: {error}"));
    assert!(got == sent, "{case}: other bytes");
    match paused {
        Paused::Open => talk(&mut from, &mut into),
        Paused::HalfOpen => {
            expect_eof(&mut into);
            half_close(&into);
            expect_eof(&mut from);
        }
        Paused::Ended => expect_eof(&mut into),
    }
}

#[test]
fn a_half_closed_and_silent_connection_is_cut_at_the_linger() {
    isolated(|| {
        let ways = Ways::new("relay: { halfCloseLinger: 2s }\n");
        thread::scope(|scope| {
            for (mut pair, from_client) in
                [(ways.outbound(), true), (ways.outbound(), false), (ways.inbound(), true), (ways.inbound(), false)]
            {
                let world = &ways.world;
                scope.spawn(move || {
                    pair.talk();
                    let (ended, silent) = if from_client {
                        (&mut pair.client, &mut pair.server)
                    } else {
                        (&mut pair.server, &mut pair.client)
                    };
                    half_close(ended);
                    let start = Instant::now();
                    expect_eof(silent);
                    expect_reset(ended, LIMIT);
                    let took = start.elapsed();
                    assert!(took >= Duration::from_millis(1500), "{took:?}");
                    assert!(took <= Duration::from_millis(2500) + SLACK, "{took:?}");
                    // The silent end meets it when it writes.
                    let _first_write = silent.write_all(b"too late");
                    until(LIMIT, "the silent end to see the reset", || silent.write_all(b"too late").err());
                    assert_eq!(world.closing(&pair.client, LIMIT).reason(), "half_close_linger");
                });
            }
        });
    });
}

/// Whatever wakes a worker more often than it sweeps must not keep it from sweeping.
#[test]
fn questions_without_pause_do_not_put_the_linger_off() {
    isolated(|| {
        let ways = Ways::new("relay: { halfCloseLinger: 2s }\n");
        let mut pair = ways.outbound();
        pair.talk();
        half_close(&pair.client);
        let asking = asking_while(&ways.world, || {
            let start = Instant::now();
            expect_reset(&mut pair.client, Duration::from_millis(2500) + SLACK);
            assert!(start.elapsed() >= Duration::from_millis(1500), "{:?}", start.elapsed());
        });
        assert!(asking > 20, "{asking} questions: too few to wake the worker more often than it sweeps");
        ways.world.adit.stop();
    });
}

#[test]
fn a_half_closed_and_trickling_connection_completes() {
    isolated(|| {
        let ways = Ways::new("relay: { halfCloseLinger: 3s }\n");
        thread::scope(|scope| {
            for (pair, from_client) in [(ways.outbound(), true), (ways.outbound(), false), (ways.inbound(), true)] {
                let world = &ways.world;
                scope.spawn(move || {
                    let (mut ended, mut trickling, client) = if from_client {
                        (pair.client.try_clone().expect("a clone"), pair.server, pair.client)
                    } else {
                        (pair.server, pair.client.try_clone().expect("a clone"), pair.client)
                    };
                    half_close(&ended);
                    expect_eof(&mut trickling);
                    // Four linger periods in all, never one of them silent, even if the machine is for two seconds.
                    for _ in 0..20 {
                        let_pass(Duration::from_millis(600));
                        trickling.write_all(b".").expect("the connection lives");
                    }
                    half_close(&trickling);
                    assert_eq!(read_out(&mut ended, LIMIT).expect("a clean end"), [b'.'; 20]);
                    assert_eq!(world.closing(&client, LIMIT).reason(), "finished");
                });
            }
        });
    });
}

/// Nothing is being written when it comes: only an error event tells.
#[test]
fn a_half_closed_idle_relay_notices_a_reset_at_once() {
    isolated(|| {
        let ways = Ways::new("");
        for (by_client, after_own_fin) in [(true, true), (true, false), (false, true), (false, false)] {
            for mut pair in [ways.outbound(), ways.inbound()] {
                pair.talk();
                let port = pair.client.local_addr().expect("an address").port();
                let (going, mut staying) =
                    if by_client { (pair.client, pair.server) } else { (pair.server, pair.client) };
                if after_own_fin {
                    half_close(&going);
                    expect_eof(&mut staying);
                } else {
                    half_close(&staying);
                    let mut end = going.try_clone().expect("a clone");
                    expect_eof(&mut end);
                }
                let start = Instant::now();
                reset(going);
                let reason = ways.world.closing_of(port, SLACK).reason().to_owned();
                assert_eq!(reason, if by_client { "downstream_reset" } else { "upstream_reset" });
                assert!(start.elapsed() <= SLACK, "{:?}", start.elapsed());
                if after_own_fin {
                    // It ended cleanly before: reading it again is an end, writing to it is not.
                    until(LIMIT, "the reset to be passed on", || staying.write_all(b"x").err());
                } else {
                    expect_reset(&mut staying, LIMIT);
                }
            }
        }
    });
}

/// Demand A6: the kernel forgets a redirected connection that is half closed, and what its ends still send is lost.
#[test]
fn a_flow_that_connection_tracking_swallows_ends() {
    isolated(|| {
        // By the linger, and where that is long, by keepalive.
        for (settings, limit, reason) in [
            ("relay: { halfCloseLinger: 2s }\n", Duration::from_millis(2500), "half_close_linger"),
            (SHORT, Duration::from_millis(1250 + 3000), "downstream_user_timeout"),
        ] {
            let ways = Ways::new(settings);
            let before = ways.world.sockets();
            for way in [Ways::outbound, Ways::inbound] {
                let mut pair = way(&ways);
                pair.talk();
                let port = swallow(&ways, pair);
                assert_eq!(ways.world.closing_of(port, limit + SLACK).reason(), reason);
                until(limit + SLACK, "both sockets to be gone", || (ways.world.sockets() <= before).then_some(()));
                ways.world.lab.adit.heal();
            }
        }
    });
}

/// The server ends its half, the kernel forgets the flow, and the client's FIN never arrives. Returns the client's port.
fn swallow(ways: &Ways, mut pair: Pair) -> u16 {
    half_close(&pair.server);
    expect_eof(&mut pair.client);
    let port = pair.client.local_addr().expect("an address").port();
    let host = &ways.world.lab.adit;
    host.black_hole(&format!("tcp sport {port} drop\n tcp dport {port}"));
    host.output("conntrack", &["-D", "-p", "tcp", "--orig-port-src", &port.to_string()]);
    drop(pair.client);
    pair.server.set_read_timeout(Some(Duration::from_millis(100))).expect("SO_RCVTIMEO");
    assert!(pair.server.read(&mut [0]).is_err(), "the end did arrive");
    port
}

/// Demand A7.
#[test]
fn a_swallowed_flow_does_not_hold_a_drain_up() {
    isolated(|| {
        let mut ways = Ways::new("shutdown: { deadline: 2s }\n");
        for mut pair in [ways.outbound(), ways.inbound()] {
            pair.talk();
            // The server's end is held open by nobody, the daemon's by the flow that is lost.
            swallow(&ways, pair);
        }
        let start = Instant::now();
        kill_process(ways.world.pid(), Signal::TERM).expect("a running daemon");
        let status = ways.world.adit.wait(Duration::from_secs(3) + SLACK);
        assert!(status.success(), "{status}");
        assert!(start.elapsed() >= Duration::from_millis(1500), "{:?}", start.elapsed());
    });
}
