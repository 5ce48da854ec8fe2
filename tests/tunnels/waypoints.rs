//! A waypoint and a network gateway, both played by Envoy, between two adits.

use std::io::Read;
use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::bytes::{End, end, expect, random, send_and_finish};
use crate::envoy::Envoy;
use crate::envoy_config::{Entrance, HBONE, Tweaks, client, server};
use crate::kit::door::{Dial, talk};
use crate::kit::{Adit, Door, Host, LIMIT, isolated, isolated_within, until};
use crate::pki::{Leaf, spiffe};
use crate::relay::LONG;
use crate::world::{APP, FAR, Ground, KINDS, NEAR, adit, settings, wait_metric};

const VIP: [u8; 4] = [10, 99, 0, 1];
/// Inside Envoy, between its two halves.
const INSIDE: u16 = 18_080;
/// In another network, which only its gateway leads to.
const BEHIND_GATEWAY: &str =
    "services: { test/app.test: {} }, networkGateway: { destination: there/10.77.0.1, hboneMtlsPort: 15008 }";
/// The service account of what is in between.
const MIDDLE: &str = "middle";

/// Two adits in hosts `adit` and `server`, and Envoy between them in host `client`.
struct Between {
    ground: Ground,
    near: Adit,
    far: Adit,
    envoy: Envoy,
}

/// The near adit's mesh differs from the far one's where each sees the other through what is in between.
fn between(near_mesh: &str, far_mesh: &str, networks: [&str; 2], envoy: impl Fn(&Ground, &Leaf) -> Value) -> Between {
    let ground = Ground::new();
    let (lab, kind) = (&ground.lab, KINDS[0]);
    let middle = ground.pki.leaf(&ground.root, MIDDLE);
    let envoy = Envoy::start(&lab.client, &envoy(&ground, &middle), &Tweaks::default());
    let of = |network: &str| format!("network: \"{network}\"\n");
    let far = adit(&lab.server, kind, &settings(kind, FAR, &ground.far, &of(networks[1])), far_mesh);
    let near = adit(&lab.adit, kind, &settings(kind, NEAR, &ground.near, &of(networks[0])), near_mesh);
    Between { ground, near, far, envoy }
}

fn workload(name: &str, host: &str, more: &str) -> String {
    format!(
        "- {{ uid: {name}, name: {name}, namespace: test, serviceAccount: {name}, protocol: HBONE, workloadIps: [{host}]{more} }}\n"
    )
}

/// Where `cluster` leads instead of to the address in the authority.
fn lead(settings: &mut Value, to: SocketAddr) {
    settings["static_resources"]["clusters"][0] = json!({
        "name": "authority",
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": { "cluster_name": "authority", "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": {
            "socket_address": { "address": to.ip().to_string(), "port_value": to.port() },
        } } }] }] },
    });
}

/// Takes tunnels, and opens others to the far adit for what is in them.
fn waypoint(ground: &Ground, leaf: &Leaf) -> Value {
    let far = ground.lab.server.v4;
    let mut settings = server(leaf, &Tweaks::default());
    let authority = SocketAddr::from((far, APP)).to_string();
    let onward = Entrance { port: INSIDE, peer: (far, HBONE).into(), authority };
    let mut out = client(leaf, &spiffe(FAR), &[onward], &Tweaks::default());
    lead(&mut settings, ([127, 0, 0, 1], INSIDE).into());
    for what in ["listeners", "clusters"] {
        let more = out["static_resources"][what].as_array_mut().expect("a list").split_off(0);
        settings["static_resources"][what].as_array_mut().expect("a list").extend(more);
    }
    settings
}

/// Takes tunnels and carries what is in them to the far adit's own port for tunnels, without understanding it.
fn gateway(ground: &Ground, leaf: &Leaf) -> Value {
    let mut settings = server(leaf, &Tweaks::default());
    lead(&mut settings, (ground.lab.server.v4, HBONE).into());
    settings
}

/// The record of connection `number`, in the order in which they ended.
fn record(adit: &Adit, number: usize) -> Value {
    until(LIMIT, "an access record", || {
        let log = adit.log();
        let line = log.iter().filter(|line| line.contains("\"scope\":\"access\"")).nth(number - 1)?;
        Some(serde_json::from_str(line).expect("JSON"))
    })
}

