//! A large state that is read while the daemon runs, or as its first: whoever asks something meanwhile is answered.

use std::fs;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};

use crate::generate::{Size, generate};
use crate::kit::door::talk;
use crate::kit::isolate::measured;
use crate::kit::{Adit, Door, Host, LIMIT, isolated_within, until};
use crate::world::{PLAIN, SLACK, World, captured, expect_reset, let_pass, request};

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

    /// A daemon whose first state is the large one, as soon as it answers.
    fn starting(&self) -> World {
        self.publish_large();
        let lab = captured();
        let adit = Adit::start(&lab.adit, &format!("{PLAIN}{}", self.settings()), "");
        until(LIMIT, "a probe to be answered", || request(&lab.adit, 15021, "GET", "/healthz/live"));
        World { lab, adit }
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

/// A log filter that was set by hand, which SIGHUP takes back at once.
struct Filter<'a> {
    host: &'a Host,
    before: String,
}

impl<'a> Filter<'a> {
    fn set(host: &'a Host) -> Self {
        let filter = Self { host, before: Self::now(host) };
        let arguments = ["-sS", "-X", "PUT", "-H", "X-Adit: 1", "--data", "debug", "http://127.0.0.1:15000/logging"];
        assert_ne!(host.output("curl", &arguments), filter.before);
        filter
    }

    fn now(host: &Host) -> String {
        request(host, 15000, "GET", "/logging").expect("an answer").1
    }

    /// Returns how long the signal took to be obeyed.
    fn hang_up(&self, world: &World) -> Duration {
        let asked = Instant::now();
        kill_process(world.pid(), Signal::HUP).expect("a running daemon");
        until(WORST, "the signal to be obeyed", || (Self::now(self.host) == self.before).then_some(()));
        asked.elapsed()
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
        let filter = Filter::set(host);

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
                hung_up = Some((filter.hang_up(&world), applied(&world)));
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
        let_pass(Duration::from_millis(1500));
        assert_eq!(applied(&world), 1, "it is read already: too small for this test");
        let start = Instant::now();
        kill_process(world.pid(), Signal::TERM).expect("a running daemon");
        let status = world.adit.wait(Duration::from_secs(1) + SLACK);
        assert!(status.success(), "{status}");
        let took = start.elapsed();
        assert_eq!(applied(&world), 1, "it was read to its end first, {took:?}");
    });
}

/// The same while the daemon has no state yet: it lives, says why it is not ready, and carries nothing. What has connected
/// meanwhile is carried once there is a state to judge it by.
#[test]
fn probes_and_signals_do_not_wait_for_the_first_state() {
    isolated_within(LOAD_WITHIN * 2, || {
        let meshes = Meshes::new();
        let world = meshes.starting();
        let server = Door::open(&world.lab.server, PORT);
        let host = &world.lab.adit;
        let filter = Filter::set(host);
        let mut client = world.dial_out(PORT).expect("the kernel completes it");
        let start = Instant::now();
        let (mut probed, mut scraped, mut asked) = (Answers::default(), Answers::default(), Answers::default());
        let mut hung_up = None;
        loop {
            assert!(start.elapsed() < LOAD_WITHIN, "the first state is never in force");
            assert_eq!(probed.ask(host, 15021, "/healthz/live").0, 200);
            let (status, body) = probed.ask(host, 15021, "/healthz/ready");
            if status == 200 {
                break;
            }
            assert_eq!(status, 503, "{body}");
            assert!(body.contains("\"mesh\"") && body.contains("the mesh files are being read"), "{body}");
            let (status, metrics) = scraped.ask(host, 15020, "/metrics");
            assert!(status == 200 && metrics.contains("adit_workers"), "{status}: {metrics}");
            assert_eq!(asked.ask(host, 15000, "/").0, 200);
            assert_eq!(asked.ask(host, 15000, "/status").0, 200);
            // Once the files are being parsed.
            if hung_up.is_none() && start.elapsed() > Duration::from_millis(800) {
                hung_up = Some((filter.hang_up(&world), applied(&world)));
                client.set_read_timeout(Some(Duration::from_millis(10))).expect("SO_RCVTIMEO");
                assert_eq!(client.read(&mut [0]).expect_err("silence").kind(), ErrorKind::WouldBlock);
                assert!(server.is_quiet() && applied(&world) == 0, "a connection was carried without a state");
            }
        }
        let (took, states) = hung_up.expect("the load takes longer than that");
        assert_eq!(states, 0, "the signal was obeyed only when the state was there, after {took:?}");
        probed.check("probes while the first state is read");
        scraped.check("scrapes while the first state is read");
        asked.check("the admin page while the first state is read");
        measured(&format!("SIGHUP while the first state is read: obeyed after {took:?}"));
        let applied = world.adit.wait_log("generation=1");
        assert!(applied.contains(&format!("workloads={}", LARGE.workloads)), "{applied}");
        talk(&mut client, &mut server.accept().stream);
        // The signal has asked for the mesh, too, and finds it as it was.
        until(LOAD_WITHIN, "the reload that was asked for", || {
            world.metrics().contains("adit_reloads_total{what=\"mesh\",result=\"applied\"} 1").then_some(())
        });
        drop((client, server));
        world.adit.stop_within(LOAD_WITHIN);
    });
}

/// Nor does whoever stops it wait for its first state; and what has connected is not carried without one.
#[test]
fn the_end_does_not_wait_for_the_first_state() {
    isolated_within(LOAD_WITHIN * 2, || {
        let meshes = Meshes::new();
        for signal in [Signal::TERM, Signal::INT] {
            let mut world = meshes.starting();
            let server = Door::open(&world.lab.server, PORT);
            let mut client = world.dial_out(PORT).expect("the kernel completes it");
            // Until its files are being parsed.
            let_pass(Duration::from_millis(800));
            assert_eq!(applied(&world), 0, "it is read already: too small for this test");
            let start = Instant::now();
            kill_process(world.pid(), signal).expect("a running daemon");
            let status = world.adit.wait(Duration::from_secs(1) + SLACK);
            let took = start.elapsed();
            assert!(status.success(), "{status}");
            assert_eq!(applied(&world), 0, "it was read to its end first, {took:?}");
            measured(&format!("{signal:?} while the first state is read: ended after {took:?}"));
            expect_reset(&mut client, LIMIT);
            assert!(server.is_quiet(), "a connection was carried without a state");
        }
    });
}

/// It has answered probes for seconds, and ends all the same as one that is small and wrong.
#[test]
fn a_first_state_that_is_large_and_wrong_ends_the_daemon() {
    isolated_within(LOAD_WITHIN * 2, || {
        let meshes = Meshes::new();
        let wrong = meshes.0.path().join("large").join("zz-wrong.yaml");
        fs::write(&wrong, "workloads:\n- uid: a\n  workloadIps: [10.0.0.300]\n").expect("a writable folder");
        let mut world = meshes.starting();
        let mut client = world.dial_out(PORT).expect("the kernel completes it");
        assert_eq!(world.readiness().0, 503);
        let status = world.adit.wait(LOAD_WITHIN);
        let log = world.adit.log().join("\n");
        assert_eq!(status.code(), Some(78), "{log}");
        let told = log
            .lines()
            .any(|line| line.starts_with('/') && line.contains("zz-wrong.yaml:3:17: workloads[0].workloadIps[0]"));
        assert!(told && log.ends_with("\nerror: 2 problems"), "{log}");
        assert!(!log.contains("accepting"), "{log}");
        expect_reset(&mut client, LIMIT);
    });
}
