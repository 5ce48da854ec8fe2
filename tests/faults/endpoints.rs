//! Endpoints that fail, are full, or leave the state: who is connected to, and what becomes of open connections.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::kit::door::Dial;
use crate::kit::{Door, LIMIT, isolated, until};
use crate::world::{Pair, SLACK, World, expect_refusal, expect_reset};

const VIP: ([u8; 4], u16) = ([10, 99, 0, 1], 80);
const PORTS: [u16; 2] = [8001, 8002];

/// A service (with more `keys`) whose endpoints are these ports of host `server`, each a workload of its own.
fn mesh(ports: &[u16], keys: &str) -> String {
    let mut text = format!(
        "services:\n- {{ name: echo, namespace: default, hostname: echo.test, vips: [/10.99.0.1], ports: {{ 80: 0 }}, {keys} }}\nworkloads:\n\
         - {{ uid: other, name: other, namespace: default, workloadIps: [10.77.0.99] }}\n"
    );
    for port in ports {
        text.push_str(&format!(
            "- {{ uid: echo-{port}, name: echo-{port}, namespace: default, workloadIps: [10.77.0.3], \
             services: {{ default/echo.test: {{ 80: {port} }} }} }}\n"
        ));
    }
    text
}

fn dial(world: &World) -> std::io::Result<TcpStream> {
    Dial::default().connect(&world.lab.adit, SocketAddr::from(VIP))
}

/// Connects to the service; says which of the doors it led to.
fn reach(world: &World, doors: &[Door]) -> (usize, Pair) {
    let client = dial(world).expect("the capture door accepts");
    until(LIMIT, "an endpoint to accept", || {
        let at = doors.iter().position(|door| !door.is_quiet())?;
        let mut pair = Pair { client: client.try_clone().expect("a descriptor"), server: doors[at].accept().stream };
        pair.talk();
        Some((at, pair))
    })
}

/// One of two is frozen: it takes two connections to know, and from then on nobody waits for it but one at a time, to see whether it
/// is back.
#[test]
fn a_frozen_backend_is_left_alone_after_two_failures() {
    isolated(|| {
        const CONNECTIONS: usize = 300;
        let settings = "workers: 1\nconnect: { timeout: 300ms }\nbalance: { ejectTime: 2m }\n";
        let world = World::with_mesh(settings, &mesh(&PORTS, ""));
        world.lab.server.black_hole(&format!("tcp dport {}", PORTS[0]));
        let alive = [Door::open(&world.lab.server, PORTS[1])];
        let mut waited = 0;
        for _ in 0..CONNECTIONS {
            let client = dial(&world).expect("the capture door accepts");
            let mut pair = Pair { client, server: alive[0].accept().stream };
            pair.talk();
            let port = pair.client.local_addr().expect("an address").port();
            drop(pair);
            let record = world.closing_of(port, LIMIT);
            waited += usize::from(record.0.contains("connect_timeout"));
        }
        assert!((1..=3).contains(&waited), "{waited} of {CONNECTIONS} have waited for the frozen one");
        assert_eq!(world.metric("adit_endpoints_ejected"), 1.0);
        assert_eq!(world.metric("adit_endpoint_ejections_total"), 1.0);
        world.adit.wait_log("endpoint ejected");
        world.adit.stop();
    });
}

#[test]
fn an_ejected_endpoint_comes_back_when_it_works() {
    isolated(|| {
        let settings = "workers: 1\nconnect: { timeout: 300ms }\nbalance: { ejectAfter: 1, ejectTime: 1s }\n";
        let world = World::with_mesh(settings, &mesh(&PORTS, ""));
        world.lab.server.black_hole(&format!("tcp dport {}", PORTS[0]));
        let doors = PORTS.map(|port| Door::open(&world.lab.server, port));
        until(LIMIT, "the silent one to be ejected", || {
            drop(reach(&world, &doors));
            (world.metric("adit_endpoints_ejected") > 0.5).then_some(())
        });
        world.lab.server.heal();
        until(LIMIT, "it to be connected to again", || (reach(&world, &doors).0 == 0).then_some(()));
        world.wait_metric("adit_endpoints_ejected", 0.0);
        world.adit.wait_log("works again");
        world.adit.stop();
    });
}

