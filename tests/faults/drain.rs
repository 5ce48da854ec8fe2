//! The end of the process, stage by stage, seen from its peers.

use std::io::{self, ErrorKind, Read};
use std::net::TcpStream;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};

use crate::kit::{Door, LIMIT, isolated, until};
use crate::world::{Pair, SLACK, World, asking_while, expect_reset, half_close, let_pass, request};

const PORT: u16 = 8080;

fn ask_by_signal(world: &World) {
    kill_process(world.pid(), Signal::TERM).expect("a running daemon");
}

fn ask_by_command(world: &World) {
    assert!(world.cli(&["drain"]).status.success());
}

/// As a job's main container does when it is done.
fn ask_by_request(world: &World) {
    let (status, body) = request(&world.lab.adit, 15000, "POST", "/quitquitquit").expect("an answer");
    assert_eq!(status, 200, "{body}");
}

const ASK: [fn(&World); 3] = [ask_by_signal, ask_by_command, ask_by_request];

fn terminate(world: &World) -> Instant {
    let start = Instant::now();
    ask_by_signal(world);
    start
}

fn is_refused(result: &io::Result<TcpStream>) -> bool {
    result.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// Waits for the end, which must be clean, and returns what the exit line says.
fn exit_line(world: &mut World, limit: Duration) -> String {
    let status: ExitStatus = world.adit.wait(limit);
    assert_eq!(status.code(), Some(0), "{}", world.adit.log().join("\n"));
    let log = world.adit.log();
    log.into_iter().find(|line| line.contains("\tdrained\t")).expect("an exit line")
}

/// Long, because all of the first stage must fit into it on a busy machine.
const PRE_DRAIN: Duration = Duration::from_secs(8);

#[test]
fn the_stages_come_in_order() {
    isolated(|| {
        let mut world = World::new("shutdown: { preDrain: 8s, deadline: 60s }\n");
        let server = Door::open(&world.lab.server, PORT);
        let application = Door::open(&world.lab.adit, PORT);
        let mut inbound = world.inbound(&application, PORT);
        let mut outbound = world.outbound(&server, PORT);
        let start = terminate(&world);
        // 1: not ready, but accepting.
        world.wait_not_ready("drain");
        let mut late = world.inbound(&application, PORT);
        world.outbound(&server, PORT).talk();
        assert!(start.elapsed() < PRE_DRAIN, "too slow a machine for this test: {:?}", start.elapsed());
        // 2: inbound refuses; an application that is finishing can still talk to others.
        until(PRE_DRAIN + LIMIT, "the inbound door to be closed", || {
            let dialled = world.dial_in(PORT);
            while !application.is_quiet() {
                drop(application.accept());
            }
            is_refused(&dialled).then_some(())
        });
        assert!(start.elapsed() >= PRE_DRAIN, "{:?}", start.elapsed());
        world.outbound(&server, PORT).talk();
        for pair in [&mut inbound, &mut late, &mut outbound] {
            pair.talk();
        }
        drop(late);
        world.outbound(&server, PORT).talk();
        assert_eq!(world.readiness().0, 503);
        // 3: once inbound is empty, outbound refuses too.
        drop(inbound);
        until(LIMIT, "the outbound door to be closed", || {
            let dialled = world.dial_out(PORT);
            while !server.is_quiet() {
                drop(server.accept());
            }
            is_refused(&dialled).then_some(())
        });
        outbound.talk();
        // 4: what is open finishes, and that is the end.
        drop(outbound);
        let line = exit_line(&mut world, LIMIT);
        assert!(line.contains("connections=2 cut=0"), "{line}");
    });
}

#[test]
fn what_is_left_is_reset_by_the_deadline_and_not_all_at_once() {
    isolated(|| {
        const COUNT: usize = 60;
        let mut world = World::new("shutdown: { deadline: 15s }\n");
        let server = Door::open(&world.lab.server, PORT);
        let application = Door::open(&world.lab.adit, PORT);
        let mut pairs: Vec<Pair> = (0..COUNT / 2).map(|_| world.outbound(&server, PORT)).collect();
        pairs.extend((0..COUNT / 2).map(|_| world.inbound(&application, PORT)));
        let start = terminate(&world);
        for pair in &pairs {
            pair.client.set_nonblocking(true).expect("non-blocking");
        }
        let mut ends: Vec<Option<Duration>> = vec![None; COUNT];
        until(Duration::from_secs(16) + SLACK, "all to be reset", || {
            for (pair, end) in pairs.iter_mut().zip(&mut ends).filter(|(_, end)| end.is_none()) {
                match pair.client.read(&mut [0]) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) if error.kind() == ErrorKind::ConnectionReset => *end = Some(start.elapsed()),
                    other => panic!("a reset was due, not {other:?}"),
                }
            }
            ends.iter().all(Option::is_some).then_some(())
        });
        let line = exit_line(&mut world, SLACK);
        assert!(line.contains(&format!("connections={COUNT} cut={COUNT}")), "{line}");
        assert!(start.elapsed() <= Duration::from_secs(16) + SLACK, "{:?}", start.elapsed());

        let mut ends: Vec<Duration> = ends.into_iter().flatten().collect();
        ends.sort();
        // The last fifth of the time, three seconds.
        assert!(ends[0] >= Duration::from_millis(11_900), "{ends:?}");
        // In no second more than twice what would be even.
        let within =
            |from: &Duration| ends.iter().filter(|end| (*from..*from + Duration::from_secs(1)).contains(*end)).count();
        let most = ends.iter().map(within).max().unwrap_or_default();
        assert!(most <= 2 * COUNT / 3, "{most} in a second: {ends:?}");
    });
}

