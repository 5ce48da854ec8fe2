//! Not one byte is lost, added or changed, whichever way bytes are moved, and every byte is counted once, while it flows.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use adit::net::redirect::Kind;
use serde_json::Value;

use crate::bytes::{End, expect, random};
use crate::kit::wait::pause;
use crate::kit::{Door, Family, LIMIT, isolated, until};
use crate::scene::{MESH, Scene, at};

const CONNECTIONS: usize = 16;
/// Each way, about; every connection has its own number.
const BYTES: usize = 3 << 20;

fn len(connection: usize, way: usize) -> usize {
    BYTES + connection * 10_007 + way * 5_003
}

/// Writes all of `bytes` in pieces of random sizes, small and large, then a FIN.
fn send(mut stream: TcpStream, seed: u64, bytes: &[u8]) {
    let mut sizes = fastrand::Rng::with_seed(seed);
    let mut rest = bytes;
    while !rest.is_empty() {
        let size = if sizes.bool() { sizes.usize(1..2_000) } else { sizes.usize(1..300_000) };
        let (piece, later) = rest.split_at(size.min(rest.len()));
        stream.write_all(piece).expect("write");
        rest = later;
    }
    stream.shutdown(std::net::Shutdown::Write).expect("shutdown");
}

pub(crate) fn random_data_both_ways(kind: Kind, zero_copy: &str) {
    let scene = Scene::new(kind, &format!("relay: {{ zeroCopy: {zero_copy} }}"), MESH);
    let door = Door::open(&scene.lab.server, 8080);
    let pairs: Vec<_> = (0..CONNECTIONS)
        .map(|index| {
            let (application, accepted) = scene.pair(at(&scene.lab.server, Family::BOTH[index % 2], 8080), &door);
            (application, accepted.stream)
        })
        .collect();
    thread::scope(|scope| {
        for (index, (application, server)) in pairs.iter().enumerate() {
            for (way, from, to) in [(0, application, server), (1, server, application)] {
                let seed = u64::try_from(2 * index + way).expect("small");
                let clone = |stream: &TcpStream| stream.try_clone().expect("a second descriptor");
                let (from, mut to) = (clone(from), clone(to));
                scope.spawn(move || send(from, seed, &random(seed, len(index, way))));
                scope.spawn(move || expect(&mut to, &random(seed, len(index, way)), End::Fin));
            }
        }
    });
    let mut sums = [0, 0];
    for (index, (application, _)) in pairs.iter().enumerate() {
        let record = scene.record(application.local_addr().expect("an address"));
        let counted = [&record["bytes_sent"], &record["bytes_recv"]].map(|bytes| bytes.as_u64().expect("a number"));
        let moved = [0, 1].map(|way| u64::try_from(len(index, way)).expect("small"));
        assert_eq!(counted, moved, "{record}");
        sums = [sums[0] + moved[0], sums[1] + moved[1]];
    }
    // Every number here is far below what a float holds exactly.
    for (name, sum) in [("istio_tcp_received_bytes_total", sums[0]), ("istio_tcp_sent_bytes_total", sums[1])] {
        let sum = u32::try_from(sum).expect("below 4 GiB");
        scene.wait_metric(name, &["destination_workload=\"server-1\""], f64::from(sum));
    }
    scene.adit.stop();
}

#[test]
fn random_data_arrives_unchanged_with_splice_redirect() {
    isolated(|| random_data_both_ways(Kind::Redirect, "auto"));
}

#[test]
fn random_data_arrives_unchanged_with_splice_tproxy() {
    isolated(|| random_data_both_ways(Kind::Tproxy, "auto"));
}

#[test]
fn random_data_arrives_unchanged_without_splice_redirect() {
    isolated(|| random_data_both_ways(Kind::Redirect, "off"));
}

#[test]
fn random_data_arrives_unchanged_without_splice_tproxy() {
    isolated(|| random_data_both_ways(Kind::Tproxy, "off"));
}

fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

/// A transfer that takes its time: what has gone is counted before it ends, on the metrics and in the connection table.
fn counters_advance(zero_copy: &str, piece: usize) {
    let scene = Scene::new(Kind::Redirect, &format!("relay: {{ zeroCopy: {zero_copy} }}"), MESH);
    let (application, server) = scene.through(Family::V4);
    let labels = ["destination_workload=\"server-1\""];
    let mut received = vec![0; piece];
    for round in 1..=3_u32 {
        let sum = f64::from(round) * f64::from(u32::try_from(piece).expect("small"));
        for (from, to, name, key) in [
            (&application, &server, "istio_tcp_received_bytes_total", "bytesFromDownstream"),
            (&server, &application, "istio_tcp_sent_bytes_total", "bytesFromUpstream"),
        ] {
            let (mut from, mut to) = (from, to);
            let bytes = random(u64::from(round), piece);
            thread::scope(|scope| {
                scope.spawn(|| from.write_all(&bytes).expect("write"));
                to.read_exact(&mut received).expect("all of it");
            });
            assert!(received == bytes);
            scene.wait_metric(name, &labels, sum);
            let connections = scene.connections();
            assert_eq!(connections.len(), 1);
            assert_eq!(number(&connections[0][key]), sum, "{key}");
        }
        assert_eq!(scene.metric("istio_tcp_connections_closed_total", &labels), 0.0, "still open");
    }
    drop((application, server));
    scene.wait_metric("istio_tcp_connections_closed_total", &labels, 1.0);
    scene.adit.stop_within(Duration::from_secs(10));
}

#[test]
fn counters_advance_during_a_transfer() {
    isolated(|| {
        counters_advance("auto", 1_000);
        counters_advance("auto", 4 << 20);
        counters_advance("off", 4 << 20);
    });
}

/// How many pipe ends the daemon has.
fn pipe_ends(scene: &Scene) -> usize {
    let folder = format!("/proc/{}/fd", scene.adit.pid().as_raw_nonzero());
    let entries = fs::read_dir(&folder).expect("our child").map_while(Result::ok);
    entries
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .filter(|target| target.to_string_lossy().starts_with("pipe:"))
        .count()
}

/// The tests above mean what they say only if bulk takes the way that the setting names: pipes, or none.
#[test]
fn bulk_goes_through_pipes_where_it_may() {
    isolated(|| {
        for (zero_copy, spliced) in [("auto", true), ("off", false)] {
            let scene = Scene::new(Kind::Redirect, &format!("relay: {{ zeroCopy: {zero_copy} }}"), MESH);
            let idle = pipe_ends(&scene);
            let (application, mut server) = scene.through(Family::V4);
            let bytes = random(9, 32 << 20);
            thread::scope(|scope| {
                scope.spawn(|| send(application, 9, &bytes));
                // The server does not read yet: what adit holds stays with it.
                let mut known = 0.0;
                until(LIMIT, "the transfer to stand still", || {
                    pause(Duration::from_millis(600));
                    let now = scene.metric("istio_tcp_received_bytes_total", &[]);
                    (now > 300_000.0 && (now - std::mem::replace(&mut known, now)).abs() < 0.5).then_some(())
                });
                assert_eq!(pipe_ends(&scene) > idle, spliced, "zeroCopy: {zero_copy}");
                expect(&mut server, &bytes, End::Fin);
            });
            drop(server);
            scene.adit.stop();
        }
    });
}
