//! A real adit that serves tunnels, a friend in whose tunnel bytes go to and fro all the time, and what adit holds: memory,
//! descriptors, tunnels, streams. An attack is made between two looks at that.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{fs, io};

use rustix::process::Pid;

use crate::envoy_config::HBONE;
use crate::kit::daemon::get;
use crate::kit::wait::pause;
use crate::kit::{Adit, Host, Lab, until};
use crate::pki::{Leaf, Pki};
use crate::raw::Peer;
use crate::serve::{echo, serve};
use crate::world::{FAR, Ground, KINDS, adit, capture, mesh, settings};

/// Applications in adit's host: one sends everything back, one never reads, one sends for as long as it can.
pub(crate) const ECHO: u16 = 8080;
pub(crate) const DEAF: u16 = 8081;
pub(crate) const TALKER: u16 = 8082;

/// What bytes to and fro may take, whatever else happens.
const ROUND_TRIP: Duration = Duration::from_secs(2);
/// After an attack everything is as before, within this.
const SETTLED: Duration = Duration::from_secs(20);
/// What allocators and the code's first use keep.
const SLACK: u64 = 24 << 20;

pub(crate) struct Siege {
    pub(crate) lab: Lab,
    /// Whose files the daemon reads.
    _pki: Pki,
    /// Who attacks, and who is a friend: the same, as far as adit knows.
    pub(crate) leaf: Leaf,
    pub(crate) adit: Adit,
}

/// What the daemon has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Held {
    pub(crate) resident: u64,
    pub(crate) descriptors: usize,
    pub(crate) tunnels: f64,
    pub(crate) streams: f64,
    pub(crate) connections: f64,
}

impl Siege {
    /// One worker: whoever attacks and whoever is attacked have it together.
    pub(crate) fn new(more: &str) -> Self {
        Self::with(Ground::new(), more)
    }

    pub(crate) fn with(ground: Ground, more: &str) -> Self {
        Self::edited(ground, more, |settings| settings)
    }

    /// [`Self::with`], with settings that `edit` has been over.
    pub(crate) fn edited(ground: Ground, more: &str, edit: impl FnOnce(String) -> String) -> Self {
        Self::of(ground, more, |host, settings, mesh| adit(host, KINDS[0], &edit(settings.to_owned()), mesh))
    }

    /// [`Self::new`], started by a shell that has run `prelude` (`ulimit -n 256`) before.
    pub(crate) fn after(prelude: &str, more: &str) -> Self {
        let binary = env!("CARGO_BIN_EXE_adit");
        let folder = tempfile::tempdir().expect("a temporary folder");
        let script = folder.path().join("adit");
        fs::write(&script, format!("#!/bin/sh\n{prelude}\nexec {binary} \"$@\"\n")).expect("a writable folder");
        fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("our own file");
        let program = script.to_str().expect("text");
        Self::of(Ground::new(), more, |host, settings, mesh| {
            capture(host, KINDS[0]);
            let mut adit = Adit::start_program(program, host, settings, mesh);
            adit.wait_ready(host);
            adit
        })
    }

    fn of(ground: Ground, more: &str, start: impl FnOnce(&Host, &str, &str) -> Adit) -> Self {
        let lab = &ground.lab;
        let settings = settings(KINDS[0], FAR, &ground.far, &format!("log: {{ format: text }}\nworkers: 1\n{more}"));
        let adit = start(&lab.adit, &settings, &mesh(&lab.client, &lab.adit));
        let Ground { lab, pki, near, .. } = ground;
        Self { lab, _pki: pki, leaf: near, adit }
    }

    pub(crate) fn applications(&self) {
        echo(&self.lab.adit, ECHO);
        serve(&self.lab.adit, DEAF, |stream| {
            // Until the other side is gone: nothing is read, an error is all that comes.
            until(Duration::from_secs(80), "the end", || {
                pause(Duration::from_millis(20));
                rustix::event::poll(
                    &mut [rustix::event::PollFd::new(&stream, rustix::event::PollFlags::empty())],
                    Some(&rustix::event::Timespec::default()),
                )
                .is_ok_and(|ready| ready > 0)
                .then_some(())
            });
        });
        serve(&self.lab.adit, TALKER, |mut stream| while io::Write::write_all(&mut stream, &[b'x'; 65536]).is_ok() {});
    }

