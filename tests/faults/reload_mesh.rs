//! Mesh files that change, as the kubelet changes them and worse, while connections are open.

use std::fs;
use std::io::{ErrorKind, Read};
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Signal, kill_process};

use crate::kit::door::{Dial, talk};
use crate::kit::{Adit, Door, LIMIT, isolated, isolated_within, until};
use crate::world::{Pair, World, captured, let_pass, replace, request};

const VIP: ([u8; 4], u16) = ([10, 99, 0, 1], 80);
const PORTS: [u16; 2] = [8001, 8002];

/// A service whose only endpoint is `port` of host `server`, among fifty others.
fn mesh(port: u16) -> String {
    let mut text = format!(
        "services:\n- {{ name: echo, namespace: default, hostname: echo.default.svc.cluster.local, \
         vips: [/10.99.0.1], ports: {{ 80: {port} }} }}\nworkloads:\n\
         - {{ uid: echo-1, name: echo-1, namespace: default, workloadIps: [10.77.0.3], \
         services: {{ default/echo.default.svc.cluster.local: {{ 80: {port} }} }} }}\n"
    );
    for number in 0..50 {
        text.push_str(&format!(
            "- {{ uid: filler-{number}, name: filler-{number}, namespace: default, workloadIps: [10.88.0.{number}] }}\n"
        ));
    }
    text
}

/// A folder as the kubelet writes it: files are links into `..data`, which is a link that is renamed over.
struct AtomicFolder {
    path: tempfile::TempDir,
    generation: u32,
}

impl AtomicFolder {
    fn new(text: &str) -> Self {
        let path = tempfile::tempdir().expect("a temporary folder");
        symlink("..data/mesh.yaml", path.path().join("mesh.yaml")).expect("a link");
        let mut folder = Self { path, generation: 0 };
        folder.publish(text);
        folder
    }

    fn publish(&mut self, text: &str) {
        let at = |name: &str| self.path.path().join(name);
        let name = |generation| format!("..generation_{generation}");
        let before = name(self.generation);
        self.generation += 1;
        let now = name(self.generation);
        fs::create_dir(at(&now)).expect("a writable folder");
        fs::write(at(&now).join("mesh.yaml"), text).expect("a writable folder");
        symlink(&now, at("..data_tmp")).expect("a link");
        fs::rename(at("..data_tmp"), at("..data")).expect("the same folder");
        if self.generation > 1 {
            fs::remove_dir_all(at(&before)).expect("our own folder");
        }
    }

    fn settings(&self) -> String {
        files(self.path.path())
    }
}

fn files(path: &Path) -> String {
    format!("mesh: {{ files: [\"{}\"] }}\n", path.display())
}

/// A world with the service, and a door for each of its possible endpoints.
fn serving(settings: &str) -> (World, [Door; 2]) {
    let world = World::new(settings);
    let doors = PORTS.map(|port| Door::open(&world.lab.server, port));
    (world, doors)
}

/// Connects to the service; panics unless that leads to `door`.
fn reach(world: &World, door: &Door) -> Pair {
    let client = Dial::default().connect(&world.lab.adit, SocketAddr::from(VIP)).expect("the capture door accepts");
    let mut pair = Pair { client, server: door.accept().stream };
    pair.talk();
    pair
}

fn applied(world: &World) -> String {
    world.json(&["status", "--json"])["mesh"]["hash"].as_str().expect("a hash").to_owned()
}

/// Demands D11 and E9. Most are asked for, so that each of them is one reload; every twentieth is left to be noticed.
#[test]
fn a_thousand_swaps_leave_the_connection_and_the_memory_alone() {
    isolated_within(Duration::from_secs(300), || {
        let mut folder = AtomicFolder::new(&mesh(PORTS[0]));
        let (world, doors) = serving(&folder.settings());
        let mut old = reach(&world, &doors[0]);
        let mut resident = 0;
        for swap in 1..=1000_usize {
            let which = swap % 2;
            let before = (swap % 20 == 0).then(|| applied(&world));
            // A comment makes each content one of its own.
            folder.publish(&format!("# {swap}\n{}", mesh(PORTS[which])));
            if let Some(before) = before {
                until(LIMIT, "the swap to be noticed", || (applied(&world) != before).then_some(()));
            } else {
                let (status, report) = request(&world.lab.adit, 15000, "POST", "/reload").expect("an answer");
                assert_eq!(status, 200, "{report}");
            }
            if swap % 20 < 2 {
                drop(reach(&world, &doors[which]));
                assert!(doors[1 - which].is_quiet());
                old.talk();
            }
            if swap == 200 {
                resident = world.resident();
            }
        }
        let grown = world.resident().saturating_sub(resident);
        assert!(grown < 4 << 20, "{grown} bytes in 800 reloads, from {resident}");
        assert!(world.metric("adit_reloads_total{what=\"mesh\",result=\"applied\"}") >= 990.0);
        assert_eq!(world.metric("adit_reloads_total{what=\"mesh\",result=\"rejected\"}"), 0.0);
        old.talk();
        drop(old);
        world.adit.stop();
    });
}

