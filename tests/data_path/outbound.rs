//! Connections of the local workload: where they lead, what the access log says of them, what the metrics count.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use adit::net::redirect::Kind;

use crate::bytes::{End, expect, random, send_and_finish};
use crate::kit::{Door, Family, isolated};
use crate::scene::{KINDS, MESH, Scene, at, by_family, second, vip};

const REQUEST: usize = 1_000;
const RESPONSE: usize = 50_000;

/// Request and response of known sizes; returns the client's address.
fn exchange(scene: &Scene, to: SocketAddr, door: &Door) -> SocketAddr {
    let (mut application, mut accepted) = scene.pair(to, door);
    assert_eq!(accepted.peer.ip(), scene.lab.adit.address(family_of(to)), "the server sees adit's host");
    let (request, response) = (random(1, REQUEST), random(2, RESPONSE));
    send_and_finish(&mut application, &request);
    expect(&mut accepted.stream, &request, End::Fin);
    send_and_finish(&mut accepted.stream, &response);
    expect(&mut application, &response, End::Fin);
    application.local_addr().expect("an address")
}

fn family_of(address: SocketAddr) -> Family {
    if address.is_ipv4() { Family::V4 } else { Family::V6 }
}

/// What the record of an [`exchange`] must say.
fn check_record(scene: &Scene, client: SocketAddr, reached: SocketAddr, workload: Option<&str>, service: Option<&str>) {
    let record = scene.record(client);
    let want = [
        ("level", Some("info")),
        ("message", Some("connection complete")),
        ("src.workload", Some("app")),
        ("src.namespace", Some("test")),
        ("dst.addr", Some(&*reached.to_string())),
        ("dst.workload", workload),
        ("dst.namespace", workload.map(|_| "test")),
        ("dst.service", service),
        ("direction", Some("outbound")),
        ("listener", Some("outbound")),
        ("close_reason", Some("finished")),
        ("error", None),
        ("attempts", None),
    ];
    for (key, want) in want {
        assert_eq!(record[key].as_str(), want, "{key} of {record}");
    }
    assert_eq!((record["bytes_sent"].as_u64(), record["bytes_recv"].as_u64()), (Some(1_000), Some(50_000)), "{record}");
}

/// What the metrics must say of `count` exchanges with these labels.
fn check_metrics(scene: &Scene, labels: &[&str], count: f64) {
    let mut labels = labels.to_vec();
    labels.extend(["reporter=\"source\"", "source_workload=\"app\"", "response_flags=\"-\""]);
    for (name, each) in [
        ("istio_tcp_connections_closed_total", 1.0),
        ("istio_tcp_connections_opened_total", 1.0),
        ("istio_tcp_received_bytes_total", 1_000.0),
        ("istio_tcp_sent_bytes_total", 50_000.0),
    ] {
        scene.wait_metric(name, &labels, each * count);
    }
}

pub(crate) fn passthrough(kind: Kind) {
    let scene = Scene::new(kind, "", MESH);
    scene.lab.server.ip("address add 192.0.2.7/32 dev eth0\naddress add 2001:db8::7/128 dev eth0 nodad\n");
    let door = Door::open(&scene.lab.server, 8080);
    for family in Family::BOTH {
        let to = SocketAddr::new(by_family(family, "192.0.2.7", "2001:db8::7"), 8080);
        let client = exchange(&scene, to, &door);
        check_record(&scene, client, to, None, None);
    }
    check_metrics(&scene, &["destination_workload=\"unknown\"", "destination_service=\"unknown\""], 2.0);
    scene.adit.stop();
}

#[test]
fn unknown_destinations_are_passed_through_redirect() {
    isolated(|| passthrough(Kind::Redirect));
}

#[test]
fn unknown_destinations_are_passed_through_tproxy() {
    isolated(|| passthrough(Kind::Tproxy));
}

pub(crate) fn workload(kind: Kind) {
    let scene = Scene::new(kind, "", MESH);
    let door = Door::open(&scene.lab.server, 9000);
    for family in Family::BOTH {
        let to = at(&scene.lab.server, family, 9000);
        let client = exchange(&scene, to, &door);
        check_record(&scene, client, to, Some("server-1"), None);
        let to = SocketAddr::new(second(family), 9000);
        let client = exchange(&scene, to, &door);
        check_record(&scene, client, to, Some("server-2"), None);
    }
    for name in ["server-1", "server-2"] {
        check_metrics(&scene, &[&format!("destination_workload=\"{name}\"")], 2.0);
    }
    scene.adit.stop();
}

