//! Identities that end and workloads that change behind an address, names in the authority, and what both ends say of the
//! same connection.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

use crate::bytes::{End, end, expect, send_and_finish};
use crate::envoy::Envoy;
use crate::envoy_config::{Entrance, HBONE, Tweaks};
use crate::kit::daemon::get;
use crate::kit::door::{Dial, talk};
use crate::kit::wait::pause;
use crate::kit::{Adit, Door, Family, Host, LIMIT, isolated, isolated_within, until};
use crate::pki::{Leaf, spiffe};
use crate::relay::LONG;
use crate::world::{
    APP, FAR, Ground, KINDS, Manner, NEAR, NO_RECORDS, Side, World, adit, mesh, metric, settings, wait_metric,
};

/// In the subnet of the hosts, so that there is a route; nobody has it.
const VIP: &str = "10.77.0.88";
const SERVICE: &str = "far.test.svc.cluster.local";

/// [`mesh`], with a service of the far workload: port 80 by number, port 81 by a name that the workload maps.
fn mesh_with_service(near: &Host, far: &Host) -> String {
    let mapped = format!("serviceAccount: far, services: {{ test/{SERVICE}: {{ 80: {APP}, 81: {APP} }} }},");
    let service = format!(
        "services:\n- {{ name: far, namespace: test, hostname: {SERVICE}, vips: [{VIP}], ports: {{ 80: {APP}, 81: 0 }} }}\n"
    );
    mesh(near, far).replace("serviceAccount: far,", &mapped) + &service
}

fn limited(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(LIMIT)).expect("SO_RCVTIMEO");
    stream
}

fn records(adit: &Adit) -> Vec<Value> {
    let log = adit.log();
    let values = log.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    values.filter(|value| value["scope"] == "access").collect()
}

fn record(adit: &Adit, direction: &str) -> Value {
    until(LIMIT, &format!("a record of the {direction} connection"), || {
        pause(Duration::from_millis(15));
        records(adit).into_iter().find(|record| record["direction"] == direction)
    })
}

/// Eleven bytes there, 22 back, by the service's address: both ends count the same, and say who was at them.
#[test]
fn both_ends_count_exactly_and_name_each_other() {
    isolated_within(LONG, || {
        let ground = Ground::new();
        let (lab, kind) = (&ground.lab, KINDS[0]);
        let mesh = mesh_with_service(&lab.adit, &lab.server);
        let far = adit(&lab.server, kind, &settings(kind, FAR, &ground.far, ""), &mesh);
        let near = adit(&lab.adit, kind, &settings(kind, NEAR, &ground.near, ""), &mesh);
        let world = ground.world(["adit", "server"], Side::Adit(near), Side::Adit(far), World::ADITS);
        let door = Door::open(world.far_host(), APP);
        let vip: SocketAddr = format!("{VIP}:80").parse().expect("an address");
        let mut client = limited(Dial::default().connect(world.near_host(), vip).expect("captured"));
        let mut server = limited(door.accept().stream);
        send_and_finish(&mut client, &[b'u'; 11]);
        expect(&mut server, &[b'u'; 11], End::Fin);
        send_and_finish(&mut server, &[b'd'; 22]);
        expect(&mut client, &[b'd'; 22], End::Fin);
        drop((client, server));
        for (side, direction, sent, received) in [(&world.near, "outbound", 11, 22), (&world.far, "inbound", 22, 11)] {
            let record = record(side.adit(), direction);
            assert_eq!((&record["bytes_sent"], &record["bytes_recv"]), (&sent.into(), &received.into()), "{record}");
            assert_eq!(record["src.identity"], spiffe(NEAR), "{record}");
            assert_eq!(record["dst.identity"], spiffe(FAR), "{record}");
            assert_eq!(record["dst.service"], SERVICE, "{record}");
            assert_eq!(record["close_reason"], "finished", "{record}");
        }
        for (host, reporter) in [(world.near_host(), "source"), (world.far_host(), "destination")] {
            let labels = format!(
                "reporter=\"{reporter}\",connection_security_policy=\"mutual_tls\",source_principal=\"{}\",\
                 destination_principal=\"{}\",destination_service=\"{SERVICE}\"",
                spiffe(NEAR),
                spiffe(FAR)
            );
            wait_metric(host, &format!("istio_tcp_connections_closed_total{{{labels}}}"), 1.0);
            for (name, want) in [
                ("istio_tcp_connections_opened_total", 1.0),
                ("istio_tcp_received_bytes_total", 11.0),
                ("istio_tcp_sent_bytes_total", 22.0),
            ] {
                wait_metric(host, &format!("{name}{{{labels}}}"), want);
                assert!((metric(host, name) - want).abs() < 0.5, "there is no other series of {name}");
            }
        }
        world.stop();
    });
}

