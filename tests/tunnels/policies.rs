//! Who may reach a workload, by every way in, and what a change of that does to connections that are open.

use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::bytes::{End, end, random, read_to_end};
use crate::kit::door::{Dial, talk};
use crate::kit::wait::pause;
use crate::kit::{Adit, Door, Family, LIMIT, isolated, until};
use crate::pki::Leaf;
use crate::world::{
    APP, FAR, Ground, KINDS, NEAR, NO_RECORDS, Side, World, adit, capture, mesh, metric, settings, wait_metric,
};

/// What a change may take from when it is in force until nothing that it denies is left.
const CUT_WITHIN: Duration = Duration::from_secs(1);

pub(crate) const NOBODY: &str = "policies: []\n";
const ALLOW_NEAR: &str = "policies:\n- { name: near, namespace: test, scope: Namespace, action: Allow, dryRun: false,\n    \
     rules: [[[{ principals: [{ exact: cluster.local/ns/test/sa/near }] }]]] }\n";
pub(crate) const DENY_NEAR: &str = "policies:\n- { name: no-near, namespace: test, scope: Global, action: Deny, dryRun: false,\n    \
     rules: [[[{ principals: [!Prefix cluster.local/ns/test/sa/nea] }]]] }\n";

/// A near adit, a far one whose mesh ends in `policies`, and a plain client in host `client`.
pub(crate) fn world(policies: &str, far_settings: &str) -> World {
    let ground = Ground::new();
    let (lab, kind) = (&ground.lab, KINDS[0]);
    let mesh = mesh(&lab.adit, &lab.server);
    let far = adit(&lab.server, kind, &settings(kind, FAR, &ground.far, far_settings), &format!("{mesh}{policies}"));
    let near = adit(&lab.adit, kind, &settings(kind, NEAR, &ground.near, NO_RECORDS), &mesh);
    ground.world(["adit", "server"], Side::Adit(near), Side::Adit(far), World::ADITS)
}

/// Replaces the far adit's mesh and waits until it is in force. Returns when that was.
pub(crate) fn publish(world: &World, text: &str) -> Instant {
    let far = world.far.adit();
    far.replace("mesh.yaml", text);
    let mut reload = world.far_host().command(env!("CARGO_BIN_EXE_adit"));
    let output = reload.args(["reload", "--json"]).output().expect("the binary under test");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_ne!(report["mesh"]["result"], "rejected", "{report}");
    Instant::now()
}

pub(crate) fn with(world: &World, policies: &str) -> String {
    format!("{}{policies}", mesh(world.near_host(), world.far_host()))
}

/// Outside of any tunnel.
pub(crate) fn plain(world: &World, family: Family) -> TcpStream {
    try_plain(world, family).expect("the capture door accepts")
}

pub(crate) fn try_plain(world: &World, family: Family) -> std::io::Result<TcpStream> {
    let to = SocketAddr::new(world.far_host().address(family), APP);
    let stream = Dial::default().connect(&world.lab.client, to)?;
    stream.set_read_timeout(Some(LIMIT))?;
    Ok(stream)
}

/// How one ends that is refused; a reset may be so quick that connecting fails with it.
fn plain_fate(world: &World, family: Family) -> End {
    match try_plain(world, family) {
        Ok(mut stream) => end(&mut stream),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => End::Reset,
        Err(error) => panic!("{error}"),
    }
}

pub(crate) fn open(door: &Door, client: TcpStream) -> (TcpStream, TcpStream) {
    let mut pair = (client, door.accept().stream);
    pair.1.set_read_timeout(Some(LIMIT)).expect("SO_RCVTIMEO");
    talk(&mut pair.0, &mut pair.1);
    pair
}