    pub(crate) fn door(&self) -> SocketAddr {
        (self.lab.adit.v4, HBONE).into()
    }

    pub(crate) fn authority(&self, port: u16) -> String {
        format!("{}:{port}", self.lab.adit.v4)
    }

    /// Where attacks come from.
    pub(crate) fn camp(&self) -> &Host {
        &self.lab.server
    }

    pub(crate) fn peer(&self) -> Peer {
        Peer::connect(self.camp(), self.door(), &self.leaf)
    }

    /// A connection that is there all the time.
    pub(crate) fn friend(&self) -> Friend {
        let mut peer = Peer::connect(&self.lab.client, self.door(), &self.leaf);
        let stream = peer.open(&self.authority(ECHO));
        Friend::new(move || peer.ping_pong(stream, b"how are you"), Control::new())
    }

    pub(crate) fn pid(&self) -> Pid {
        self.adit.pid()
    }

    pub(crate) fn held(&self) -> Held {
        // Before there is a connection that asks for metrics.
        let descriptors = self.descriptors();
        let text = get(&self.lab.adit, 15020, "/metrics").expect("metrics");
        let value = |name: &str| -> f64 {
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok()).unwrap_or(0.0)
        };
        let connections = text.lines().filter(|line| line.starts_with("adit_connections_open{"));
        let connections = connections.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum();
        Held {
            resident: self.memory("VmRSS:"),
            descriptors,
            tunnels: value("adit_tunnels_open{role=\"server\"}"),
            streams: value("adit_tunnel_streams_open{role=\"server\"}"),
            connections,
        }
    }

    /// What is held while only friends are there, each in a tunnel with one stream.
    pub(crate) fn calm(&self, friends: u32) -> Held {
        until(SETTLED, "nobody but friends", || {
            pause(Duration::from_millis(20));
            let (first, held) = (self.held(), self.held());
            let friends = f64::from(friends);
            let only_they = [held.tunnels, held.streams].iter().all(|it| (it - friends).abs() < 0.5);
            (only_they && held.connections < 2.0 * friends + 0.5 && first.descriptors == held.descriptors)
                .then_some(held)
        })
    }

    /// Until there is no more than before.
    pub(crate) fn settled(&self, what: &str, before: &Held) {
        let start = Instant::now();
        loop {
            let now = self.held();
            if now.descriptors <= before.descriptors
                && now.resident <= before.resident + SLACK
                && now.tunnels <= before.tunnels
                && now.streams <= before.streams
                && now.connections <= before.connections
            {
                return;
            }
            assert!(start.elapsed() < SETTLED, "{what} has left something behind:\n{before:?} before\n{now:?} now");
            pause(Duration::from_millis(20));
        }
    }

    fn descriptors(&self) -> usize {
        let all = fs::read_dir(format!("/proc/{}/fd", self.pid().as_raw_pid())).expect("a running daemon");
        // Pipes and files come and go with logs and reloads; what peers can use up are sockets.
        let links = all.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        links.filter(|link| link.to_string_lossy().starts_with("socket:")).count()
    }

    /// `VmRSS:` or `VmHWM:`, in bytes.
    pub(crate) fn memory(&self, what: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid().as_raw_pid())).expect("a running daemon");
        let line = status.lines().find_map(|line| line.strip_prefix(what)).expect("the line");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("kilobytes") * 1024
    }

    /// CPU time that the daemon has used so far.
    pub(crate) fn cpu_time(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid().as_raw_pid())).expect("a running daemon");
        let (_, fields) = stat.rsplit_once(") ").expect("the name is in brackets");
        let ticks: u64 = fields.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().expect("ticks")).sum();
        Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
    }

    /// The peak of memory is measured from here on.
    pub(crate) fn forget_peak(&self) {
        fs::write(format!("/proc/{}/clear_refs", self.pid().as_raw_pid()), "5").expect("our own child");
    }

    /// Ends it. The log has no panic and no error; lines about peers that misbehave are few.
    pub(crate) fn finish(self) {
        let Self { mut adit, .. } = self;
        rustix::process::kill_process(adit.pid(), rustix::process::Signal::TERM).expect("a running daemon");
        let status = adit.wait(Duration::from_secs(20));
        let log = adit.log();
        assert!(status.success(), "{status}");
        assert_sane(&log);
    }
}