#[test]
fn workloads_are_reached_and_named_redirect() {
    isolated(|| workload(Kind::Redirect));
}

#[test]
fn workloads_are_reached_and_named_tproxy() {
    isolated(|| workload(Kind::Tproxy));
}

/// Nobody listens on the service's own target port: both endpoints have their own.
pub(crate) fn service(kind: Kind) {
    let scene = Scene::new(kind, "", MESH);
    // One door for both, told apart by where the connection was going.
    let doors = [Door::open(&scene.lab.server, 8081), Door::open(&scene.lab.server, 8082)];
    for family in Family::BOTH {
        let endpoints = [at(&scene.lab.server, family, 8081), SocketAddr::new(second(family), 8082)];
        let mut reached = BTreeSet::new();
        let mut count = 0;
        while reached.len() < 2 {
            count += 1;
            assert!(count < 64, "only {reached:?} of two endpoints in {count} connections");
            let index = exchange_with_either(&scene, vip(family), &doors, &endpoints);
            reached.insert(index);
        }
    }
    assert_eq!(scene.metric("adit_connect_failures_total", &[]), 0.0);
    scene.adit.stop();
}

fn exchange_with_either(scene: &Scene, to: SocketAddr, doors: &[Door; 2], endpoints: &[SocketAddr; 2]) -> usize {
    let mut application = scene.dial(to);
    let index = crate::kit::until(crate::kit::LIMIT, "an endpoint to be reached", || {
        (0..2).find(|index| !doors[*index].is_quiet())
    });
    let mut accepted = crate::scene::accept(&doors[index]);
    assert_eq!(accepted.local, endpoints[index]);
    let (request, response) = (random(3, REQUEST), random(4, RESPONSE));
    send_and_finish(&mut application, &request);
    expect(&mut accepted.stream, &request, End::Fin);
    send_and_finish(&mut accepted.stream, &response);
    expect(&mut application, &response, End::Fin);
    let client = application.local_addr().expect("an address");
    let name = ["server-1", "server-2"][index];
    check_record(scene, client, endpoints[index], Some(name), Some("echo.test.svc"));
    index
}

#[test]
fn services_lead_to_each_endpoint_at_its_port_redirect() {
    isolated(|| service(Kind::Redirect));
}

#[test]
fn services_lead_to_each_endpoint_at_its_port_tproxy() {
    isolated(|| service(Kind::Tproxy));
}

/// What one connection through the service counts, exactly, under the service's labels.
#[test]
fn the_metrics_name_the_service() {
    isolated(|| {
        let mesh = MESH.replace("services: { test/echo.test.svc: { 80: 8082 } }", "services: {}");
        let scene = Scene::new(Kind::Redirect, "", &mesh);
        let door = Door::open(&scene.lab.server, 8081);
        for family in Family::BOTH {
            let client = exchange(&scene, vip(family), &door);
            let reached = at(&scene.lab.server, family, 8081);
            check_record(&scene, client, reached, Some("server-1"), Some("echo.test.svc"));
        }
        let labels = ["destination_workload=\"server-1\"", "destination_service=\"echo.test.svc\""];
        check_metrics(&scene, &labels, 2.0);
        scene.wait_metric("adit_connections_open", &[], 0.0);
        scene.adit.stop();
    });
}

/// A workload may be an endpoint of the service that it calls.
#[test]
fn a_service_may_lead_back_to_its_client() {
    isolated(|| {
        for kind in KINDS {
            let mesh = "
workloads:
- uid: app
  name: app
  namespace: test
  workloadIps: [10.77.0.2, 'fd77::2']
  services: { test/echo.test.svc: { 80: 8081 } }
services:
- { name: echo, namespace: test, hostname: echo.test.svc, vips: [10.96.0.1, 'fd96::1'], ports: { 80: 8080 } }
";
            let scene = Scene::new(kind, "", mesh);
            let door = Door::open(&scene.lab.adit, 8081);
            for family in Family::BOTH {
                let client = exchange(&scene, vip(family), &door);
                check_record(&scene, client, at(&scene.lab.adit, family, 8081), Some("app"), Some("echo.test.svc"));
            }
            assert_eq!(scene.metric("adit_loop_refused_total", &[]), 0.0);
            scene.adit.stop();
        }
    });
}
