//! Policies that change while connections are open: very many of them, and while the daemon drains.

use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};

use crate::kit::isolate::measured;
use crate::kit::{Door, Family, LIMIT, isolated, isolated_within, until};
use crate::world::{Pair, World, expect_reset};

const PORT: u16 = 8080;
const WEB: &str = "workload: { name: web, namespace: test }\n";
const WORKLOADS: &str = "workloads:\n- { uid: web, name: web, namespace: test, workloadIps: [10.77.0.2, 'fd77::2'] }\n";
/// All clients are one host; what tells them apart is the family by which they come.
const DENY_V4: &str = "policies:\n- { name: no-v4, namespace: test, scope: Namespace, action: Deny, dryRun: false, \
                       rules: [[[{ sourceIps: [10.77.0.1/32] }]]] }\n";

fn inbound(world: &World, door: &Door, family: Family) -> Pair {
    let client = world.dial_in_by(family, PORT).expect("the capture door accepts");
    Pair { client, server: door.accept().stream }
}

/// Puts other policies in force.
fn publish(world: &World, policies: &str) {
    world.adit.replace("mesh.yaml", &format!("{WORKLOADS}{policies}"));
    let report = world.json(&["reload", "--json"]);
    assert_ne!(report["mesh"]["result"], "rejected", "{report}");
}

/// When these lines were logged, in order.
fn logged(world: &World, text: &str) -> Vec<SystemTime> {
    let log = world.adit.log();
    let times = log.iter().filter(|line| line.contains(text)).filter_map(|line| line.split('\t').next());
    times.map(|time| humantime::parse_rfc3339(time).expect("a time")).collect()
}

/// Whether it has been reset; nothing else may come.
fn is_reset(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0]) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => false,
        Err(error) if error.kind() == ErrorKind::ConnectionReset => true,
        other => panic!("a reset was due, not {other:?}"),
    }
}

/// Two thousand connections, half of which a new policy denies: those are reset, soon, and the others notice nothing. How
/// long it took, from the moment at which the state is in force to the last record, is printed: `docs/policies.md` has it.
#[test]
fn thousands_are_judged_again_at_once() {
    const EACH: usize = 1000;
    /// A second is promised; a debug build on a machine that others use may take longer.
    const WITHIN: Duration = Duration::from_secs(5);
    isolated_within(Duration::from_secs(180), || {
        // Four descriptors a connection, half of them here and half of them the daemon's, which inherits the limit.
        let maximum = getrlimit(Resource::Nofile).maximum;
        assert!(maximum.is_none_or(|most| most >= 6_000), "this test needs 6,000 descriptors");
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("our own limit");
        let mut world = World::with_mesh(WEB, WORKLOADS);
        world.adit.expect_log("policy_changed");
        let door = Door::open(&world.lab.adit, PORT);
        let open = |family| -> Vec<Pair> { (0..EACH).map(|_| inbound(&world, &door, family)).collect() };
        let (mut denied, mut spared) = (open(Family::V4), open(Family::V6));
        denied.iter_mut().chain(&mut spared).for_each(Pair::talk);
        assert!(world.metric("adit_connections_open{listener=\"inbound\"}") >= 2.0 * EACH as f64 - 0.5);
        for Pair { client, server } in &denied {
            client.set_nonblocking(true).expect("O_NONBLOCK");
            server.set_nonblocking(true).expect("O_NONBLOCK");
        }

        let start = Instant::now();
        publish(&world, DENY_V4);
        let mut left: Vec<TcpStream> = denied.into_iter().flat_map(|pair| [pair.client, pair.server]).collect();
        until(WITHIN, "all that are denied to be reset", || {
            left.retain_mut(|stream| !is_reset(stream));
            left.is_empty().then_some(())
        });
        let took = start.elapsed();
        until(LIMIT, "a record of each", || {
            (logged(&world, "close_reason=\"policy_changed\"").len() == EACH).then_some(())
        });
        let in_force = logged(&world, "mesh state applied").pop().expect("the second state");
        let last = logged(&world, "close_reason=\"policy_changed\"").into_iter().max().expect("a record");
        let judged = last.duration_since(in_force).expect("afterwards");
        measured(&format!(
            "{EACH} of {} connections cut {judged:?} after the state was in force ({took:?} with reading it)",
            2 * EACH
        ));
        assert!(judged < WITHIN, "{judged:?}");
        spared.iter_mut().for_each(Pair::talk);
        world.wait_metric("adit_connections_open{listener=\"inbound\"}", EACH as f64);
        drop((spared, door));
        world.adit.stop();
    });
}

/// The doors are closed and nobody new is let in; who is still there is judged all the same.
#[test]
fn a_change_during_a_drain_cuts_what_it_denies() {
    isolated(|| {
        let mut world = World::with_mesh(&format!("{WEB}shutdown: {{ deadline: 80s }}\n"), WORKLOADS);
        let door = Door::open(&world.lab.adit, PORT);
        let [mut denied, mut spared] = Family::BOTH.map(|family| inbound(&world, &door, family));
        denied.talk();
        spared.talk();
        kill_process(world.pid(), Signal::TERM).expect("a running daemon");
        world.wait_not_ready("drain");
        until(LIMIT, "the inbound door to be closed", || {
            let refused = world.dial_in(PORT).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused);
            while !door.is_quiet() {
                drop(door.accept());
            }
            refused.then_some(())
        });
        denied.talk();
        publish(&world, DENY_V4);
        expect_reset(&mut denied.client, LIMIT);
        expect_reset(&mut denied.server, LIMIT);
        let closing = world.closing(&denied.client, LIMIT);
        assert_eq!((closing.reason(), closing.field("policy")), ("policy_changed", "test/no-v4"));
        spared.talk();
        assert_eq!(world.readiness().0, 503, "it still drains");
        drop(spared);
        let status = world.adit.wait(LIMIT);
        assert!(status.success(), "{status}");
        let log = world.adit.log();
        let line = log.iter().find(|line| line.contains("\tdrained\t")).expect("an exit line");
        assert!(line.contains("cut=0"), "what policy ended is not what the drain cut: {line}");
    });
}
