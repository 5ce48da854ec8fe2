//! Certificates that change under load: new leaves, new roots, revocations; between adits, whose files are written as they run.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::bytes::{End, end, expect, send_and_finish};
use crate::kit::door::{Dial, talk};
use crate::kit::wait::pause;
use crate::kit::{Adit, Door, Family, LIMIT, isolated, isolated_within, until};
use crate::pki::{Leaf, spiffe};
use crate::relay::{self, LONG};
use crate::serve::echo;
use crate::world::{APP, FAR, Ground, KINDS, NEAR, NO_RECORDS, Side, World, adit, mesh, settings, wait_metric};

/// Beside [`APP`], where an echo is.
const LONG_LIVED: u16 = 8081;

/// Files that an adit reads, written again while it runs.
struct Files(Leaf);

impl Files {
    /// Copies of the first ones, in a folder of their own.
    fn new(folder: &Path, name: &str, first: &Leaf) -> Self {
        let file = |end: &str| folder.join(format!("{name}-live")).with_extension(end);
        let files = Self(Leaf { cert: file("crt"), key: file("key"), roots: file("roots"), ..first.clone() });
        files.put(first, true);
        files.trust(&first.roots);
        files
    }

    /// One file after the other, as a script would. Where the machine takes its time between the two, adit sees half a pair.
    fn put(&self, leaf: &Leaf, key_first: bool) {
        let halves = [(&leaf.key, &self.0.key), (&leaf.cert, &self.0.cert)];
        let order = if key_first { [0, 1] } else { [1, 0] };
        for index in order {
            fs::copy(halves[index].0, halves[index].1).expect("our own folder");
        }
    }

    fn trust(&self, roots: &Path) {
        replace(roots, &self.0.roots);
    }
}

/// At once: half a file would be a fault of its own.
fn replace(from: &Path, to: &Path) {
    let beside = to.with_extension("new");
    fs::copy(from, &beside).expect("our own folder");
    fs::rename(&beside, to).expect("the same folder");
}

/// What adit says of half a pair, or half a file.
const HALF: &str = "the old certificate stays";

/// Two adits whose files can be written.
fn rotating(ground: Ground, folder: &Path) -> (World, [Files; 2]) {
    let files = [Files::new(folder, NEAR, &ground.near), Files::new(folder, FAR, &ground.far)];
    let (lab, kind) = (&ground.lab, KINDS[0]);
    let mesh = mesh(&lab.adit, &lab.server);
    let mut far = adit(&lab.server, kind, &settings(kind, FAR, &files[1].0, NO_RECORDS), &mesh);
    let mut near = adit(&lab.adit, kind, &settings(kind, NEAR, &files[0].0, NO_RECORDS), &mesh);
    far.tolerate_log(HALF);
    near.tolerate_log(HALF);
    (ground.world(["adit", "server"], Side::Adit(near), Side::Adit(far), World::ADITS), files)
}

/// Runs `change` while short connections come and go, and while a long one lives. None of them fails. `change` is given what
/// waits for some more of them.
fn under_load(world: &World, change: impl FnOnce(&dyn Fn())) {
    echo(world.far_host(), APP);
    let door = Door::open(world.far_host(), LONG_LIVED);
    let to = SocketAddr::new(world.far_host().address(Family::V4), LONG_LIVED);
    let mut client = Dial::default().connect(world.near_host(), to).expect("captured");
    client.set_read_timeout(Some(LIMIT)).expect("SO_RCVTIMEO");
    let mut server = door.accept().stream;
    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for family in [Family::V4, Family::V6, Family::V4] {
            let (stop, count) = (&stop, &count);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    relay::echoed(world, family);
                    count.fetch_add(1, Ordering::Relaxed);
                    pause(Duration::from_millis(3));
                }
            });
        }
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                talk(&mut client, &mut server);
                pause(Duration::from_millis(20));
            }
        });
        let _stopped = Stop(&stop);
        let more = || {
            let before = count.load(Ordering::Relaxed);
            until(LIMIT, "more connections", || (count.load(Ordering::Relaxed) > before + 20).then_some(()));
        };
        change(&more);
    });
    assert!(count.load(Ordering::Relaxed) > 100, "{count:?} connections are no load");
    send_and_finish(&mut client, b"to the end");
    expect(&mut server, b"to the end", End::Fin);
}

/// Also where a change fails: else the load would go on for ever.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn published(adit: &Adit) -> usize {
    adit.log().iter().filter(|line| line.contains("credentials published")).count()
}

fn wait_published(world: &World, before: [usize; 2]) {
    for (side, before) in [&world.near, &world.far].into_iter().zip(before) {
        until(LIMIT, "new credentials", || (published(side.adit()) > before).then_some(()));
    }
}

fn generations(world: &World) -> [usize; 2] {
    [published(world.near.adit()), published(world.far.adit())]
}