/// The records of the far adit that end for `reason`.
fn records(adit: &Adit, reason: &str) -> Vec<serde_json::Value> {
    let is_meant = |line: &String| line.contains(&format!("\"close_reason\":\"{reason}\""));
    adit.log().iter().filter(|line| is_meant(line)).map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

pub(crate) fn wait_records(adit: &Adit, reason: &str, count: usize) -> Vec<serde_json::Value> {
    until(LIMIT, &format!("{count} records of {reason}"), || {
        Some(records(adit, reason)).filter(|records| records.len() >= count)
    })
}

fn expect(world: &mut World, text: &str) {
    let Side::Adit(far) = &mut world.far else { panic!("an adit") };
    far.expect_log(text);
}

#[test]
fn only_who_is_allowed_gets_in() {
    isolated(|| {
        let mut world = world(ALLOW_NEAR, "");
        expect(&mut world, "policy_denied");
        let door = Door::open(world.far_host(), APP);
        for family in Family::BOTH {
            let (mut client, mut server) = world.pair(family, &door);
            talk(&mut client, &mut server);
            // In the clear there is no identity that could be allowed.
            assert_eq!(plain_fate(&world, family), End::Reset);
        }
        let records = wait_records(world.far.adit(), "policy_denied", 2);
        for record in &records {
            assert_eq!(record["decision"], "deny", "{record}");
            assert_eq!(record["close_phase"], "authorize");
            let why = "connection closed due to policy rejection: allow policies exist, but none allowed";
            assert_eq!(record["error"], why);
            assert!(record["src.addr"].is_string() && record["dst.addr"].is_string(), "{record}");
        }
        assert!(metric(world.far_host(), "adit_policy_decisions_total{decision=\"deny\"}") >= 2.0);
        assert!(metric(world.far_host(), "adit_policy_decisions_total{decision=\"allow\"}") >= 2.0);
        wait_metric(world.far_host(), "istio_tcp_connections_closed_total{response_flags=\"DENY\"}", 2.0);
        drop(door);
        world.stop();
    });
}

/// The near adit hears 401, and tries nowhere else.
#[test]
fn a_denied_stream_is_told_so() {
    isolated(|| {
        let mut world = world(DENY_NEAR, "");
        expect(&mut world, "policy_denied");
        assert_eq!(world.fate(Family::V4, APP), End::Reset);
        let records = wait_records(world.far.adit(), "policy_denied", 1);
        assert_eq!(records[0]["policy"], "test/no-near");
        assert_eq!(records[0]["src.identity"], "spiffe://cluster.local/ns/test/sa/near");
        assert_eq!(
            records[0]["error"],
            "connection closed due to policy rejection: explicitly denied by: test/no-near"
        );
        wait_metric(world.near_host(), "adit_connections_closed_total{reason=\"tunnel_denied\"}", 1.0);
        world.stop();
    });
}

/// What is wrong with the request is no endpoint's fault: asking again, or somebody else, would only go around the limit.
#[test]
fn a_source_that_asks_too_often_is_not_carried_by_a_retry() {
    isolated(|| {
        let ground = Ground::new();
        let (lab, kind) = (&ground.lab, KINDS[0]);
        let mesh = "workloads:\n\
            - { uid: near, name: near, namespace: test, serviceAccount: near, protocol: HBONE, workloadIps: [10.77.0.2] }\n\
            - { uid: far, name: far, namespace: test, serviceAccount: far, protocol: HBONE, workloadIps: [10.77.0.3], \
            services: { test/app.test: {} } }\n\
            services:\n- { name: app, namespace: test, hostname: app.test, vips: [/10.99.0.1], ports: { 80: 8080 } }\n";
        let limit = "limits: { sourceRate: 1, sourceBurst: 1 }\n";
        let mut far = adit(&lab.server, kind, &settings(kind, FAR, &ground.far, limit), mesh);
        let patient = "connect: { attempts: 3, backoff: 1s }\n";
        let mut near = adit(&lab.adit, kind, &settings(kind, NEAR, &ground.near, patient), mesh);
        far.expect_log("rate_limited");
        near.expect_log("tunnel_refused");
        let door = Door::open(&lab.server, APP);
        let over = AtomicBool::new(false);
        thread::scope(|threads| {
            // Who gets in is told so by a clean end.
            threads.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    if door.is_quiet() { pause(Duration::from_millis(2)) } else { drop(door.accept()) }
                }
            });
            // With another try a second later it would get in.
            until(LIMIT, "a refusal", || {
                let mut stream = Dial::default().connect(&lab.adit, ([10, 99, 0, 1], 80).into()).expect("captured");
                stream.set_read_timeout(Some(LIMIT)).expect("SO_RCVTIMEO");
                (end(&mut stream) == End::Reset).then_some(())
            });
            over.store(true, Ordering::Relaxed);
        });
        let record = &wait_records(&near, "tunnel_refused", 1)[0];
        let attempts = record["attempts"].as_str().expect("text");
        assert!(attempts.contains("tunnel_refused") && !attempts.contains(','), "{record}");
        assert!(record["error"].as_str().expect("text").contains("429"), "{record}");
        drop(door);
        near.stop();
        far.stop();
    });
}

/// A transfer that goes on until something ends it, and how each side sees that.
fn busy((mut client, mut server): (TcpStream, TcpStream)) -> [thread::JoinHandle<End>; 2] {
    client.set_write_timeout(Some(LIMIT)).expect("SO_SNDTIMEO");
    let writer = thread::spawn(move || {
        let data = random(7, 300_000);
        loop {
            match client.write_all(&data) {
                Ok(()) => {}
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {
                    return End::Reset;
                }
                Err(error) => panic!("{error}"),
            }
        }
    });
    [writer, thread::spawn(move || read_to_end(&mut server).1)]
}