#[test]
fn an_endpoint_takes_so_many_connections_and_a_service_so_many() {
    isolated(|| {
        let mut world = World::with_mesh("workers: 2\n", &mesh(&PORTS, "maxConnections: { perEndpoint: 2 }"));
        world.adit.expect_log("endpoint_limit");
        world.adit.expect_log("service_limit");
        let doors = PORTS.map(|port| Door::open(&world.lab.server, port));
        let mut open: Vec<(usize, Pair)> = (0..4).map(|_| reach(&world, &doors)).collect();
        assert_eq!(open.iter().filter(|(at, _)| *at == 0).count(), 2, "two each");
        let mut refused = dial(&world);
        if let Ok(client) = &mut refused {
            expect_reset(client, LIMIT);
        }
        world.wait_metric("adit_connections_refused_total{scope=\"endpoint\"}", 1.0);
        // The next one after one has ended gets in, where there is room.
        let (freed, pair) = open.swap_remove(1);
        let port = pair.client.local_addr().expect("an address").port();
        drop(pair);
        world.closing_of(port, LIMIT);
        open.push(reach(&world, &doors));
        assert_eq!(open.last().map(|(at, _)| *at), Some(freed));

        crate::world::replace(
            &world.adit.folder().join("mesh.yaml"),
            &mesh(&PORTS, "maxConnections: { perService: 5, perEndpoint: 10 }"),
        );
        world.json(&["reload", "--json"]);
        open.push(reach(&world, &doors));
        expect_refusal(dial(&world));
        world.wait_metric("adit_connections_refused_total{scope=\"service\"}", 1.0);
        for (_, pair) in &mut open {
            pair.talk();
        }
        drop(open);
        world.adit.stop();
    });
}

#[test]
fn connections_to_an_endpoint_that_has_left() {
    isolated(|| {
        for (setting, cut_after) in [("keep", None), ("drain 2s", Some(2)), ("close", Some(0))] {
            let world = World::with_mesh(&format!("onEndpointRemoved: {setting}\n"), &mesh(&PORTS, ""));
            let doors = PORTS.map(|port| Door::open(&world.lab.server, port));
            let mut pairs: Vec<(usize, Pair)> = Vec::new();
            until(LIMIT, "one connection to each", || {
                let (at, pair) = reach(&world, &doors);
                if pairs.iter().all(|(other, _)| *other != at) {
                    pairs.push((at, pair));
                }
                (pairs.len() == 2).then_some(())
            });
            pairs.sort_by_key(|(at, _)| *at);
            let start = std::time::Instant::now();
            crate::world::replace(&world.adit.folder().join("mesh.yaml"), &mesh(&PORTS[1..], ""));
            world.wait_metric("adit_connections_to_removed_endpoints", 1.0);
            let (_, mut gone) = pairs.remove(0);
            match cut_after {
                None => gone.talk(),
                Some(seconds) => {
                    expect_reset(&mut gone.client, LIMIT);
                    expect_reset(&mut gone.server, LIMIT);
                    let took = start.elapsed();
                    assert!(took >= Duration::from_secs(seconds), "{took:?}");
                    assert!(took < Duration::from_secs(seconds) + SLACK, "{took:?}");
                    assert_eq!(world.closing(&gone.client, LIMIT).reason(), "endpoint_removed");
                    world.wait_metric("adit_connections_to_removed_endpoints", 0.0);
                }
            }
            pairs[0].1.talk();
            // New ones go to whoever is left.
            assert_eq!(reach(&world, &doors).0, 1);
            drop((gone, pairs));
            world.adit.stop();
        }
    });
}
