//! What adit does not carry ends with a reset, never with an end that could be taken for an empty answer, and nobody is
//! dialled for it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::bytes::End;
use crate::kit::wait::pause;
use crate::kit::{Door, Family, LIMIT, isolated, until};
use crate::scene::{KINDS, MESH, NO_RECORDS, Scene, Syns, at, by_family, fate};

/// An application's connection to `to` must be reset for this reason; returns the record.
fn reset_because(scene: &Scene, to: SocketAddr, reason: &str) -> serde_json::Value {
    let (client, end) = fate(&scene.lab.adit, to);
    assert_eq!(end, End::Reset, "{to}");
    let record = scene.record(client);
    assert_eq!(record["close_reason"], reason, "{record}");
    record
}

#[test]
fn an_unreachable_destination_is_a_reset() {
    isolated(|| {
        for kind in KINDS {
            // Linux believes an ICMP error only when it comes while nobody is inside `connect`: maybe the second one,
            // after the SYN has been sent again, a second later.
            let mut scene = Scene::new(kind, "connect: { timeout: 2500ms, attempts: 1 }", MESH);
            // The server's host answers for port 7001 that it is unreachable, and not at all for port 7002.
            scene.lab.server.nft(
                "table inet unreachable {\n chain in {\n type filter hook input priority 0\n \
                 tcp dport 7001 reject with icmpx host-unreachable\n tcp dport 7002 drop\n }\n }\n",
            );
            for (port, reason) in [(7000, "connect_refused"), (7001, "connect_unreachable"), (7002, "connect_timeout")]
            {
                scene.adit.expect_log(reason);
                for family in Family::BOTH {
                    let to = at(&scene.lab.server, family, port);
                    let record = reset_because(&scene, to, reason);
                    assert_eq!(record["dst.addr"], to.to_string(), "{record}");
                    assert_eq!(record["dst.workload"], "server-1", "{record}");
                }
            }
            let labels = ["response_flags=\"CONNECT\"", "destination_workload=\"server-1\""];
            scene.wait_metric("istio_tcp_connections_closed_total", &labels, 6.0);
            scene.adit.stop();
        }
    });
}

#[test]
fn unknown_destinations_are_refused_when_only_known_ones_are_allowed() {
    isolated(|| {
        for kind in KINDS {
            let mut scene = Scene::new(kind, "egress: registryOnly", MESH);
            scene.adit.expect_log("unknown_destination");
            let syns = Syns::watch(&scene.lab.server);
            for family in Family::BOTH {
                let to = SocketAddr::new(by_family(family, "10.77.0.44", "fd77::44"), 8080);
                reset_because(&scene, to, "unknown_destination");
            }
            assert_eq!(scene.metric("adit_connect_attempts_total", &[]), 0.0);
            assert_eq!(syns.seen(), 0);
            // What is known still goes.
            for family in Family::BOTH {
                let (mut application, mut server) = scene.through(family);
                crate::kit::door::talk(&mut application, &mut server);
            }
            assert_eq!(syns.seen(), 2);
            scene.adit.stop();
        }
    });
}

/// Everything that can only be reached by a tunnel, one way or the other; the server listens at all of it in the clear.
const TUNNELLED: &str = "
workloads:
- { uid: hbone, name: hbone, namespace: test, workloadIps: [10.77.0.3, 'fd77::3'], protocol: HBONE }
- uid: waypoint
  name: waypoint
  namespace: test
  workloadIps: [10.77.0.33, 'fd77::33']
  waypoint: { destination: '/10.77.0.3', hboneMtlsPort: 15008 }
- uid: hbone-endpoint
  name: hbone-endpoint
  namespace: test
  workloadIps: [10.77.0.34, 'fd77::34']
  protocol: HBONE
  services: { test/hbone.test.svc: { 80: 8080 } }
- uid: far-endpoint
  name: far-endpoint
  namespace: test
  network: far
  workloadIps: [10.77.0.3, 'fd77::3']
  services: { test/far.test.svc: { 80: 8080 } }
- uid: plain-endpoint
  name: plain-endpoint
  namespace: test
  workloadIps: [10.77.0.35, 'fd77::35']
  services: { test/waypoint.test.svc: { 80: 8080 } }