/// Words, a large transfer each way by halves, and the server's end.
fn carries(from: &Host, to: SocketAddr, door: &Door) {
    let dial = || {
        let stream = Dial::default().connect(from, to).expect("captured");
        stream.set_read_timeout(Some(LIMIT)).expect("SO_RCVTIMEO");
        stream
    };
    let (mut client, mut server) = (dial(), door.accept().stream);
    talk(&mut client, &mut server);
    drop((client, server));
    let (mut client, mut server) = (dial(), door.accept().stream);
    let data = random(5, 3_000_000);
    std::thread::scope(|scope| {
        scope.spawn(|| send_and_finish(&mut client, &data));
        expect(&mut server, &data, End::Fin);
    });
    std::thread::scope(|scope| {
        scope.spawn(|| send_and_finish(&mut server, &data));
        let mut got = Vec::new();
        client.read_to_end(&mut got).expect("a clean end");
        assert!(got == data, "{} bytes", got.len());
    });
}

#[test]
fn a_workload_and_a_service_behind_a_waypoint() {
    isolated(|| {
        const SERVICE: &str = "services:\n- { name: app, namespace: test, hostname: app.test, vips: [/10.99.0.1], ports: { 80: 8080 }, \
             waypoint: { destination: /10.77.0.1, hboneMtlsPort: 15008 } }\n";
        // Only through the waypoint.
        const POLICY: &str = "policies:\n- { name: middle, namespace: test, scope: Namespace, action: Allow, dryRun: false, \
             rules: [[[{ principals: [{ exact: cluster.local/ns/test/sa/middle }] }]]] }\n";
        let behind = ", waypoint: { destination: /10.77.0.1, hboneMtlsPort: 15008 }, services: { test/app.test: {} }";
        let all =
            [workload(NEAR, "10.77.0.2", ""), workload(MIDDLE, "10.77.0.1", ""), workload(FAR, "10.77.0.3", behind)];
        let mesh = format!("workloads:\n{}{SERVICE}{POLICY}", all.concat());
        let Between { ground, near, far, envoy } = between(&mesh, &mesh, ["", ""], waypoint);
        let (lab, door) = (&ground.lab, Door::open(&ground.lab.server, APP));
        for (number, to, authority) in [
            (2, SocketAddr::from((lab.server.v4, APP)), "10.77.0.3:8080"),
            (4, SocketAddr::from((VIP, 80)), "10.99.0.1:80"),
        ] {
            carries(&lab.adit, to, &door);
            let (at_near, at_far) = (record(&near, number), record(&far, number));
            assert_eq!(at_near["dst.addr"], "10.77.0.1:15008", "{at_near}");
            assert_eq!((&at_near["dst.hbone_addr"], &at_near["dst.workload"]), (&json!(authority), &json!(MIDDLE)));
            assert_eq!(at_near["dst.identity"], spiffe(MIDDLE));
            assert_eq!(at_far["src.identity"], spiffe(MIDDLE), "{at_far}");
            let through = |record: &&Value| record["authority"] == authority && record["peer"] == spiffe(NEAR);
            until(LIMIT, "Envoy's records", || (envoy.records().iter().filter(through).count() == 2).then_some(()));
        }
        drop(door);
        near.stop();
        far.stop();
    });
}