#[test]
fn a_bad_file_changes_nothing_and_is_seen_everywhere() {
    isolated(|| {
        let mut folder = AtomicFolder::new(&mesh(PORTS[0]));
        let (mut world, doors) = serving(&folder.settings());
        let mut old = reach(&world, &doors[0]);
        let hash = applied(&world);
        let rejected = "adit_reloads_total{what=\"mesh\",result=\"rejected\"}";
        let bad = [
            ("workloads:\n- uid: [\n", "mesh.yaml"),
            ("workloads:\n- uid: a\n  workloadIps: [10.0.0.300]\n", "mesh.yaml:3"),
            ("policies:\n- name: a\n", "mesh.yaml:2"),
        ];
        for (text, place) in bad {
            let before = world.metric(rejected);
            folder.publish(text);
            let status = until(LIMIT, &format!("{text:?} to be refused at {place}"), || {
                let status = world.json(&["status", "--json"]);
                status["mesh"]["rejected"]["errors"].to_string().contains(place).then_some(status)
            });
            until(LIMIT, "the bad file to be counted", || (world.metric(rejected) > before).then_some(()));
            assert_eq!(status["mesh"]["hash"], hash);
            assert_eq!(status["ready"], true, "the last good state is a state");
            let shown = String::from_utf8(world.cli(&["status"]).stdout).expect("text");
            assert!(shown.contains("rejected") && shown.contains(place), "{shown}");
            let (_, dump) = request(&world.lab.adit, 15000, "GET", "/mesh").expect("an answer");
            let dump: serde_json::Value = serde_json::from_str(&dump).expect("JSON");
            assert!(dump["rejected"]["errors"].to_string().contains(place), "{}", dump["rejected"]);
            assert_eq!(dump["workloads"].as_array().map(Vec::len), Some(51));
            assert_eq!(world.cli(&["reload"]).status.code(), Some(1));
            drop(reach(&world, &doors[0]));
            old.talk();
        }
        folder.publish(&mesh(PORTS[1]));
        until(LIMIT, "the next good file to be applied", || (applied(&world) != hash).then_some(()));
        drop(reach(&world, &doors[1]));
        old.talk();
        drop(old);
        world.adit.expect_log("mesh files refused");
        world.adit.stop();
    });
}

#[test]
fn truncation_and_deletion_keep_the_last_state() {
    isolated(|| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("mesh.yaml");
        fs::write(&file, mesh(PORTS[0])).expect("a writable folder");
        let (mut world, doors) = serving(&files(&file));
        let mut old = reach(&world, &doors[0]);
        let hash = applied(&world);
        // Half of it, in place, and left so.
        let whole = mesh(PORTS[1]);
        let half = u64::try_from(whole.len() / 2).expect("small");
        fs::File::options().write(true).open(&file).and_then(|file| file.set_len(half)).expect("our own file");
        let refused =
            |world: &World| world.adit.log().iter().filter(|line| line.contains("mesh files refused")).count();
        until(LIMIT, "the half file to be refused", || (refused(&world) == 1).then_some(()));
        fs::remove_file(&file).expect("our own file");
        until(LIMIT, "the missing file to be refused", || (refused(&world) == 2).then_some(()));
        assert_eq!(applied(&world), hash);
        assert_eq!(world.readiness().0, 200);
        drop(reach(&world, &doors[0]));
        old.talk();
        replace(&file, &whole);
        until(LIMIT, "the file that came back to be applied", || (applied(&world) != hash).then_some(()));
        drop(reach(&world, &doors[1]));
        old.talk();
        drop(old);
        world.adit.expect_log("mesh files refused");
        world.adit.stop();
    });
}