services:
- { name: hbone, namespace: test, hostname: hbone.test.svc, vips: [10.96.0.1, 'fd96::1'], ports: { 80: 8080 } }
- { name: far, namespace: test, hostname: far.test.svc, vips: [10.96.0.2, 'fd96::2'], ports: { 80: 8080 } }
- name: waypoint
  namespace: test
  hostname: waypoint.test.svc
  vips: [10.96.0.3, 'fd96::3']
  ports: { 80: 8080 }
  waypoint: { destination: '/10.77.0.3', hboneMtlsPort: 15008 }
";

#[test]
fn what_needs_a_tunnel_is_never_carried_in_the_clear() {
    isolated(|| {
        for kind in KINDS {
            let scene = Scene::new(kind, NO_RECORDS, TUNNELLED);
            for number in 34..=35 {
                scene.lab.server.ip(&format!(
                    "address add 10.77.0.{number}/24 dev eth0\naddress add fd77::{number}/64 dev eth0 nodad\n"
                ));
            }
            let _door = Door::open(&scene.lab.server, 8080);
            let syns = Syns::watch(&scene.lab.server);
            for (v4, v6, port) in [
                ("10.77.0.3", "fd77::3", 8080),
                ("10.77.0.33", "fd77::33", 8080),
                ("10.96.0.1", "fd96::1", 80),
                ("10.96.0.2", "fd96::2", 80),
                ("10.96.0.3", "fd96::3", 80),
            ] {
                for family in Family::BOTH {
                    let to = SocketAddr::new(by_family(family, v4, v6), port);
                    let (_, end) = fate(&scene.lab.adit, to);
                    assert_eq!(end, End::Reset, "{to}");
                }
            }
            // What a tunnel of our own or to a waypoint would reach fails for want of an identity; to the other network
            // there is no gateway.
            scene.wait_metric("adit_connections_closed_total", &["reason=\"no_identity\""], 8.0);
            scene.wait_metric("adit_connections_closed_total", &["reason=\"gateway_unavailable\""], 2.0);
            let not_begun = scene.metric("adit_connect_failures_total", &["reason=\"no_identity\""]);
            assert_eq!(scene.metric("adit_connect_attempts_total", &[]), not_begun);
            assert_eq!(syns.seen(), 0, "the server saw a connection in the clear");
            scene.adit.stop();
        }
    });
}

#[test]
fn a_port_that_the_service_does_not_have_is_a_reset() {
    isolated(|| {
        let mut scene = Scene::new(adit::net::redirect::Kind::Redirect, "", MESH);
        scene.adit.expect_log("no_service_port");
        for family in Family::BOTH {
            let to = SocketAddr::new(crate::scene::vip(family).ip(), 81);
            let record = reset_because(&scene, to, "no_service_port");
            assert_eq!(record["message"], "connection failed", "{record}");
        }
        scene.adit.stop();
    });
}

/// Two at once, then one a second; who is refused loses nothing of that.
#[test]
fn a_source_that_connects_too_often() {
    isolated(|| {
        for kind in KINDS {
            let mut scene = Scene::new(kind, "limits: { sourceRate: 1, sourceBurst: 2 }", MESH);
            scene.adit.expect_log("rate_limited");
            let (door, over) = (Door::open(&scene.lab.server, 8080), AtomicBool::new(false));
            let to = at(&scene.lab.server, Family::V4, 8080);
            std::thread::scope(|threads| {
                threads.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        if door.is_quiet() { pause(Duration::from_millis(2)) } else { drop(door.accept()) }
                    }
                });
                let mut let_in = 0;
                let refused = until(LIMIT, "a refusal", || match fate(&scene.lab.adit, to) {
                    (client, End::Reset) => Some(client),
                    _ => {
                        let_in += 1;
                        None
                    }
                });
                assert!(let_in >= 2, "{let_in}");
                let record = scene.record(refused);
                assert_eq!(record["close_reason"], "rate_limited", "{record}");
                assert_eq!(scene.metric("adit_source_rate_keys", &[]), 1.0);
                until(LIMIT, "to be let in again", || (fate(&scene.lab.adit, to).1 == End::Fin).then_some(()));
                over.store(true, Ordering::Relaxed);
            });
            scene.adit.stop();
        }
    });
}