/// It is never gone around: neither when the state does not have it nor when it does not answer.
#[test]
fn a_waypoint_that_is_not_there() {
    isolated(|| {
        let behind = |waypoint: &str| format!(", waypoint: {{ destination: /{waypoint}, hboneMtlsPort: 15008 }}");
        let all = |waypoint: &str| {
            let workloads = [
                workload(NEAR, "10.77.0.2", ""),
                workload(MIDDLE, "10.77.0.1", ""),
                workload(FAR, "10.77.0.3", &behind(waypoint)),
            ];
            format!("workloads:\n{}", workloads.concat())
        };
        let Between { ground, mut near, far, mut envoy } =
            between(&all("10.77.0.77"), &all("10.77.0.1"), ["", ""], waypoint);
        near.expect_log("waypoint_unavailable");
        near.expect_log("connect_refused");
        let (lab, door) = (&ground.lab, Door::open(&ground.lab.server, APP));
        let to = SocketAddr::from((lab.server.v4, APP));
        let fate = || match Dial::default().connect(&lab.adit, to) {
            Ok(mut stream) => {
                stream.set_read_timeout(Some(LIMIT)).expect("SO_RCVTIMEO");
                end(&mut stream)
            }
            Err(_reset) => End::Reset,
        };
        assert_eq!(fate(), End::Reset);
        wait_metric(&lab.adit, "adit_connections_closed_total{reason=\"waypoint_unavailable\"}", 1.0);
        near.replace("mesh.yaml", &all("10.77.0.1"));
        let applied = || near.log().iter().filter(|line| line.contains("mesh state applied")).count();
        until(LIMIT, "the new state", || (applied() == 2).then_some(()));
        let mut client = Dial::default().connect(&lab.adit, to).expect("captured");
        talk(&mut client, &mut door.accept().stream);
        drop(client);
        assert_eq!(record(&near, 2)["close_reason"], "finished");
        near.tolerate_log("tunnel closed");
        envoy.kill();
        assert_eq!(fate(), End::Reset);
        assert!(door.is_quiet(), "went around it");
        drop(door);
        near.stop();
        far.stop();
    });
}

/// What is in another network is reached by the name of its service, in a tunnel inside the one to its gateway.
#[test]
fn a_service_in_another_network() {
    isolated(|| {
        const SERVICE: &str = "services:\n- { name: app, namespace: test, hostname: app.test, vips: [here/10.99.0.1], ports: { 80: 8080 } }\n";
        let at = |network: &str, more: &str| format!(", network: {network}, services: {{ {more} }}");
        let gateway_at = ", network: there";
        let beyond = format!(
            "{}, networkGateway: {{ destination: there/10.77.0.1, hboneMtlsPort: 15008 }}",
            at("there", "test/app.test: {}")
        );
        let near_mesh = format!(
            "workloads:\n{}{}{}{SERVICE}",
            workload(NEAR, "10.77.0.2", &at("here", "")),
            workload(MIDDLE, "10.77.0.1", gateway_at),
            // Nobody here knows its address.
            workload(FAR, "", &beyond),
        );
        let far_mesh =
            format!("workloads:\n{}{SERVICE}", workload(FAR, "10.77.0.3", &at("there", "test/app.test: {}")));
        let Between { ground, near, far, envoy } = between(&near_mesh, &far_mesh, ["here", "there"], gateway);
        let (lab, door) = (&ground.lab, Door::open(&ground.lab.server, APP));
        carries(&lab.adit, SocketAddr::from((VIP, 80)), &door);
        let (at_near, at_far) = (record(&near, 2), record(&far, 2));
        assert_eq!(at_near["dst.addr"], "10.77.0.1:15008", "{at_near}");
        assert_eq!(at_near["dst.hbone_addr"], "app.test:80");
        assert_eq!(at_near["dst.identity"], spiffe(FAR), "of the inner tunnel");
        // What the far end says of itself, and to it the near one: neither state has the other's address.
        assert_eq!((&at_near["dst.workload"], &at_far["src.workload"]), (&json!(FAR), &json!(NEAR)));
        assert_eq!(
            (&at_far["src.identity"], &at_far["dst.service"]),
            (&json!(spiffe(NEAR)), &json!("app.test")),
            "{at_far}"
        );
        assert_eq!(at_near["bytes_sent"], at_far["bytes_recv"]);
        let through = |record: &Value| record["authority"] == "app.test:80" && record["peer"] == spiffe(NEAR);
        until(LIMIT, "Envoy's record", || envoy.records().iter().any(through).then_some(()));
        drop(door);
        near.stop();
        far.stop();
    });
}

