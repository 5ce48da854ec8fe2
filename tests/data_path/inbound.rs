//! Connections from other hosts to the application beside adit: it sees the client's address, or adit's, and nothing but
//! addresses of its own host is dialled for them.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use adit::net::redirect::Kind;

use crate::bytes::{End, expect, random, send_and_finish};
use crate::kit::daemon::get;
use crate::kit::door::{Dial, talk};
use crate::kit::{Adit, Door, Family, LIMIT, Lab, isolated, until};
use crate::scene::{KINDS, MESH, Scene, accept, at, by_family, capture, captured_lab, dial, fate, settings};

/// A client host's connection to the application; checks bytes, record and metrics, and returns whom the application saw.
fn visit(scene: &Scene, family: Family, application: &Door) -> IpAddr {
    let to = at(&scene.lab.adit, family, 8080);
    let mut client = dial(&scene.lab.client, to);
    let mut accepted = accept(application);
    assert_eq!(accepted.local, to);
    let (request, response) = (random(1, 100_000), random(2, 300_000));
    send_and_finish(&mut client, &request);
    expect(&mut accepted.stream, &request, End::Fin);
    send_and_finish(&mut accepted.stream, &response);
    expect(&mut client, &response, End::Fin);
    let record = scene.record(client.local_addr().expect("an address"));
    for (key, want) in [
        ("message", "connection complete"),
        ("dst.addr", &to.to_string()),
        ("dst.workload", "app"),
        ("direction", "inbound"),
        ("listener", "inbound"),
        ("close_reason", "finished"),
    ] {
        assert_eq!(record[key], want, "{key} of {record}");
    }
    // Told from the application's side.
    assert_eq!((record["bytes_sent"].as_u64(), record["bytes_recv"].as_u64()), (Some(300_000), Some(100_000)));
    accepted.peer.ip()
}

fn check_metrics(scene: &Scene, visits: f64) {
    let labels = ["reporter=\"destination\"", "destination_workload=\"app\"", "response_flags=\"-\""];
    for (name, each) in [
        ("istio_tcp_connections_closed_total", 1.0),
        ("istio_tcp_connections_opened_total", 1.0),
        ("istio_tcp_received_bytes_total", 100_000.0),
        ("istio_tcp_sent_bytes_total", 300_000.0),
    ] {
        scene.wait_metric(name, &labels, each * visits);
    }
}

pub(crate) fn whom_the_application_sees(kind: Kind, preserve: &str, see: impl Fn(&Scene, Family) -> IpAddr) {
    let scene = Scene::new(kind, &format!("preserveSource: {preserve}"), MESH);
    let application = Door::open(&scene.lab.adit, 8080);
    for family in Family::BOTH {
        assert_eq!(visit(&scene, family, &application), see(&scene, family), "{kind} {family:?} {preserve}");
    }
    check_metrics(&scene, 2.0);
    scene.adit.stop();
}

#[test]
fn the_application_sees_the_client_when_preferred() {
    isolated(|| {
        for kind in KINDS {
            whom_the_application_sees(kind, "prefer", |scene, family| scene.lab.client.address(family));
        }
    });
}

#[test]
fn the_application_sees_the_client_when_required() {
    isolated(|| {
        for kind in KINDS {
            whom_the_application_sees(kind, "require", |scene, family| scene.lab.client.address(family));
        }
    });
}

#[test]
fn the_application_sees_adit_when_off() {
    isolated(|| {
        for kind in KINDS {
            whom_the_application_sees(kind, "off", |scene, family| scene.lab.adit.address(family));
        }
    });
}

/// A borrowed connection and one of the client's own may have the same address and port: the kernel keeps them apart, and
/// adit must not take the second for a loop.
#[test]
fn a_client_may_use_a_port_that_is_borrowed_from_it() {
    isolated(|| {
        let scene = Scene::new(Kind::Redirect, "preserveSource: require", MESH);
        let application = Door::open(&scene.lab.adit, 8080);
        for family in [Family::V4, Family::V6] {
            let to = at(&scene.lab.adit, family, 8080);
            let mut first = dial(&scene.lab.client, to);
            let mut first_accepted = accept(&application);
            talk(&mut first, &mut first_accepted.stream);
            let borrowed = first_accepted.peer;
            assert_eq!(borrowed.ip(), scene.lab.client.address(family));
            let same = Dial { source: Some(borrowed), ..Dial::default() };
            let mut second = same.connect(&scene.lab.client, to).expect("the same port is the client's own too");
            let mut second_accepted = accept(&application);
            talk(&mut second, &mut second_accepted.stream);
            talk(&mut first, &mut first_accepted.stream);
        }
        assert_eq!(scene.metric("adit_connections_closed_total", &["reason=\"loop_refused\""]), 0.0);
        scene.adit.stop();
    });
}

#[test]
fn without_the_rules_require_is_not_ready_and_says_why() {
    isolated(|| require_without_rules(&Lab::new()));
}

