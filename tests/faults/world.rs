//! A lab whose host `adit` is captured, the daemon in it, and questions to ask it.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use adit::net::redirect::{self, Kind, Options, Safeguards};
use rustix::process::Pid;
use socket2::SockRef;

use crate::kit::door::{Dial, talk};
use crate::kit::wait::pause;
use crate::kit::{Adit, Door, Family, Host, LIMIT, Lab, until};

pub const BINARY: &str = env!("CARGO_BIN_EXE_adit");
/// What a busy machine may add to an upper limit of time; nothing is ever added to a lower one.
pub const SLACK: Duration = Duration::from_secs(3);
/// The part of every test's settings that makes it independent of source preservation.
pub const PLAIN: &str = "preserveSource: off\n";

/// A lab and the daemon in its host `adit`, whose traffic is captured both ways.
pub struct World {
    pub lab: Lab,
    pub adit: Adit,
}

/// One proxied connection, by its two ends outside adit.
pub struct Pair {
    pub client: TcpStream,
    pub server: TcpStream,
}

impl World {
    pub fn new(settings: &str) -> Self {
        Self::with_mesh(settings, "")
    }

    pub fn with_mesh(settings: &str, mesh: &str) -> Self {
        let lab = captured();
        let adit = lab.adit(&format!("{PLAIN}{settings}"), mesh);
        Self { lab, adit }
    }

    /// Captured by `kind`.
    pub fn captured_by(kind: Kind, settings: &str) -> Self {
        let lab = Lab::new();
        capture_by(&lab.adit, kind);
        let adit = lab.adit(&format!("{PLAIN}capture: {kind}\n{settings}"), "");
        Self { lab, adit }
    }

    /// Started by a shell that has run `prelude` (`ulimit -n 256`) before.
    pub fn after(prelude: &str, settings: &str) -> Self {
        let lab = captured();
        let mut adit = start_after(prelude, &lab.adit, settings);
        adit.wait_ready(&lab.adit);
        Self { lab, adit }
    }

    /// An application on host `adit` connects to `port` of host `server`.
    pub fn outbound(&self, door: &Door, port: u16) -> Pair {
        let client = self.dial_out(port).expect("the capture door accepts");
        Pair { client, server: door.accept().stream }
    }

    /// Host `client` connects to `port` of host `adit`.
    pub fn inbound(&self, door: &Door, port: u16) -> Pair {
        let client = self.dial_in(port).expect("the capture door accepts");
        Pair { client, server: door.accept().stream }
    }

    pub fn dial_out(&self, port: u16) -> io::Result<TcpStream> {
        self.dial_out_by(Family::V4, port)
    }

    pub fn dial_in(&self, port: u16) -> io::Result<TcpStream> {
        self.dial_in_by(Family::V4, port)
    }

    pub fn dial_out_by(&self, family: Family, port: u16) -> io::Result<TcpStream> {
        Dial::default().connect(&self.lab.adit, (self.lab.server.address(family), port).into())
    }

    pub fn dial_in_by(&self, family: Family, port: u16) -> io::Result<TcpStream> {
        Dial::default().connect(&self.lab.client, (self.lab.adit.address(family), port).into())
    }

    pub fn pid(&self) -> Pid {
        self.adit.pid()
    }

    /// Runs a command of the binary on the daemon's host.
    pub fn cli(&self, arguments: &[&str]) -> Output {
        self.lab.adit.command(BINARY).args(arguments).output().expect("the binary under test")
    }

    /// What a command of the binary prints as JSON.
    pub fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let output = self.cli(arguments);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {output:?}"))
    }

    /// Status code and body of the readiness port; panics when it does not answer.
    pub fn readiness(&self) -> (u16, String) {
        request(&self.lab.adit, 15021, "GET", "/healthz/ready").expect("readiness answers")
    }

    pub fn wait_not_ready(&self, blocker: &str) {
        until(LIMIT, &format!("readiness to name {blocker}"), || {
            let (status, body) = self.readiness();
            (status == 503 && body.contains(&format!("\"{blocker}\""))).then_some(())
        });
    }

    pub fn wait_ready_again(&self, limit: Duration) {
        until(limit, "readiness to come back", || (self.readiness().0 == 200).then_some(()));
    }

    pub fn metrics(&self) -> String {
        let (status, body) = request(&self.lab.adit, 15020, "GET", "/metrics").expect("metrics answer");
        assert_eq!(status, 200, "{body}");
        body
    }

    /// The value of one sample, given with all its labels; 0 when there is no such sample.
    pub fn metric(&self, sample: &str) -> f64 {
        let metrics = self.metrics();
        let value = metrics.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().expect("a number"))
    }

    pub fn wait_metric(&self, sample: &str, want: f64) {
        until(LIMIT, &format!("{sample} {want}"), || ((self.metric(sample) - want).abs() < 0.5).then_some(()));
    }

    /// Every descriptor of the daemon, by what it leads to.
    pub fn descriptors(&self) -> Vec<String> {
        let folder = format!("/proc/{}/fd", self.pid().as_raw_pid());
        let entries = fs::read_dir(folder).expect("a running daemon");
        // One that was closed since the listing leads nowhere.
        let links = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        links.map(|link| link.display().to_string()).collect()
    }

    /// How many of them are sockets.
    pub fn sockets(&self) -> usize {
        self.descriptors().iter().filter(|link| link.starts_with("socket:")).count()
    }

    pub fn wait_descriptors(&self, most: usize, limit: Duration) {
        until(limit, &format!("at most {most} descriptors"), || (self.descriptors().len() <= most).then_some(()));
    }

    /// Resident memory, in bytes.
    pub fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid().as_raw_pid())).expect("a running daemon");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("kilobytes") * 1024
    }

    /// CPU time that the daemon has used so far.
    pub fn cpu_time(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid().as_raw_pid())).expect("a running daemon");
        let (_, fields) = stat.rsplit_once(") ").expect("the name is in brackets");
        let ticks: u64 = fields.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().expect("ticks")).sum();
        Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
    }

    /// Waits for the access-log line of the connection whose client has the port of `client`.
    pub fn closing(&self, client: &TcpStream, limit: Duration) -> Closing {
        let port = client.local_addr().expect("an address").port();
        self.closing_of(port, limit)
    }

    pub fn closing_of(&self, port: u16, limit: Duration) -> Closing {
        let address = format!(":{port} ");
        until(limit, &format!("the access-log line of port {port}"), || {
            let lines = self.adit.log();
            let line = lines.into_iter().find(|line| {
                line.contains("\taccess\t")
                    && line.split("\tsrc.addr=").nth(1).is_some_and(|rest| {
                        rest.split_inclusive(' ').next().is_some_and(|source| source.ends_with(&address))
                    })
            });
            line.map(Closing)
        })
    }
}

