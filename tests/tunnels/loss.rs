//! Peers that vanish, drain and come back, between adits.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};

use crate::bytes::{End, end, expect, send_and_finish};
use crate::envoy_config::HBONE;
use crate::kit::door::{Dial, talk};
use crate::kit::wait::pause;
use crate::kit::{Adit, Door, Host, LIMIT, isolated, isolated_within, until};
use crate::pki::Leaf;
use crate::relay::LONG;
use crate::serve::echo;
use crate::world::{APP, FAR, Ground, KINDS, NEAR, NO_RECORDS, adit, settings};

const OTHER: &str = "other";
const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
const SERVICE: u16 = 80;

/// A near adit, and two far ones that are endpoints of one service.
struct Three {
    ground: Ground,
    other: Leaf,
    mesh: String,
}

impl Three {
    fn new() -> Self {
        let ground = Ground::new();
        let other = ground.pki.leaf(&ground.root, OTHER);
        let lab = &ground.lab;
        let workload = |name: &str, host: &Host, services: &str| {
            format!(
                "- {{ uid: {name}, name: {name}, namespace: test, serviceAccount: {name}, protocol: HBONE, \
                 workloadIps: [{}]{services} }}\n",
                host.v4
            )
        };
        let member = format!(", services: {{ test/both.svc: {{ {SERVICE}: {APP} }} }}");
        let mesh = format!(
            "workloads:\n{}{}{}services:\n- {{ name: both, namespace: test, hostname: both.svc, vips: [/{VIP}], \
             ports: {{ {SERVICE}: {APP} }} }}\n",
            workload(NEAR, &lab.adit, ""),
            workload(FAR, &lab.server, &member),
            workload(OTHER, &lab.client, &member),
        );
        Self { ground, other, mesh }
    }

    fn near(&self, more: &str) -> Adit {
        self.start(&self.ground.lab.adit, NEAR, &self.ground.near, more)
    }

    fn far(&self, more: &str) -> Adit {
        self.start(&self.ground.lab.server, FAR, &self.ground.far, more)
    }

    fn other(&self, more: &str) -> Adit {
        self.start(&self.ground.lab.client, OTHER, &self.other, more)
    }

    fn start(&self, host: &Host, name: &str, leaf: &Leaf, more: &str) -> Adit {
        adit(host, KINDS[0], &settings(KINDS[0], name, leaf, more), &self.mesh)
    }
}

/// A peer from which nothing comes any more is dead after a PING's time, and its streams end by a reset, with their reason; those
/// to another peer go on, and the dead one is reached again when it is back.
#[test]
fn a_black_holed_peer() {
    const DEAD_AFTER: Duration = Duration::from_millis(500 + 1000);
    isolated(|| {
        let three = Three::new();
        let lab = &three.ground.lab;
        let pings = "workers: 1\ntunnel: { maxPerPeer: 1, pingInterval: 500ms, pingTimeout: 1s, connectTimeout: 1s }\nconnect: { timeout: 1s }";
        let near = three.near(pings);
        let (_far, other) = (three.far(NO_RECORDS), three.other(NO_RECORDS));
        let doors = [&lab.server, &lab.client].map(|host| Door::open(host, APP));
        let dial = |host: &Host, door: &Door| {
            let client = Dial::default().connect(&lab.adit, (host.v4, APP).into()).expect("captured");
            client.set_read_timeout(Some(LIMIT)).expect("SO_RCVTIMEO");
            let mut pair = (client, door.accept().stream);
            talk(&mut pair.0, &mut pair.1);
            pair
        };
        let mut lost: Vec<_> = (0..5).map(|_| dial(&lab.server, &doors[0])).collect();
        let mut kept = dial(&lab.client, &doors[1]);
        lab.server.black_hole(&format!("tcp dport {HBONE}"));
        let begun = Instant::now();
        thread::scope(|scope| {
            let ends: Vec<_> = lost.iter_mut().map(|(client, _)| scope.spawn(|| end(client))).collect();
            while !ends.iter().all(thread::ScopedJoinHandle::is_finished) {
                talk(&mut kept.0, &mut kept.1);
                pause(Duration::from_millis(20));
            }
            for ended in ends {
                assert_eq!(ended.join().expect("a reader"), End::Reset);
            }
        });
        let took = begun.elapsed();
        // By nothing else would they end before 10 s; the machine may be very busy.
        assert!(
            (DEAD_AFTER - Duration::from_millis(500)..DEAD_AFTER + Duration::from_secs(5)).contains(&took),
            "{took:?}"
        );
        let cause = near.wait_log("tunnel closed");
        assert!(cause.contains("\"cause\":\"ping_timeout\"") && cause.contains("\"streams_cut\":5"), "{cause}");
        let records = until(LIMIT, "five records", || {
            let log = near.log();
            let lost = log.iter().filter(|line| line.contains("\"close_reason\":\"tunnel_lost\"")).count();
            (lost == 5).then_some(lost)
        });
        assert_eq!(records, 5);
        lab.server.heal();
        drop(dial(&lab.server, &doors[0]));
        talk(&mut kept.0, &mut kept.1);
        drop((lost, kept));
        other.stop();
    });
}

