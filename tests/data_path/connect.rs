//! From a captured connection to an established one: other endpoints when one is dead, clients that do not wait, servers
//! that speak first.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::time::{Duration, Instant};

use adit::net::redirect::Kind;
use serde_json::Value;

use crate::bytes::{End, expect, reset};
use crate::kit::{Door, Family, LIMIT, isolated, until};
use crate::scene::{KINDS, MESH, Scene, Syns, accept, at, dial, fate, second, vip};

/// A dead endpoint is tried again and again.
const NEVER_EJECT: &str = "balance: { ejectAfter: off }\n";

/// The attempts of a record: where, and how it went.
fn attempts(record: &Value) -> Vec<(SocketAddr, String)> {
    let text = record["attempts"].as_str().unwrap_or_default();
    let parts = text.split(", ").filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let words: Vec<&str> = part.split(' ').collect();
            assert!(words.len() == 3 && words[2].ends_with("ms"), "{part}");
            (words[0].parse().expect("an address"), words[1].to_owned())
        })
        .collect()
}

/// One endpoint of two lives; connections are made until the dead one was tried first `times` times.
fn one_dead_endpoint(scene: &Scene, family: Family, outcome: &str, times: usize) {
    let alive = Door::open(&scene.lab.server, 8081);
    let (living, dead) = (at(&scene.lab.server, family, 8081), SocketAddr::new(second(family), 8082));
    let mut detours = 0;
    for count in 1.. {
        assert!(count < 64, "the dead endpoint was tried first only {detours} times in {count}");
        let (mut application, mut accepted) = scene.pair(vip(family), &alive);
        crate::kit::door::talk(&mut application, &mut accepted.stream);
        let client = application.local_addr().expect("an address");
        drop((application, accepted));
        let record = scene.record(client);
        assert_eq!((&record["close_reason"], &record["dst.workload"]), (&"finished".into(), &"server-1".into()));
        match &*attempts(&record) {
            [] => {}
            tried => {
                assert_eq!(tried, [(dead, outcome.to_owned()), (living, "ok".to_owned())], "{record}");
                detours += 1;
            }
        }
        if detours == times {
            return;
        }
    }
}

#[test]
fn a_refusing_endpoint_costs_no_connection() {
    isolated(|| {
        for kind in KINDS {
            let scene = Scene::new(kind, NEVER_EJECT, MESH);
            for family in Family::BOTH {
                one_dead_endpoint(&scene, family, "connect_refused", 4);
            }
            scene.wait_metric("adit_connect_failures_total", &["reason=\"connect_refused\""], 8.0);
            scene.adit.stop();
        }
    });
}

/// Once it has cost that much time, it is hardly ever tried first.
#[test]
fn a_silent_endpoint_costs_no_connection() {
    isolated(|| {
        for (kind, family) in KINDS.into_iter().flat_map(|kind| Family::BOTH.map(|family| (kind, family))) {
            let scene = Scene::new(kind, "connect: { timeout: 400ms }", MESH);
            scene.lab.server.black_hole("tcp dport 8082");
            one_dead_endpoint(&scene, family, "connect_timeout", 1);
            scene.adit.stop();
        }
    });
}

/// Never the same endpoint twice while another is untried; then once more, as `connect.attempts` allows.
#[test]
fn when_all_endpoints_are_dead_each_was_tried() {
    isolated(|| {
        for kind in KINDS {
            let mut scene = Scene::new(kind, "connect: { attempts: 3 }", MESH);
            scene.adit.expect_log("connect_refused");
            for family in Family::BOTH {
                let (client, end) = fate(&scene.lab.adit, vip(family));
                assert_eq!(end, End::Reset);
                let record = scene.record(client);
                assert_eq!(record["close_reason"], "connect_refused", "{record}");
                assert_eq!(record["dst.service"], "echo.test.svc", "{record}");
                let tried = attempts(&record);
                assert_eq!(tried.len(), 3, "{record}");
                assert_ne!(tried[0].0, tried[1].0, "{record}");
                assert!(tried.iter().all(|(_, outcome)| outcome == "connect_refused"), "{record}");
            }
            scene.adit.stop();
        }
    });
}