/// A new leaf every second at both ends, in files that are written one after the other, in either order.
#[test]
fn a_leaf_every_second() {
    const LEAVES: usize = 12;
    isolated_within(LONG, || {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (world, files) = rotating(Ground::new(), folder.path());
        under_load(&world, |more| {
            for round in 0..LEAVES {
                let begun = Instant::now();
                for (name, files) in [NEAR, FAR].into_iter().zip(&files) {
                    let leaf = world.pki.leaf_for(&world.root, &format!("{name}-{round}"), &spiffe(name));
                    files.put(&leaf, round % 2 == 0);
                }
                more();
                pause(Duration::from_secs(1).saturating_sub(begun.elapsed()));
            }
        });
        for seen in generations(&world) {
            assert!(seen > LEAVES / 2, "only {seen} of {LEAVES} leaves were taken up");
        }
        world.stop();
    });
}

/// From root A to root B: first both are trusted, then each end gets a leaf of B, then A goes.
#[test]
fn another_root() {
    isolated_within(LONG, || {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (world, files) = rotating(Ground::new(), folder.path());
        let other = world.pki.root("root-b");
        let both = world.pki.bundle("both", &[&world.root, &other]);
        let leaves = [NEAR, FAR].map(|name| world.pki.leaf(&other, name));
        under_load(&world, |more| {
            let settle = || {
                pause(Duration::from_millis(500));
                more();
            };
            let before = generations(&world);
            files.iter().for_each(|files| files.trust(&both));
            wait_published(&world, before);
            settle();
            let before = generations(&world);
            for (files, leaf) in files.iter().zip(&leaves) {
                files.put(leaf, true);
                settle();
            }
            wait_published(&world, before);
            settle();
            let before = generations(&world);
            files.iter().for_each(|files| files.trust(&other.cert()));
            wait_published(&world, before);
            settle();
        });
        world.stop();
    });
}

/// A revoked peer is cut in mid-life, on every tunnel of its own and on no other's, and comes in no more.
#[test]
fn a_peer_that_is_revoked() {
    isolated(|| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let ground = Ground::new();
        let (lab, kind) = (&ground.lab, KINDS[0]);
        let list = folder.path().join("live.crl");
        fs::copy(ground.pki.revocations("none", &ground.root, &[]), &list).expect("our own folder");
        let other = ground.pki.leaf(&ground.root, "third");
        let third_workload = format!(
            "- {{ uid: third, name: third, namespace: test, serviceAccount: third, protocol: HBONE, workloadIps: [{}] }}\n",
            lab.client.v4
        );
        let mesh = mesh(&lab.adit, &lab.server) + &third_workload;
        let crls = format!("crls: ['{}'], roots:", list.display());
        // With records: they tell why.
        let far = adit(&lab.server, kind, &settings(kind, FAR, &ground.far, "").replace("roots:", &crls), &mesh);
        let near = adit(&lab.adit, kind, &settings(kind, NEAR, &ground.near, NO_RECORDS), &mesh);
        let third = adit(&lab.client, kind, &settings(kind, "third", &other, NO_RECORDS), &mesh);
        let world = ground.world(["adit", "server"], Side::Adit(near), Side::Adit(far), World::ADITS);
        let door = Door::open(world.far_host(), APP);
        let to = SocketAddr::from((world.far_host().v4, APP));
        let mut innocent = Dial::default().connect(&world.lab.client, to).expect("captured");
        let mut heard = door.accept().stream;
        talk(&mut innocent, &mut heard);
        let mut pairs: Vec<_> = Family::BOTH.map(|family| world.pair(family, &door)).into();
        for (client, server) in &mut pairs {
            talk(client, server);
        }
        let revoked = world.pki.leaf_at(&world.root, NEAR);
        let revocations = world.pki.revocations("near", &world.root, &[&revoked]);
        let written = Instant::now();
        replace(&revocations, &list);
        for (client, server) in &mut pairs {
            assert_eq!((end(client), end(server)), (End::Reset, End::Reset));
        }
        // A second from when it is seen; another at most for the watcher, until events have settled and two looks agree; and one
        // for a machine that is busy. Without an event it would look after 5 s.
        let took = written.elapsed();
        assert!(took < Duration::from_secs(3), "{took:?}");
        assert_eq!(world.fate(Family::V4, APP), End::Reset);
        talk(&mut innocent, &mut heard);
        let mut again = Dial::default().connect(&world.lab.client, to).expect("captured");
        talk(&mut again, &mut door.accept().stream);
        let far = world.far.adit();
        until(LIMIT, "a record of each", || {
            let log = far.log();
            let records = log.iter().filter(|line| line.contains("\"close_reason\":\"peer_revoked\""));
            (records.count() == pairs.len()).then_some(())
        });
        wait_metric(world.far_host(), "istio_tcp_connections_closed_total{response_flags=\"CERT_REVOKED\"}", 2.0);
        drop(third);
    });
}
