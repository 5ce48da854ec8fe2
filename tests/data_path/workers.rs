//! How connections are spread over workers, and which options their sockets have.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::kit::{Door, Family, LIMIT, isolated, until};
use crate::scene::{KINDS, MESH, Scene, accept, at, dial};

const CONNECTIONS: usize = 300;
/// The number of the worker that accepted it is in a connection's id, above these bits.
const WORKER_SHIFT: u32 = 48;

#[test]
fn no_worker_holds_much_more_than_its_share() {
    isolated(|| {
        for kind in KINDS {
            let scene = Scene::new(kind, "workers: 2", MESH);
            let door = Door::open(&scene.lab.server, 8080);
            let held: Vec<_> =
                (0..CONNECTIONS).map(|_| scene.pair(at(&scene.lab.server, Family::V4, 8080), &door)).collect();
            let connections = scene.connections();
            assert_eq!(connections.len(), CONNECTIONS);
            let mut by_worker = BTreeMap::<u64, usize>::new();
            for connection in &connections {
                *by_worker.entry(connection["id"].as_u64().expect("a number") >> WORKER_SHIFT).or_default() += 1;
            }
            assert_eq!(by_worker.len(), 2, "{by_worker:?}");
            assert!(by_worker.values().all(|count| count * 100 <= CONNECTIONS * 65), "{by_worker:?}");
            drop(held);
            scene.wait_metric("adit_connections_open", &[], 0.0);
            scene.adit.stop();
        }
    });
}

/// What `ss` says of established sockets in host `adit` that have `address` at the other end.
fn keepalive_timer(scene: &Scene, peer: SocketAddr) -> Option<u64> {
    let filter = format!("dst = {peer}");
    let text = scene.lab.adit.output("ss", &["-Htno", "state", "established", &filter]);
    // Only adit's: the application's own socket has no timer.
    let timer = text.lines().find_map(|line| line.split("timer:(keepalive,").nth(1))?;
    // `39sec`, or `1min5sec`.
    let time = timer.split(',').next()?;
    let (minutes, seconds) = time.split_once("min").unwrap_or(("0", time));
    let seconds = seconds.trim_end_matches("sec");
    let whole = seconds.split('.').next().unwrap_or(seconds);
    Some(minutes.parse::<u64>().ok()? * 60 + if whole.is_empty() { 0 } else { whole.parse::<u64>().ok()? })
}

/// Both legs of an idle connection are probed after `keepalive.idle`, not after the system's two hours.
#[test]
fn both_legs_of_an_idle_connection_are_kept_alive() {
    isolated(|| {
        for kind in KINDS {
            let scene = Scene::new(kind, "keepalive: { idle: 50s, interval: 5s, probes: 3, userTimeout: 70s }", MESH);
            let server = Door::open(&scene.lab.server, 8080);
            let beside = Door::open(&scene.lab.adit, 8080);
            for family in Family::BOTH {
                let _outbound = scene.pair(at(&scene.lab.server, family, 8080), &server);
                let (client, inbound) = (dial(&scene.lab.client, at(&scene.lab.adit, family, 8080)), accept(&beside));
                // The upstream leg of the one, the downstream leg of the other, and the upstream leg of that.
                for peer in
                    [at(&scene.lab.server, family, 8080), client.local_addr().expect("an address"), inbound.local]
                {
                    let seconds = until(LIMIT, &format!("a keepalive timer on the connection with {peer}"), || {
                        keepalive_timer(&scene, peer).filter(|seconds| *seconds > 0)
                    });
                    assert!((35..=50).contains(&seconds), "{peer}: {seconds} s");
                }
            }
            scene.adit.stop();
        }
    });
}