/// A line of the access log.
pub struct Closing(pub String);

impl Closing {
    pub fn field(&self, key: &str) -> &str {
        let found = self.0.split_once(&format!(" {key}=")).map(|(_, rest)| rest);
        let value = found.unwrap_or_else(|| panic!("no {key} in {}", self.0));
        match value.strip_prefix('"') {
            Some(quoted) => quoted.split('"').next().unwrap_or_default(),
            None => value.split(' ').next().unwrap_or_default(),
        }
    }

    pub fn reason(&self) -> &str {
        self.field("close_reason")
    }
}

impl Pair {
    pub fn talk(&mut self) {
        talk(&mut self.client, &mut self.server);
    }
}

/// A lab whose host `adit` is captured.
pub fn captured() -> Lab {
    let lab = Lab::new();
    capture(&lab.adit);
    lab
}

pub fn capture(host: &Host) {
    capture_by(host, Kind::Redirect);
}

fn capture_by(host: &Host, kind: Kind) {
    let options = Options { kind, ..Options::default() };
    let unasked = Safeguards { host: false, readiness: None };
    host.run(|| redirect::apply(&options, &unasked)).expect("the rules are applied");
}

pub fn start_after(prelude: &str, host: &Host, settings: &str) -> Adit {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let script = folder.path().join("adit");
    fs::write(&script, format!("#!/bin/sh\n{prelude}\nexec {BINARY} \"$@\"\n")).expect("a writable folder");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&script, mode).expect("our own file");
    let adit = Adit::start_program(script.to_str().expect("text"), host, &format!("{PLAIN}{settings}"), "");
    // The shell has read the script once there is a line.
    until(LIMIT, "the first log line", || (!adit.log().is_empty()).then_some(()));
    adit
}

/// Puts a whole file in place at once.
pub fn replace(path: &std::path::Path, text: &str) {
    let beside = path.with_extension("new");
    fs::write(&beside, text).expect("a writable folder");
    fs::rename(&beside, path).expect("the same folder");
}

/// Status code and body; `None` unless there is a whole answer.
pub fn request(host: &Host, port: u16, method: &str, path: &str) -> Option<(u16, String)> {
    let answer = host.run(|| {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut stream = TcpStream::connect_timeout(&address, LIMIT).ok()?;
        stream.set_read_timeout(Some(LIMIT)).ok()?;
        // HTTP/1.0: the answer is not cut into chunks.
        // The one request that works without.
        let may_change = if path == "/quitquitquit" { "" } else { "X-Adit: 1\r\n" };
        let head = format!("{method} {path} HTTP/1.0\r\nHost: localhost:{port}\r\n{may_change}\r\n");
        stream.write_all(head.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    })?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

/// Lists the connections again and again, which wakes every worker each time, while `work` runs; returns how often.
pub fn asking_while(world: &World, work: impl FnOnce()) -> usize {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut asked = 0;
            while !done.load(Ordering::Relaxed) {
                // A daemon that has ended does not answer.
                if request(&world.lab.adit, 15000, "GET", "/connections").is_some() {
                    asked += 1;
                }
                pause(Duration::from_millis(20));
            }
            asked
        });
        // However it ends, the other thread must end too.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        done.store(true, Ordering::Relaxed);
        let asked = asking.join().expect("questions do not panic");
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        asked
    })
}

/// Closes with a reset.
pub fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
    drop(stream);
}

pub fn half_close(stream: &TcpStream) {
    stream.shutdown(Shutdown::Write).expect("an open socket");
}

/// Reads to the end; says how it came.
pub fn read_out(stream: &mut TcpStream, limit: Duration) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.set_read_timeout(Some(limit))?;
    stream.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The next thing to be read must be an EOF.
pub fn expect_eof(stream: &mut TcpStream) {
    assert_eq!(read_out(stream, LIMIT).expect("a clean end"), b"");
}

/// The next thing to be read must be a reset.
pub fn expect_reset(stream: &mut TcpStream, limit: Duration) {
    let error = read_out(stream, limit).expect_err("a reset and not an end");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
}

/// A connection that the daemon resets at once, be it before `connect` has returned.
pub fn expect_refusal(dialled: io::Result<TcpStream>) {
    match dialled {
        Ok(mut client) => expect_reset(&mut client, LIMIT),
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}"),
    }
}

/// Lets time pass that is itself what is tested.
pub fn let_pass(time: Duration) {
    pause(time);
}