#[test]
fn a_deadline_of_zero_cuts_at_once() {
    isolated(|| {
        let mut world = World::new("shutdown: { deadline: 0s }\n");
        let server = Door::open(&world.lab.server, PORT);
        let mut pairs = [world.outbound(&server, PORT), world.outbound(&server, PORT)];
        pairs.iter_mut().for_each(Pair::talk);
        let start = terminate(&world);
        let line = exit_line(&mut world, Duration::from_secs(1) + SLACK);
        assert!(start.elapsed() <= Duration::from_secs(1) + SLACK);
        assert!(line.contains("connections=2 cut=2"), "{line}");
        for Pair { client, server } in &mut pairs {
            expect_reset(client, LIMIT);
            expect_reset(server, LIMIT);
        }
    });
}

#[test]
fn without_a_deadline_the_last_connection_decides() {
    isolated(|| {
        let mut world = World::new("shutdown: { deadline: off }\n");
        let server = Door::open(&world.lab.server, PORT);
        let mut pairs = vec![world.outbound(&server, PORT), world.outbound(&server, PORT)];
        terminate(&world);
        for _ in 0..6 {
            let_pass(Duration::from_millis(500));
            pairs.iter_mut().for_each(Pair::talk);
        }
        drop(pairs.pop());
        let_pass(Duration::from_millis(500));
        pairs.iter_mut().for_each(Pair::talk);
        drop(pairs);
        let line = exit_line(&mut world, Duration::from_secs(1) + SLACK);
        assert!(line.contains("connections=2 cut=0"), "{line}");
    });
}

#[test]
fn with_nothing_open_the_end_is_at_once_however_it_is_asked_for() {
    isolated(|| {
        let by_interrupt = |world: &World| kill_process(world.pid(), Signal::INT).expect("a running daemon");
        for ask in ASK.into_iter().chain([by_interrupt as fn(&World)]) {
            let mut world = World::new("");
            ask(&world);
            let line = exit_line(&mut world, Duration::from_secs(1) + SLACK);
            assert!(line.contains("connections=0 cut=0"), "{line}");
        }
    });
}