/// A host that reaches nobody but its neighbours has an address to prove it with all the same.
#[test]
fn without_the_rules_and_without_a_route_require_is_not_ready() {
    isolated(|| {
        let lab = Lab::new();
        lab.adit.ip("route del 0.0.0.0/0 dev eth0\nroute del ::/0 dev eth0\n");
        require_without_rules(&lab);
    });
}

fn require_without_rules(lab: &Lab) {
    let mut adit = Adit::start(&lab.adit, &settings(Kind::Redirect, "preserveSource: require"), MESH);
    let answer = until(LIMIT, "a blocker named preserveSource", || {
        get(&lab.adit, 15021, "/healthz/ready").filter(|answer| answer.contains("\"preserveSource\""))
    });
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("gets no answer") || answer.contains("cannot connect"), "{answer}");
    // It heals by itself once the rules are there.
    capture(lab, Kind::Redirect);
    adit.wait_ready(&lab.adit);
    adit.stop();
}

#[test]
fn without_the_rules_prefer_is_ready_and_warns() {
    isolated(|| {
        let lab = Lab::new();
        let mut adit = lab.adit(&settings(Kind::Redirect, "preserveSource: prefer"), MESH);
        adit.expect_log("source preservation is off");
        let metrics = get(&lab.adit, 15020, "/metrics").expect("metrics");
        for gauge in ["adit_preserve_source_ipv4 0", "adit_preserve_source_ipv6 0"] {
            assert!(metrics.contains(gauge), "{gauge}");
        }
        adit.stop();
    });
}

/// The kernel is made to hand over a connection that goes elsewhere, which the rules themselves never do.
fn misled(kind: Kind, lab: &Lab) {
    lab.client.ip("route add 198.51.100.9 via 10.77.0.2\nroute add 2001:db8:9::9 via fd77::2\n");
    let rule = |family: &str, to: &str| match kind {
        Kind::Redirect => format!("{family} daddr {to} tcp dport 8080 redirect to :15006"),
        Kind::Tproxy | Kind::Connect => {
            format!("{family} daddr {to} tcp dport 8080 tproxy {family} to :15006 meta mark set 0x112 accept")
        }
    };
    let hook = match kind {
        Kind::Redirect => "type nat hook prerouting priority -110",
        Kind::Tproxy | Kind::Connect => "type filter hook prerouting priority -160",
    };
    let rules = [rule("ip", "198.51.100.9"), rule("ip6", "2001:db8:9::9")].join("\n");
    lab.adit.nft(&format!("table inet misled {{\n chain in {{\n {hook}\n {rules}\n }}\n }}\n"));
}

#[test]
fn addresses_of_other_hosts_are_refused() {
    isolated(|| {
        for kind in KINDS {
            let lab = captured_lab(kind);
            misled(kind, &lab);
            let mut adit = lab.adit(&settings(kind, ""), MESH);
            adit.expect_log("not_local");
            let scene = Scene { lab, adit };
            for family in Family::BOTH {
                let to = SocketAddr::new(by_family(family, "198.51.100.9", "2001:db8:9::9"), 8080);
                let (address, end) = fate(&scene.lab.client, to);
                assert_eq!(end, End::Reset, "{kind} {family:?}");
                let record = scene.record(address);
                assert_eq!(record["close_reason"], "not_local", "{record}");
                assert_eq!(record["message"], "connection failed", "{record}");
                assert_eq!(record["dst.addr"], to.to_string(), "{record}");
            }
            assert_eq!(scene.metric("adit_connect_attempts_total", &[]), 0.0);
            scene.adit.stop();
        }
    });
}

/// A client that nobody answers must not keep anything open: the application's port is closed.
#[test]
fn a_closed_application_port_is_a_reset() {
    isolated(|| {
        for kind in KINDS {
            let mut scene = Scene::new(kind, "", MESH);
            scene.adit.expect_log("connect_refused");
            for family in Family::BOTH {
                let start = std::time::Instant::now();
                let (address, end) = fate(&scene.lab.client, at(&scene.lab.adit, family, 8081));
                assert_eq!(end, End::Reset, "{kind} {family:?}");
                assert!(start.elapsed() < Duration::from_secs(4), "a refusal is final at once");
                assert_eq!(scene.record(address)["close_reason"], "connect_refused");
            }
            scene.adit.stop();
        }
    });
}

#[test]
fn plaintext_that_is_denied_is_reset_except_for_the_ports_of_probes() {
    isolated(|| {
        let mut scene = Scene::new(Kind::Redirect, "inbound: { plaintext: deny, plaintextPorts: [8080] }", MESH);
        scene.adit.expect_log("plaintext_denied");
        let _denied = Door::open(&scene.lab.adit, 9090);
        let probed = Door::open(&scene.lab.adit, 8080);
        for family in Family::BOTH {
            let (client, end) = fate(&scene.lab.client, at(&scene.lab.adit, family, 9090));
            assert_eq!(end, End::Reset, "{family:?}");
            assert_eq!(scene.record(client)["close_reason"], "plaintext_denied");
            visit(&scene, family, &probed);
        }
        scene.adit.stop();
    });
}