/// Behind a gateway the far end sees the gateway's address. Whose it is in the own network says nothing there: the inner
/// CONNECT names ours, and the outer one, which the gateway reads, does not.
#[test]
fn only_the_inner_request_names_our_network() {
    const SERVICE: &str = "services:\n- { name: app, namespace: test, hostname: app.test, vips: [HERE/10.99.0.1], ports: { 80: 8080 } }\n";
    isolated_within(LONG, || {
        for here in ["here", ""] {
            let vip = SERVICE.replace("HERE", here);
            let near_mesh = format!(
                "workloads:\n{}{}{}{vip}",
                workload(NEAR, "10.77.0.2", &format!(", network: \"{here}\"")),
                workload(MIDDLE, "10.77.0.1", ", network: there"),
                workload(FAR, "", &format!(", network: there, {BEHIND_GATEWAY}")),
            );
            let far_mesh = format!(
                "workloads:\n{}{}{}",
                workload(FAR, "10.77.0.3", ", network: there, services: { test/app.test: {} }"),
                workload(MIDDLE, "10.77.0.1", ", network: there"),
                SERVICE.replace("HERE", "there"),
            );
            let Between { ground, near, far, envoy } = between(&near_mesh, &far_mesh, [here, "there"], gateway);
            let (lab, door) = (&ground.lab, Door::open(&ground.lab.server, APP));
            carries(&lab.adit, SocketAddr::from((VIP, 80)), &door);
            let at_far = record(&far, 2);
            assert_eq!((&at_far["src.workload"], &at_far["src.identity"]), (&json!(NEAR), &json!(spiffe(NEAR))));
            let outer = |record: &&Value| record["authority"] == "app.test:80" && record["network"].is_null();
            until(LIMIT, "Envoy's records", || (envoy.records().iter().filter(outer).count() == 2).then_some(()));
            drop(door);
            near.stop();
            far.stop();
        }
    });
}

/// The endpoint in our own network as long as it is there and well, else the one behind the gateway of another.
#[test]
fn failover_to_another_network() {
    const PREFERENCE: &str = "loadBalancer: { mode: Failover, routingPreferences: [Network] }";
    isolated_within(LONG, || {
        let service = format!(
            "services:\n- {{ name: app, namespace: test, hostname: app.test, vips: [here/10.99.0.1], ports: {{ 80: 8080 }}, {PREFERENCE} }}\n"
        );
        // The far one has room for a thousand times as many: only the preference keeps it out.
        let all = |local: &str| {
            format!(
                "workloads:\n{}{}{}{local}{service}",
                workload(NEAR, "10.77.0.2", ", network: here"),
                workload(MIDDLE, "10.77.0.1", ", network: there"),
                workload(FAR, "", &format!(", network: there, capacity: 1000, {BEHIND_GATEWAY}")),
            )
        };
        let local = |status: &str| {
            format!(
                "- {{ uid: local, name: local, namespace: test, network: here, workloadIps: [10.77.0.4], status: {status}, \
                 services: {{ test/app.test: {{}} }} }}\n"
            )
        };
        let far_mesh = format!(
            "workloads:\n{}{}",
            workload(FAR, "10.77.0.3", ", network: there, services: { test/app.test: {} }"),
            service.replace("here/", "there/")
        );
        let Between { ground, near, far, envoy: _envoy } =
            between(&all(&local("Healthy")), &far_mesh, ["here", "there"], gateway);
        let lab = &ground.lab;
        let host = lab.add_host("local", 4);
        let (at_local, at_far) = (Door::open(&host, APP), Door::open(&lab.server, APP));
        let mut number = 0;
        let mut leads_to = |meant: &Door, other: &Door, hop: &str| {
            for _ in 0..5 {
                let mut client = Dial::default().connect(&lab.adit, (VIP, 80).into()).expect("captured");
                talk(&mut client, &mut meant.accept().stream);
                drop(client);
                number += 1;
                assert_eq!(record(&near, number)["dst.addr"], hop);
            }
            assert!(other.is_quiet());
        };
        let publish = |text: &str| {
            near.replace("mesh.yaml", text);
            let mut reload = lab.adit.command(env!("CARGO_BIN_EXE_adit"));
            assert!(reload.args(["reload"]).output().expect("the binary under test").status.success());
        };
        let (here, there) = ("10.77.0.4:8080", "10.77.0.1:15008");
        leads_to(&at_local, &at_far, here);
        for gone in [local("Unhealthy"), local("Terminating"), String::new()] {
            publish(&all(&gone));
            leads_to(&at_far, &at_local, there);
            publish(&all(&local("Healthy")));
            leads_to(&at_local, &at_far, here);
        }
        drop((at_local, at_far));
        near.stop();
        far.stop();
    });
}