#[test]
fn every_way_to_ask_lets_connections_finish_and_a_second_signal_does_not() {
    isolated(|| {
        for (index, ask) in ASK.into_iter().enumerate() {
            let mut world = World::new("");
            let server = Door::open(&world.lab.server, PORT);
            let mut pair = world.outbound(&server, PORT);
            ask(&world);
            world.wait_not_ready("drain");
            assert_eq!(world.json(&["status", "--json"])["ready"], false);
            pair.talk();
            // Asking in other ways, and again, changes nothing; nor does the signal that comes after a request.
            for _ in 0..2 {
                ask_by_command(&world);
                ask_by_request(&world);
            }
            if index > 0 {
                ask_by_signal(&world);
            }
            let_pass(Duration::from_millis(500));
            pair.talk();
            let start = terminate(&world);
            world.adit.wait(Duration::from_secs(1) + SLACK);
            assert!(start.elapsed() < Duration::from_secs(1) + SLACK);
            expect_reset(&mut pair.client, LIMIT);
            assert!(world.adit.log().iter().any(|line| line.contains("exiting at once")));
        }
    });
}

/// Whoever was in the queue when the daemon was told to stop is carried, though its runtime had not heard of them yet.
#[test]
fn who_stands_in_the_queue_when_the_doors_close_is_let_in() {
    isolated(|| {
        const COUNT: usize = 50;
        let mut world = World::new("shutdown: { deadline: 20s }\n");
        let server = Door::open(&world.lab.server, PORT);
        kill_process(world.pid(), Signal::STOP).expect("a running daemon");
        let clients: Vec<TcpStream> =
            (0..COUNT).map(|_| world.dial_out(PORT).expect("the kernel completes it")).collect();
        ask_by_signal(&world);
        kill_process(world.pid(), Signal::CONT).expect("a stopped daemon");
        let servers: Vec<TcpStream> = (0..COUNT).map(|_| server.accept().stream).collect();
        for client in clients {
            half_close(&client);
            client.set_read_timeout(Some(LIMIT)).expect("SO_RCVTIMEO");
        }
        drop(servers);
        let line = exit_line(&mut world, LIMIT);
        assert!(line.contains("cut=0"), "{line}");
    });
}

/// The cuts come when they are due, however often the workers are woken.
#[test]
fn questions_without_pause_do_not_put_the_cuts_off() {
    isolated(|| {
        let mut world = World::new("shutdown: { deadline: 4s }\n");
        let server = Door::open(&world.lab.server, PORT);
        let mut pairs: Vec<Pair> = (0..10).map(|_| world.outbound(&server, PORT)).collect();
        let start = terminate(&world);
        asking_while(&world, || {
            for pair in &mut pairs {
                expect_reset(&mut pair.client, Duration::from_secs(5) + SLACK);
            }
        });
        assert!(start.elapsed() >= Duration::from_secs(3), "{:?}", start.elapsed());
        let line = exit_line(&mut world, Duration::from_secs(1) + SLACK);
        assert!(line.contains("connections=10 cut=10"), "{line}");
    });
}

/// Peers that never end hold nothing up.
#[test]
fn the_end_does_not_wait_for_peers_that_are_gone() {
    isolated(|| {
        let mut world = World::new("shutdown: { deadline: 1s }\n");
        let server = Door::open(&world.lab.server, PORT);
        let mut pairs: Vec<Pair> = (0..20).map(|_| world.outbound(&server, PORT)).collect();
        pairs.iter_mut().for_each(Pair::talk);
        world.lab.server.black_hole("meta l4proto tcp");
        for pair in &mut pairs {
            io::Write::write_all(&mut pair.client, &[0; 100_000]).expect("adit takes it");
        }
        let start = terminate(&world);
        let line = exit_line(&mut world, Duration::from_secs(2) + SLACK);
        assert!(start.elapsed() <= Duration::from_secs(2) + SLACK, "{:?}", start.elapsed());
        assert!(line.contains("cut=20"), "{line}");
    });
}