/// Idle and busy, in tunnels and in the clear, by copying and by splicing: who is denied now is cut, and nobody else.
#[test]
fn a_change_cuts_what_it_denies_and_nothing_else() {
    isolated(|| {
        for zero_copy in ["auto", "off"] {
            let mut world = world(NOBODY, &format!("relay: {{ zeroCopy: {zero_copy} }}"));
            expect(&mut world, "policy_changed");
            let door = Door::open(world.far_host(), APP);
            let mut idle: Vec<_> = Family::BOTH.map(|family| open(&door, world.dial(family, APP))).into();
            let flowing = busy(open(&door, world.dial(Family::V4, APP)));
            let mut in_the_clear = open(&door, plain(&world, Family::V4));
            let plainly_flowing = busy(open(&door, plain(&world, Family::V4)));
            let mut spared = open(&door, plain(&world, Family::V6));
            until(LIMIT, "bytes to flow", || {
                (metric(world.far_host(), "istio_tcp_received_bytes_total") > 4e6).then_some(())
            });

            let since = publish(&world, &with(&world, DENY_NEAR));
            for (client, server) in &mut idle {
                assert_eq!((end(client), end(server)), (End::Reset, End::Reset));
            }
            for end in flowing {
                assert_eq!(end.join().expect("a reader"), End::Reset);
            }
            let took = since.elapsed();
            assert!(took < CUT_WITHIN, "{took:?}");
            let records = wait_records(world.far.adit(), "policy_changed", 3);
            assert!(records.iter().all(|record| record["policy"] == "test/no-near"), "{records:?}");
            talk(&mut in_the_clear.0, &mut in_the_clear.1);
            assert!(plainly_flowing.iter().all(|end| !end.is_finished()));

            let deny_v4 = format!(
                "policies:\n- {{ name: no-client, namespace: test, scope: Namespace, action: Deny, dryRun: false,\n    \
                 rules: [[[{{ sourceIps: [{}/32], destinationPorts: [{APP}] }}]]] }}\n",
                world.lab.client.v4
            );
            let since = publish(&world, &with(&world, &deny_v4));
            assert_eq!((end(&mut in_the_clear.0), end(&mut in_the_clear.1)), (End::Reset, End::Reset));
            for end in plainly_flowing {
                assert_eq!(end.join().expect("a reader"), End::Reset);
            }
            let took = since.elapsed();
            assert!(took < CUT_WITHIN, "{took:?}");
            talk(&mut spared.0, &mut spared.1);
            // Who is denied no more gets in again.
            let (mut client, mut server) = world.pair(Family::V4, &door);
            talk(&mut client, &mut server);
            drop((idle, in_the_clear, spared, client, server, door));
            world.stop();
        }
    });
}

/// The policy was there all the time; what changes is the workload that lists it.
#[test]
fn a_workload_that_lists_another_policy() {
    const SELECTED: &str = "policies:\n- { name: closed, namespace: test, scope: WorkloadSelector, action: Allow, dryRun: false, rules: [] }\n";
    isolated(|| {
        let mut world = world(SELECTED, "");
        expect(&mut world, "policy_changed");
        let door = Door::open(world.far_host(), APP);
        let mut pair = open(&door, world.dial(Family::V4, APP));
        let text = with(&world, SELECTED);
        let listed = text.replace("name: far,", "name: far, authorizationPolicies: [test/closed],");
        assert_ne!(listed, text);
        publish(&world, &listed);
        assert_eq!((end(&mut pair.0), end(&mut pair.1)), (End::Reset, End::Reset));
        let records = wait_records(world.far.adit(), "policy_changed", 1);
        let why = "connection closed due to policy change: allow policies exist, but none allowed";
        assert_eq!(records[0]["error"], why);
        drop(door);
        world.stop();
    });
}

#[test]
fn a_dry_run_changes_nothing_and_says_what_it_would_have_done() {
    isolated(|| {
        let world = world(&DENY_NEAR.replace("dryRun: false", "dryRun: true"), "");
        let door = Door::open(world.far_host(), APP);
        let (mut client, mut server) = world.pair(Family::V4, &door);
        talk(&mut client, &mut server);
        drop((client, server));
        let records = wait_records(world.far.adit(), "finished", 1);
        assert_eq!(records[0]["policy.dry_run"], "would be denied by: test/no-near", "{}", records[0]);
        assert_eq!(metric(world.far_host(), "adit_policy_decisions_total{decision=\"dry_run_deny\"}"), 1.0);
        assert_eq!(metric(world.far_host(), "adit_policy_decisions_total{decision=\"deny\"}"), 0.0);
        drop(door);
        world.stop();
    });
}