/// Ends of tunnels that peers made and in which they did nothing.
const UNUSED: [&str; 3] = ["tunnel closed", "role=\"server\"", "carried=0 "];

/// No panic, and what any stranger can cause is at most ten lines a second: access lines of failed handshakes and of streams that
/// did not become a connection, ends of tunnels that were never used.
pub(crate) fn assert_sane(log: &[String]) {
    let panics: Vec<_> = log.iter().filter(|line| line.contains("panicked")).collect();
    assert!(panics.is_empty(), "{panics:#?}");
    for class in
        [&["handshake_", "preface_failed"][..], &["bad_connect", "downstream_gone", "connection_limit"], &UNUSED]
    {
        let is_of = |line: &&String| {
            if class == UNUSED {
                UNUSED.iter().all(|it| line.contains(it))
            } else {
                line.contains("\taccess\t") && class.iter().any(|it| line.contains(it))
            }
        };
        let lines: Vec<_> = log.iter().filter(is_of).collect();
        let mut seconds: Vec<&str> = lines.iter().filter_map(|line| line.get(..19)).collect();
        let count = seconds.len();
        seconds.dedup();
        // A second of the limit is not one of the clock.
        let most = 10 * (seconds.len() + 1);
        let some = &lines[..count.min(20)];
        assert!(count <= most, "{count} lines of {class:?} in {} seconds:\n{some:?}", seconds.len());
    }
}

/// Two processes that do nothing but answer each other: how long anything takes on this machine at this time, without adit.
struct Control {
    cat: std::process::Child,
}

impl Control {
    fn new() -> Self {
        let mut command = std::process::Command::new("cat");
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        Self { cat: command.spawn().expect("cat") }
    }

    fn round_trip(&mut self) -> Duration {
        let start = Instant::now();
        let (to, from) = (self.cat.stdin.as_mut().expect("piped"), self.cat.stdout.as_mut().expect("piped"));
        // An application, adit twice, and back again.
        for _ in 0..4 {
            io::Write::write_all(to, b"?").expect("a pipe");
            io::Read::read_exact(from, &mut [0]).expect("a pipe");
        }
        start.elapsed()
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // It ends with its input too.
        let _ = self.cat.kill();
        let _ = self.cat.wait();
    }
}

/// Somebody who does the same again and again, and must never wait long.
pub(crate) struct Friend {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Duration>>,
    control: JoinHandle<Duration>,
}

impl Friend {
    fn new(mut once: impl FnMut() + Send + 'static, mut control: Control) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&over);
        let thread = thread::spawn(move || {
            let mut took = Vec::new();
            while !told.load(Ordering::Relaxed) {
                let start = Instant::now();
                once();
                took.push(start.elapsed());
                pause(Duration::from_millis(10));
            }
            took
        });
        let told = Arc::clone(&over);
        let control = thread::spawn(move || {
            let mut longest = Duration::ZERO;
            while !told.load(Ordering::Relaxed) {
                longest = longest.max(control.round_trip());
                pause(Duration::from_millis(10));
            }
            longest
        });
        Self { over, thread, control }
    }

    /// How long each took; panics if it was cut off or kept waiting: longer than the limit and what the machine itself adds.
    pub(crate) fn well(self, during: &str) -> Vec<Duration> {
        self.over.store(true, Ordering::Relaxed);
        let took = self.thread.join().expect("the friend's connection lives");
        let control = self.control.join().expect("cat answers");
        let longest = took.iter().max().copied().unwrap_or_default();
        assert!(
            longest < ROUND_TRIP + 2 * control,
            "{longest:?} for a round trip during {during}, {control:?} without adit"
        );
        took
    }
}
