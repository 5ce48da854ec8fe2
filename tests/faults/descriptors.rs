//! Running out of descriptors, healing, and a limit so high that nothing may be allocated by it.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::kit::{Door, LIMIT, isolated, until};
use crate::world::{SLACK, World, captured, let_pass, request, reset, start_after};

const PORT: u16 = 8080;
const NO_LIMIT: &str = "limits: { connections: off }\n";

/// More connections than 256 descriptors carry, each waiting or carried.
fn flood(world: &World) -> Vec<TcpStream> {
    flood_of(world, 200)
}

fn flood_of(world: &World, count: usize) -> Vec<TcpStream> {
    (0..count).map(|_| world.dial_out(PORT).expect("the kernel completes it")).collect()
}

#[test]
fn exhaustion_is_named_quiet_and_cheap_and_heals() {
    isolated(|| {
        let world = World::after("ulimit -n 256", NO_LIMIT);
        let door = Door::open(&world.lab.server, PORT);
        assert_eq!(world.metric("adit_fd_limit"), 256.0);
        let mut first = world.outbound(&door, PORT);
        first.talk();
        let begun = Instant::now();
        let flood = flood(&world);
        world.wait_not_ready("descriptors");
        world.adit.wait_log("cannot accept");
        assert!(world.descriptors().len() <= 256);

        // For longer than the time in which one line is allowed.
        let window = Duration::from_secs(6);
        let lines = || world.adit.log().iter().filter(|line| line.contains("cannot accept")).count();
        let (cpu_before, start) = (world.cpu_time(), Instant::now());
        let_pass(window);
        let cpu = world.cpu_time() - cpu_before;
        let share = cpu.as_secs_f64() / start.elapsed().as_secs_f64();
        assert!(share < 0.05, "{share:.3} of a core while there is nothing to do");
        let said = lines();
        let allowed = 1 + usize::try_from(begun.elapsed().as_secs() / 5).expect("few");
        assert!(said <= allowed, "{said} lines in {:?}", begun.elapsed());

        // Everything else works: what is carried, the operator's side, the probes.
        first.talk();
        assert_eq!(request(&world.lab.adit, 15021, "GET", "/healthz/live").expect("an answer").0, 200);
        assert!(world.metric("adit_fd_open") > 200.0);
        assert_eq!(world.json(&["status", "--json"])["ready"], false);
        assert!(world.cli(&["connections"]).status.success());
        assert!(world.cli(&["reload"]).status.success());

        // First those who still wait, so that some have gone before they can be let in.
        flood.into_iter().rev().for_each(reset);
        // With nobody connecting: that nobody does is what not being ready leads to.
        world.wait_ready_again(Duration::from_secs(1) + SLACK);
        // At the old one some of the flood may still arrive.
        let other = Door::open(&world.lab.server, PORT + 1);
        world.outbound(&other, PORT + 1).talk();
        first.talk();
        let mut world = world;
        world.adit.expect_log("cannot accept");
        // Those who gave up just as they were let in.
        world.adit.expect_log("downstream_gone");
        drop(first);
        world.adit.stop();
    });
}

/// Each worker has a runtime with descriptors of its own, which are not the data path's and not the reserve either.
#[test]
fn the_reserve_is_there_with_many_workers() {
    isolated(|| {
        let world = World::after("ulimit -n 512", &format!("workers: 32\n{NO_LIMIT}"));
        let _door = Door::open(&world.lab.server, PORT);
        let flood = flood_of(&world, 300);
        world.wait_not_ready("descriptors");
        let_pass(Duration::from_secs(1));
        let open = world.descriptors().len();
        assert!(open <= 512 - 24, "{open} of 512 are open");
        assert!(world.cli(&["connections"]).status.success());
        assert!(world.metric("adit_fd_open") > 300.0);
        drop(flood);
    });
}

/// What waits in the queue is carried as soon as there is room, with room for only some.
#[test]
fn who_waits_while_descriptors_are_used_up_is_carried_after() {
    isolated(|| {
        let world = World::after("ulimit -n 128", NO_LIMIT);
        let door = Door::open(&world.lab.server, PORT);
        let mut carried = Vec::new();
        // Until one is not carried: nobody reaches the server.
        let mut waiting = loop {
            let client = world.dial_out(PORT).expect("the kernel completes it");
            let reached = until(LIMIT, "it to be carried or to wait for descriptors", || {
                let wanting = || world.readiness().1.contains("\"descriptors\"");
                // The last one to be carried may be on its way when the descriptors are used up.
                let waits = || wanting() && !reaches(&door, Duration::from_millis(300));
                if !door.is_quiet() { Some(true) } else { waits().then_some(false) }
            });
            if !reached {
                break client;
            }
            carried.push((client, door.accept().stream));
            assert!(carried.len() < 64, "128 descriptors carry less");
        };
        world.wait_not_ready("descriptors");
        carried.truncate(1);
        let mut server = until(Duration::from_secs(1) + SLACK, "the waiting one to be carried", || {
            (!door.is_quiet()).then(|| door.accept().stream)
        });
        crate::kit::door::talk(&mut waiting, &mut server);
        world.wait_ready_again(LIMIT);
    });
}

fn reaches(door: &Door, within: Duration) -> bool {
    let start = Instant::now();
    while door.is_quiet() {
        if start.elapsed() > within {
            return false;
        }
        let_pass(Duration::from_millis(5));
    }
    true
}

/// As many as the machine lets a test have; a billion where it may raise its own limit.
#[test]
fn a_huge_limit_of_descriptors_costs_no_memory() {
    isolated(|| {
        let lab = captured();
        let raise = "ulimit -H -n 1000000000 2>/dev/null || ulimit -n $(ulimit -H -n)";
        let mut adit = start_after(raise, &lab.adit, "");
        adit.wait_ready(&lab.adit);
        let world = World { lab, adit };
        assert_eq!(world.metric("adit_fd_limit"), hard_limit(&world));
        let resident = world.resident();
        assert!(resident < 40 << 20, "{} MiB", resident >> 20);
        world.adit.stop();
    });
}

/// The hard limit that the daemon runs under.
fn hard_limit(world: &World) -> f64 {
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", world.pid().as_raw_pid())).expect("our daemon");
    let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("it has one");
    line.split_whitespace().nth(4).expect("the hard limit").parse().expect("a number")
}
