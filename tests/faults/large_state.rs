//! A large state that is read while the daemon runs: whoever asks something meanwhile is answered.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};

use crate::generate::{Size, generate};
use crate::kit::isolate::measured;
use crate::kit::{Door, Host, isolated_within, until};
use crate::world::{SLACK, World, request};

/// In a debug build this takes seconds to read.
const LARGE: Size = Size { workloads: 20_000, services: 800, policies: 2_000 };
const SMALL: Size = Size { workloads: 10, services: 1, policies: 0 };
const LOAD_WITHIN: Duration = Duration::from_secs(120);
/// What is promised, and half of the answers keep to on any machine.
const PROMISED: Duration = Duration::from_millis(100);
/// The longest that an answer may take on a machine that others use.
const WORST: Duration = Duration::from_secs(1);
const PORT: u16 = 8080;

/// Two meshes, and a link to the one that is read.
struct Meshes(tempfile::TempDir);

impl Meshes {
    fn new() -> Self {
        let meshes = Self(tempfile::tempdir().expect("a temporary folder"));
        for (name, size) in [("small", SMALL), ("large", LARGE)] {
            let folder = meshes.0.path().join(name);
            fs::create_dir(&folder).expect("a writable folder");
            generate(&folder, size, 1).expect("a writable folder");
        }
        symlink("small", meshes.link()).expect("a link");
        meshes
    }

    fn link(&self) -> PathBuf {
        self.0.path().join("live")
    }

    fn publish_large(&self) {
        let beside = self.0.path().join("beside");
        symlink("large", &beside).expect("a link");
        fs::rename(&beside, self.link()).expect("the same folder");
    }

    fn settings(&self) -> String {
        format!("mesh: {{ files: [\"{}\"] }}\n", self.link().display())
    }
}

/// How long each answer has taken.
#[derive(Default)]
struct Answers(Vec<Duration>);

impl Answers {
    fn ask(&mut self, host: &Host, port: u16, path: &str) -> (u16, String) {
        let start = Instant::now();
        let answer = request(host, port, "GET", path).expect("an answer");
        self.0.push(start.elapsed());
        answer
    }

    fn check(mut self, what: &str) {
        self.0.sort();
        let (median, worst) = (self.0[self.0.len() / 2], self.0[self.0.len() - 1]);
        measured(&format!("{what}: {} answers, median {median:?}, worst {worst:?}", self.0.len()));
        assert!(self.0.len() >= 20, "{what}: too few to say anything");
        assert!(median <= PROMISED, "{what}: median {median:?}");
        assert!(worst <= WORST, "{what}: worst {worst:?}");
    }
}

fn applied(world: &World) -> usize {
    world.adit.log().iter().filter(|line| line.contains("mesh state applied")).count()
}

/// Reading and building a state of 20,000 workloads is nowhere in the way of the control thread: while it goes on, probes
/// are answered, a SIGHUP does what it does at once, and a new connection is carried.
#[test]
fn probes_and_signals_do_not_wait_for_a_large_state() {
    isolated_within(LOAD_WITHIN * 2, || {
        let meshes = Meshes::new();
        let world = World::new(&meshes.settings());
        let server = Door::open(&world.lab.server, PORT);
        let host = &world.lab.adit;
        let filter = || request(host, 15000, "GET", "/logging").expect("an answer").1;
        let before = filter();
        let arguments = ["-sS", "-X", "PUT", "-H", "X-Adit: 1", "--data", "debug", "http://127.0.0.1:15000/logging"];
        assert_ne!(host.output("curl", &arguments), before);

        meshes.publish_large();
        let start = Instant::now();
        let (mut ready, mut live, mut carried) = (Answers::default(), Answers::default(), Answers::default());
        let mut hung_up = None;
        while applied(&world) < 2 {
            assert!(start.elapsed() < LOAD_WITHIN, "the large state is never in force");
            assert_eq!(ready.ask(host, 15021, "/healthz/ready").0, 200, "the last state is a state");
            assert_eq!(live.ask(host, 15021, "/healthz/live").0, 200);
            let dialled = Instant::now();
            world.outbound(&server, PORT).talk();
            carried.0.push(dialled.elapsed());
            // Once it is under way: what only a signal does is to take back the filter that was set by hand.
            if hung_up.is_none() && start.elapsed() > Duration::from_millis(800) {
                let asked = Instant::now();
                kill_process(world.pid(), Signal::HUP).expect("a running daemon");
                until(WORST, "the signal to be obeyed", || (filter() == before).then_some(()));
                hung_up = Some((asked.elapsed(), applied(&world)));
            }
        }
        let (took, states) = hung_up.expect("the load takes longer than that");
        assert_eq!(states, 1, "the signal was obeyed only when the state was there, after {took:?}");
        ready.check("readiness while a large state is read");
        live.check("liveness while a large state is read");
        carried.check("connections while a large state is read");
        measured(&format!("SIGHUP while a large state is read: obeyed after {took:?}"));
        let applied = world.adit.wait_log("generation=2");
        assert!(applied.contains(&format!("workloads={}", LARGE.workloads)), "{applied}");
        // The signal has asked for the mesh, too.
        until(LOAD_WITHIN, "the reload that was asked for", || {
            world.metrics().contains("adit_reloads_total{what=\"mesh\",result=\"applied\"} 2").then_some(())
        });
        world.adit.stop_within(LOAD_WITHIN);
    });
}

/// Whoever stops the daemon does not wait for what it is reading.
#[test]
fn the_end_does_not_wait_for_a_large_state() {
    isolated_within(LOAD_WITHIN * 2, || {
        let meshes = Meshes::new();
        let mut world = World::new(&meshes.settings());
        meshes.publish_large();
        // Until its files are being parsed.
        crate::world::let_pass(Duration::from_millis(1500));
        assert_eq!(applied(&world), 1, "it is read already: too small for this test");
        let start = Instant::now();
        kill_process(world.pid(), Signal::TERM).expect("a running daemon");
        let status = world.adit.wait(Duration::from_secs(1) + SLACK);
        assert!(status.success(), "{status}");
        let took = start.elapsed();
        assert_eq!(applied(&world), 1, "it was read to its end first, {took:?}");
    });
}