#[test]
fn a_policy_that_is_not_there() {
    isolated(|| {
        let mut world = world(NOBODY, "");
        expect(&mut world, "policy_denied");
        let door = Door::open(world.far_host(), APP);
        let text = with(&world, NOBODY);
        let listed = text.replace("name: far,", "name: far, authorizationPolicies: [test/absent],");
        publish(&world, &listed);
        assert_eq!(world.fate(Family::V4, APP), End::Reset);
        let records = wait_records(world.far.adit(), "policy_denied", 1);
        assert_eq!(records[0]["policy"], "test/absent");
        let far = world.far.adit();
        let more = std::fs::read_to_string(far.folder().join("adit.yaml")).expect("our own file");
        far.replace("adit.yaml", &format!("{more}policy: {{ onMissing: ignore }}\n"));
        publish(&world, &listed);
        let (mut client, mut server) = world.pair(Family::V4, &door);
        talk(&mut client, &mut server);
        drop((client, server));
        drop(door);
        world.stop();
    });
}

/// While the state lacks the workload its policies are unknown: who comes waits, and is refused when it does not appear.
#[test]
fn a_workload_that_the_state_does_not_have_yet() {
    isolated(|| {
        let ground = Ground::new();
        let (lab, kind) = (&ground.lab, KINDS[0]);
        let whole = mesh(&lab.adit, &lab.server);
        let without: String =
            whole.lines().filter(|line| !line.contains("uid: far")).map(|line| format!("{line}\n")).collect();
        let far = adit(&lab.server, kind, &settings(kind, FAR, &ground.far, ""), &without);
        let near = adit(&lab.adit, kind, &settings(kind, NEAR, &ground.near, NO_RECORDS), &whole);
        let mut world = ground.world(["adit", "server"], Side::Adit(near), Side::Adit(far), World::ADITS);
        expect(&mut world, "unknown_workload");
        let door = Door::open(world.far_host(), APP);
        let start = Instant::now();
        let (mut through_tunnel, mut in_the_clear) = (world.dial(Family::V4, APP), plain(&world, Family::V4));
        assert_eq!((end(&mut through_tunnel), end(&mut in_the_clear)), (End::Reset, End::Reset));
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(4_900), "{took:?}");
        assert_eq!(wait_records(world.far.adit(), "unknown_workload", 2).len(), 2);
        assert!(door.is_quiet());

        let (mut client, mut plainly) = (world.dial(Family::V4, APP), plain(&world, Family::V4));
        publish(&world, &whole);
        let (mut one, mut other) = (door.accept().stream, door.accept().stream);
        client.write_all(b"x").expect("an open connection");
        plainly.write_all(b"x").expect("an open connection");
        for server in [&mut one, &mut other] {
            let mut got = [0];
            std::io::Read::read_exact(server, &mut got).expect("what the client wrote");
        }
        drop((client, plainly, one, other, door));
        world.stop();
    });
}

/// What no workload is served for: plaintext, while there are no policies at all.
#[test]
fn a_daemon_without_a_workload() {
    isolated(|| {
        let ground = Ground::new();
        let (lab, kind) = (&ground.lab, KINDS[0]);
        let text = mesh(&lab.adit, &lab.server);
        let nameless = |leaf: &Leaf| {
            settings(kind, "\"\"", leaf, "")
                .replace("serviceAccount: \"\"", "serviceAccount: far")
                .replace("source: files", "source: none")
        };
        capture(&lab.server, kind);
        let mut far = Adit::start(&lab.server, &nameless(&ground.far), &text);
        far.wait_ready(&lab.server);
        let near = adit(&lab.adit, kind, &settings(kind, NEAR, &ground.near, NO_RECORDS), &text);
        let mut world = ground.world(["adit", "server"], Side::Adit(near), Side::Adit(far), World::ADITS);
        expect(&mut world, "policy_denied");
        let door = Door::open(world.far_host(), APP);
        let mut client = plain(&world, Family::V4);
        let mut server = door.accept().stream;
        talk(&mut client, &mut server);
        publish(&world, &with(&world, DENY_NEAR));
        assert_eq!((end(&mut client), end(&mut server)), (End::Reset, End::Reset));
        assert_eq!(plain_fate(&world, Family::V4), End::Reset);
        let records = wait_records(world.far.adit(), "policy_denied", 1);
        assert!(records[0]["error"].as_str().is_some_and(|error| error.contains("workload.name")), "{}", records[0]);
        expect(&mut world, "policy_changed");
        drop(door);
        world.stop();
    });
}