/// The authority may be the service's name, with a port that is mapped by number or by the workload.
#[test]
fn a_service_by_its_name() {
    isolated_within(LONG, || {
        let ground = Ground::new();
        let (lab, kind) = (&ground.lab, KINDS[0]);
        let mesh = mesh_with_service(&lab.client, &lab.adit);
        let far = adit(&lab.adit, kind, &settings(kind, FAR, &ground.far, ""), &mesh);
        let peer = SocketAddr::from((lab.adit.v4, HBONE));
        let entrance = |port: u16| Entrance { port: 20_000 + port, peer, authority: format!("{SERVICE}:{port}") };
        let entrances = [entrance(80), entrance(81)];
        let near = Envoy::hbone_client(&lab.client, &ground.near, &ground.far.id, &entrances, &Tweaks::default());
        let door = Door::open(&lab.adit, APP);
        for entrance in &entrances {
            let to = SocketAddr::from((Ipv4Addr::LOCALHOST, entrance.port));
            let mut client = limited(Dial::default().connect(&lab.client, to).expect("an entrance"));
            let mut server = limited(door.accept().stream);
            talk(&mut client, &mut server);
            send_and_finish(&mut client, b"");
            expect(&mut server, b"", End::Fin);
            drop((client, server));
            assert_eq!(near.wait_status(&entrance.authority), "200", "{}", entrance.authority);
        }
        let manner = Manner { refused: End::Fin, ..World::ENVOYS };
        ground.world(["client", "adit"], Side::Envoy(near), Side::Adit(far), manner).stop();
    });
}

/// Another workload has the address now: what goes to it never goes into a tunnel that was made to the one before.
#[test]
fn a_workload_that_is_another_one_gets_a_tunnel_of_its_own() {
    isolated_within(LONG, || {
        let one = "workers: 1\ntunnel: { maxPerPeer: 1 }";
        let world = World::adit_to_adit(KINDS[0], one);
        let door = Door::open(world.far_host(), APP);
        let (mut client, mut server) = world.pair(Family::V4, &door);
        talk(&mut client, &mut server);
        let (mut same, mut other) = world.pair(Family::V4, &door);
        talk(&mut same, &mut other);
        assert_eq!(world.tunnels(), 1);
        let text = mesh(world.near_host(), world.far_host());
        world.near.adit().replace("mesh.yaml", &text.replace("uid: far,", "uid: far-again,"));
        let (mut client_again, mut server_again) = until(LIMIT, "another tunnel", || {
            let pair = world.pair(Family::V4, &door);
            (world.tunnels() == 2).then_some(pair)
        });
        for (client, server) in
            [(&mut client, &mut server), (&mut same, &mut other), (&mut client_again, &mut server_again)]
        {
            talk(client, server);
        }
        let replaced = "adit_tunnels_closed_total{role=\"client\",reason=\"peer_replaced\"}";
        assert!(metric(world.near_host(), replaced) < 0.5, "streams that live are left alone");
        drop((client, server, same, other));
        wait_metric(world.near_host(), replaced, 1.0);
        talk(&mut client_again, &mut server_again);
        drop((client_again, server_again));
        // One that leaves altogether.
        world.near.adit().replace("mesh.yaml", text.split("- { uid: far,").next().expect("the near one"));
        wait_metric(world.near_host(), replaced, 2.0);
        drop(door);
        world.stop();
    });
}