/// Short connections to the service, one after another, by several at once.
fn load(host: &Host, stop: &AtomicBool, count: &AtomicU64) {
    while !stop.load(Ordering::Relaxed) {
        let mut stream = Dial::default().connect(host, SocketAddr::from((VIP, SERVICE))).expect("captured");
        stream.set_read_timeout(Some(LIMIT)).expect("SO_RCVTIMEO");
        send_and_finish(&mut stream, b"there and back");
        expect(&mut stream, b"there and back", End::Fin);
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Also where something between fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Two endpoints and a load on both, while `turn` does something to them, time and again; between, by what `turn` is given, a
/// hundred connections more must be carried. Not one may fail.
fn under_load(three: &Three, turn: impl FnOnce(&dyn Fn())) {
    let lab = &three.ground.lab;
    for host in [&lab.server, &lab.client] {
        echo(host, APP);
    }
    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| load(&lab.adit, &stop, &count));
        }
        let _stopped = Stop(&stop);
        let more = || {
            let before = count.load(Ordering::Relaxed);
            until(LIMIT, "a hundred connections more", || (count.load(Ordering::Relaxed) > before + 100).then_some(()));
        };
        more();
        turn(&more);
    });
}

/// Two endpoints drain and come back in turn: GOAWAY and the streams that are opened before it is heard of cross each other.
#[test]
fn endpoints_that_drain_under_load() {
    isolated_within(LONG, || {
        let three = Three::new();
        let near = three.near(NO_RECORDS);
        let mut far = Some(three.far(NO_RECORDS));
        let mut other = Some(three.other(NO_RECORDS));
        under_load(&three, |more| {
            for round in 0..6 {
                let (gone, start): (_, fn(&Three, &str) -> Adit) =
                    if round % 2 == 0 { (&mut far, Three::far) } else { (&mut other, Three::other) };
                let mut adit = gone.take().expect("it runs");
                kill_process(adit.pid(), Signal::TERM).expect("a running daemon");
                more();
                assert!(adit.wait(LIMIT).success(), "{}", adit.log().join("\n"));
                drop(adit);
                *gone = Some(start(&three, NO_RECORDS));
                more();
            }
        });
        assert!(near.log().iter().all(|line| !line.contains("panicked")));
        drop((far, other));
        near.stop();
    });
}

/// Two endpoints are upgraded in turn: the old version's GOAWAY and the new version's first tunnels cross what clients open.
#[test]
fn endpoints_that_are_upgraded_under_load() {
    isolated_within(LONG, || {
        let three = Three::new();
        let lab = &three.ground.lab;
        let near = three.near(NO_RECORDS);
        let ends = [(&lab.server, three.far(NO_RECORDS)), (&lab.client, three.other(NO_RECORDS))];
        under_load(&three, |more| {
            for round in 0..8 {
                let (host, adit) = &ends[round % 2];
                let output = host.command(env!("CARGO_BIN_EXE_adit")).arg("upgrade").output().expect("the binary");
                assert!(output.status.success(), "{output:?}\n{}", adit.log().join("\n"));
                more();
            }
        });
        for (_, adit) in &ends {
            assert!(adit.log().iter().any(|line| line.contains("taken over; the version before drains")));
        }
        near.stop();
    });
}