#[test]
fn a_single_address_that_refuses_is_final_at_once() {
    isolated(|| {
        for kind in KINDS {
            let mut scene = Scene::new(kind, "connect: { attempts: 3, backoff: 5s }", MESH);
            scene.adit.expect_log("connect_refused");
            let syns = Syns::watch(&scene.lab.server);
            for family in Family::BOTH {
                let start = Instant::now();
                let to = at(&scene.lab.server, family, 7000);
                let (client, end) = fate(&scene.lab.adit, to);
                assert_eq!(end, End::Reset);
                assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
                let tried = attempts(&scene.record(client));
                assert_eq!(tried, [(to, "connect_refused".to_owned())]);
            }
            assert_eq!(syns.seen(), 2);
            scene.adit.stop();
        }
    });
}

#[test]
fn a_client_that_resets_ends_the_attempt() {
    isolated(|| {
        for kind in KINDS {
            let mut scene = Scene::new(kind, "connect: { timeout: 60s, deadline: 60s }", MESH);
            scene.adit.expect_log("downstream_gone");
            scene.lab.server.black_hole("tcp dport 8080");
            for family in Family::BOTH {
                let mut application = scene.dial(at(&scene.lab.server, family, 8080));
                application.write_all(b"a request that nobody will answer").expect("write");
                let client = application.local_addr().expect("an address");
                until(LIMIT, "adit to be connecting", || {
                    scene.connections().iter().any(|connection| connection["state"] == "connecting").then_some(())
                });
                let start = Instant::now();
                reset(application);
                let record = scene.record(client);
                assert!(start.elapsed() < LIMIT, "{:?}", start.elapsed());
                assert_eq!(record["close_reason"], "downstream_gone", "{record}");
                scene.wait_metric("adit_connections_open", &[], 0.0);
            }
            scene.adit.stop();
        }
    });
}

/// The client has said all it wants to say before the server can be reached at all.
#[test]
fn a_client_that_sends_its_request_and_a_fin_gets_its_answer() {
    isolated(|| {
        for kind in KINDS {
            let scene = Scene::new(kind, "", MESH);
            for family in Family::BOTH {
                let door = Door::open(&scene.lab.server, 8080);
                scene.lab.server.black_hole("tcp dport 8080");
                let mut application = scene.dial(at(&scene.lab.server, family, 8080));
                application.write_all(b"request").expect("write");
                application.shutdown(Shutdown::Write).expect("shutdown");
                until(LIMIT, "adit to be connecting", || {
                    scene.connections().iter().any(|connection| connection["state"] == "connecting").then_some(())
                });
                scene.lab.server.heal();
                let mut server = accept(&door).stream;
                expect(&mut server, b"request", End::Fin);
                server.write_all(b"answer").expect("write");
                drop(server);
                expect(&mut application, b"answer", End::Fin);
            }
            scene.adit.stop();
        }
    });
}

/// 20 ms on an idle machine.
const GREETED_WITHIN: Duration = Duration::from_secs(4);

#[test]
fn a_server_may_speak_first() {
    isolated(|| {
        for kind in KINDS {
            let scene = Scene::new(kind, "", MESH);
            let server = Door::open(&scene.lab.server, 8080);
            let beside = Door::open(&scene.lab.adit, 8080);
            for family in Family::BOTH {
                for (from, to, door) in
                    [(&scene.lab.adit, &scene.lab.server, &server), (&scene.lab.client, &scene.lab.adit, &beside)]
                {
                    let start = Instant::now();
                    let mut application = dial(from, at(to, family, 8080));
                    let mut accepted = accept(door);
                    accepted.stream.write_all(b"220 ready\r\n").expect("write");
                    let mut banner = [0; 11];
                    application.read_exact(&mut banner).expect("the banner");
                    assert_eq!(&banner, b"220 ready\r\n");
                    assert!(start.elapsed() < GREETED_WITHIN, "{kind} {family:?}: {:?}", start.elapsed());
                }
            }
            scene.adit.stop();
        }
    });
}

/// `connect.deadline` ends the trying although attempts are left.
#[test]
fn the_deadline_bounds_all_attempts_together() {
    isolated(|| {
        let more = "connect: { timeout: 2s, deadline: 3500ms, attempts: 100 }";
        let mut scene = Scene::new(Kind::Redirect, more, MESH);
        scene.adit.expect_log("connect_timeout");
        scene.lab.server.black_hole("tcp dport { 8081, 8082 }");
        let start = Instant::now();
        let (client, end) = fate(&scene.lab.adit, vip(Family::V4));
        let took = start.elapsed();
        assert_eq!(end, End::Reset);
        assert!((Duration::from_millis(3_400)..LIMIT).contains(&took), "{took:?}");
        let record = scene.record(client);
        assert_eq!(record["close_reason"], "connect_timeout", "{record}");
        assert_eq!(attempts(&record).len(), 2, "{record}");
        scene.adit.stop();
    });
}