/// The metrics port is no door: who may reach the workload may scrape its adit, through the tunnel, and that is a
/// connection to the workload like any other. Admin is refused.
#[test]
fn a_scrape_through_a_tunnel() {
    isolated(|| {
        let mut world = World::adit_to_adit(KINDS[0], "");
        for (side, refused) in [(&mut world.near, "tunnel_refused"), (&mut world.far, "loop_refused")] {
            let Side::Adit(adit) = side else { panic!("an adit") };
            adit.expect_log(refused);
        }
        let mut client = world.dial(Family::V4, 15020);
        client.write_all(b"GET /metrics HTTP/1.1\r\nHost: far\r\nConnection: close\r\n\r\n").expect("write");
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\nistio_build{"), "{answer}");
        drop(client);
        let record = record(world.far.adit(), "inbound");
        for (key, want) in [
            ("src.identity", spiffe(NEAR)),
            ("src.workload", NEAR.to_owned()),
            ("dst.identity", spiffe(FAR)),
            ("dst.workload", FAR.to_owned()),
            ("dst.hbone_addr", format!("{}:15020", world.far_host().v4)),
            ("close_reason", "finished".to_owned()),
        ] {
            assert_eq!(record[key], want, "{key} of {record}");
        }
        assert_eq!(record["bytes_sent"], answer.len(), "{record}");
        let labels = format!(
            "{{reporter=\"destination\",source_principal=\"{}\",destination_principal=\"{}\",\
             connection_security_policy=\"mutual_tls\"}}",
            spiffe(NEAR),
            spiffe(FAR)
        );
        for family in ["istio_tcp_connections_opened_total", "istio_tcp_connections_closed_total"] {
            wait_metric(world.far_host(), &format!("{family}{labels}"), 1.0);
        }
        assert_eq!(world.fate(Family::V4, 15000), End::Reset);
        world.stop();
    });
}

/// Past the end of the own certificate adit says so, begins nothing, and ends nothing; a new pair is all that it needs.
#[test]
fn a_certificate_that_expires() {
    const LIFE: &str = "15s";
    isolated_within(LONG, || {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let ground = Ground::new();
        let (lab, kind) = (&ground.lab, KINDS[0]);
        let mesh = mesh(&lab.adit, &lab.server);
        let far = adit(&lab.server, kind, &settings(kind, FAR, &ground.far, NO_RECORDS), &mesh);
        let short = ground.pki.short_lived(&ground.root, NEAR, LIFE);
        let file = |end: &str| folder.path().join("near").with_extension(end);
        let live = Leaf { cert: file("crt"), key: file("key"), ..short.clone() };
        let put = |leaf: &Leaf| {
            for (from, to) in [(&leaf.key, &live.key), (&leaf.cert, &live.cert)] {
                std::fs::copy(from, to).expect("our own folder");
            }
        };
        put(&short);
        let brief = "log: { format: json }\nconnect: { deadline: 2s, timeout: 2s }";
        let near = adit(&lab.adit, kind, &settings(kind, NEAR, &live, brief), &mesh);
        let world = ground.world(["adit", "server"], Side::Adit(near), Side::Adit(far), World::ADITS);
        let door = Door::open(world.far_host(), APP);
        let (mut client, mut server) = world.pair(Family::V4, &door);
        talk(&mut client, &mut server);
        let ready = || get(world.near_host(), 15021, "/healthz/ready").unwrap_or_default();
        until(LIMIT * 3, "it is not ready any more", || {
            pause(Duration::from_millis(50));
            let answer = ready();
            (!answer.starts_with("HTTP/1.1 200")).then(|| assert!(answer.contains("identity"), "{answer}"))
        });
        let status = get(world.near_host(), 15020, "/metrics").expect("metrics");
        assert!(status.contains("adit_cert_expiry_timestamp_seconds"), "{status}");
        assert_eq!(world.fate(Family::V4, APP), End::Reset);
        let near = world.near.adit();
        let refused = record(near, "outbound");
        assert_eq!(refused["close_reason"], "no_identity", "{refused}");
        assert!(near.log().iter().any(|line| line.contains("expired at")), "it says so");
        talk(&mut client, &mut server);
        put(&world.pki.leaf_for(&world.root, "near-new", &spiffe(NEAR)));
        until(LIMIT, "it is ready again", || ready().starts_with("HTTP/1.1 200").then_some(()));
        let (mut again, mut heard) = world.pair(Family::V4, &door);
        talk(&mut again, &mut heard);
        talk(&mut client, &mut server);
        wait_metric(world.near_host(), "istio_tcp_connections_closed_total{response_flags=\"IDENTITY_ERROR\"}", 1.0);
        client.write_all(b"to the end").expect("write");
        server.read_exact(&mut [0; 10]).expect("read");
        drop((client, again));
        assert_eq!((end(&mut server), end(&mut heard)), (End::Fin, End::Fin));
    });
}

#[test]
fn a_second_adit_cannot_have_the_port_of_tunnels() {
    isolated(|| {
        let world = World::adit_to_adit(KINDS[0], NO_RECORDS);
        let door = Door::open(world.far_host(), APP);
        let (mut client, mut server) = world.pair(Family::V4, &door);
        let leaf = world.pki.leaf_at(&world.root, FAR);
        let off = "listen: { admin: off, metrics: off, readiness: off, outbound: '127.0.0.1:16001', inbound: off }";
        let mesh = mesh(world.near_host(), world.far_host());
        let mut second = Adit::start(world.far_host(), &settings(KINDS[0], FAR, &leaf, off), &mesh);
        let status = second.wait(LIMIT);
        let log = second.log().join("\n");
        assert_eq!(status.code(), Some(1), "{log}");
        for wanted in ["listener hbone", "[::]:15008", "Address already in use", "os error 98"] {
            assert!(log.contains(wanted), "{wanted}: {log}");
        }
        talk(&mut client, &mut server);
        drop((client, server));
        world.stop();
    });
}