#[test]
fn a_file_that_is_missing_at_the_start_is_waited_for() {
    isolated(|| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("later").join("mesh.yaml");
        let lab = captured();
        let adit = Adit::start(&lab.adit, &format!("preserveSource: off\n{}", files(&file)), "");
        let mut world = World { lab, adit };
        world.adit.wait_log("waiting for the mesh files");
        world.wait_not_ready("mesh");
        until(LIMIT, "the blocker to say what it waits for", || {
            world.readiness().1.contains("mesh.yaml").then_some(())
        });
        assert_eq!(request(&world.lab.adit, 15021, "GET", "/healthz/live").expect("an answer").0, 200);
        let doors = PORTS.map(|port| Door::open(&world.lab.server, port));
        // Bound, but not accepting: the handshake is the kernel's, and nothing follows.
        let mut client = Dial::default().connect(&world.lab.adit, SocketAddr::from(VIP)).expect("in the backlog");
        client.set_read_timeout(Some(Duration::from_secs(1))).expect("SO_RCVTIMEO");
        assert_eq!(client.read_exact(&mut [0]).expect_err("silence").kind(), ErrorKind::WouldBlock);
        assert!(doors.iter().all(Door::is_quiet));
        assert_eq!(world.json(&["status", "--json"])["connections"]["open"], 0);

        fs::create_dir(folder.path().join("later")).expect("a writable folder");
        replace(&file, &mesh(PORTS[1]));
        world.wait_ready_again(LIMIT);
        let mut server = doors[1].accept().stream;
        talk(&mut client, &mut server);
        drop((client, server));
        world.adit.expect_log("waiting for the mesh files");
        world.adit.stop();
    });
}

/// `run` and `check` refuse the same, with the same code, naming the same place.
#[test]
fn an_invalid_file_at_the_start_is_fatal() {
    isolated(|| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("mesh.yaml");
        fs::write(&file, "workloads:\n- uid: a\n  name: a\n  workloadIps: [10.0.0.300]\n").expect("a writable folder");
        let lab = captured();
        let mut adit = Adit::start(&lab.adit, &format!("preserveSource: off\n{}", files(&file)), "");
        let status = adit.wait(LIMIT);
        let log = adit.log().join("\n");
        assert_eq!(status.code(), Some(78), "{log}");
        let settings: PathBuf = adit.folder().join("adit.yaml");
        let checked = lab.adit.command(crate::world::BINARY).arg("check").arg("--config").arg(settings).output();
        let checked = checked.expect("the binary under test");
        assert_eq!(checked.status.code(), Some(78));
        for said in [log, String::from_utf8_lossy(&checked.stderr).into_owned()] {
            assert!(said.contains(&format!("{}:4", file.display())), "{said}");
            assert!(said.contains("10.0.0.300"), "{said}");
        }
    });
}

/// What only a reload that reads everything does: it takes back a log filter that was set through the admin API.
#[test]
fn sighup_reads_everything_again() {
    isolated(|| {
        let mut folder = AtomicFolder::new(&mesh(PORTS[0]));
        let (world, doors) = serving(&folder.settings());
        let mut old = reach(&world, &doors[0]);
        let filter = || request(&world.lab.adit, 15000, "GET", "/logging").expect("an answer").1;
        let before = filter();
        let set = world.lab.adit.output(
            "curl",
            &["-sS", "-X", "PUT", "-H", "X-Adit: 1", "--data", "debug", "http://127.0.0.1:15000/logging"],
        );
        assert_ne!(set, before);
        assert_eq!(filter(), set);
        folder.publish(&mesh(PORTS[1]));
        kill_process(world.pid(), Signal::HUP).expect("a running daemon");
        until(LIMIT, "the log filter to be the file's again", || (filter() == before).then_some(()));
        until(LIMIT, "the new endpoint", || {
            let client = Dial::default().connect(&world.lab.adit, SocketAddr::from(VIP)).expect("accepted");
            let_pass(Duration::from_millis(50));
            let reached = !doors[1].is_quiet();
            drop(client);
            reached.then_some(())
        });
        old.talk();
        drop((old, doors));
        world.adit.stop();
    });
}
