//! A line of versions of one daemon, from a program on disk that can be replaced.

use std::fs::{self, File};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::kit::door::{Dial, talk};
use crate::kit::wait::pause;
use crate::kit::{Door, Family, Host, LIMIT, Lab, until};
use crate::world::{BINARY, PLAIN, request};

/// Where the application listens that tests reach through adit.
pub const PORT: u16 = 8080;

/// A connection through adit, by its two ends.
pub struct Pair {
    pub client: TcpStream,
    pub server: TcpStream,
}

impl Pair {
    pub fn new(lab: &Lab, door: &Door) -> Self {
        Self::by(Family::V4, lab, door)
    }

    pub fn by(family: Family, lab: &Lab, door: &Door) -> Self {
        let to = (lab.server.address(family), PORT).into();
        let client = Dial::default().connect(&lab.adit, to).expect("the door accepts");
        Self { client, server: door.accept().stream }
    }

    pub fn talk(&mut self) {
        talk(&mut self.client, &mut self.server);
    }
}

/// A new connection is carried.
pub fn carries(lab: &Lab, door: &Door) {
    Pair::new(lab, door).talk();
}

/// A command that runs the program with these variables.
pub fn with(host: &Host, variables: &[&str], program: &str) -> Command {
    let mut command = host.command("env");
    command.args(variables).arg(program);
    command
}

/// What is running, and the files it runs from.
pub struct Line<'a> {
    pub host: &'a Host,
    folder: TempDir,
    /// The process that was started first.
    first: Child,
}

impl<'a> Line<'a> {
    pub fn start(host: &'a Host, settings: &str, mesh: &str) -> Self {
        Self::start_by(host, settings, mesh, |program| host.command(program))
    }

    /// `command` makes the command that runs the program of the path it gets; the arguments are added to it.
    pub fn start_by(host: &'a Host, settings: &str, mesh: &str, command: impl FnOnce(&str) -> Command) -> Self {
        let line = Self::start_unready(host, settings, mesh, command);
        line.wait_ready();
        line
    }

    pub fn start_unready(host: &'a Host, settings: &str, mesh: &str, command: impl FnOnce(&str) -> Command) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| folder.path().join(name);
        fs::write(path("adit.yaml"), format!("{PLAIN}{settings}")).expect("a writable folder");
        put(BINARY.as_ref(), &path("adit"));
        let mut command = command(path("adit").to_str().expect("text"));
        command.arg("run").arg("--config").arg(path("adit.yaml"));
        if !mesh.is_empty() {
            fs::write(path("mesh.yaml"), mesh).expect("a writable folder");
            fs::write(path("files.yaml"), "mesh: { files: [mesh.yaml] }\n").expect("a writable folder");
            command.arg("--config").arg(path("files.yaml"));
        }
        let log = File::create(path("log")).expect("a writable folder");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let first = command.spawn().expect("the binary under test");
        Self { host, folder, first }
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Another file of the same content in its place, as a package manager does it.
    pub fn replace_program(&self) {
        put(BINARY.as_ref(), &self.file("adit"));
    }

    /// Something else in its place.
    pub fn replace_program_by(&self, script: &str) {
        let beside = self.file("beside");
        fs::write(&beside, script).expect("a writable folder");
        fs::set_permissions(&beside, PermissionsExt::from_mode(0o755)).expect("our own file");
        fs::rename(beside, self.file("adit")).expect("the same folder");
    }

    pub fn configure(&self, settings: &str) {
        crate::world::replace(&self.file("adit.yaml"), &format!("{PLAIN}{settings}"));
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.file("log")).expect("our own file")
    }

    pub fn wait_log(&self, text: &str) -> String {
        until(LIMIT, &format!("a log line with {text:?}"), || {
            self.log().lines().find(|line| line.contains(text)).map(str::to_owned)
        })
    }

    pub fn wait_ready(&self) {
        let ready = || self.healthy().then_some(());
        until(LIMIT, &format!("adit to be ready:\n{}", self.log()), ready);
    }

    pub fn healthy(&self) -> bool {
        self.cli(&["healthcheck"]).status.success()
    }

    /// Runs a command of the binary on the host.
    pub fn cli(&self, arguments: &[&str]) -> Output {
        self.host.command(BINARY).args(arguments).output().expect("the binary under test")
    }

    pub fn status(&self) -> Value {
        let output = self.cli(&["status", "--json"]);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}\n{}", self.log()))
    }

    /// The process that serves.
    pub fn pid(&self) -> Pid {
        pid_of(&self.status()["pid"])
    }

    pub fn first(&self) -> Pid {
        Pid::from_child(&self.first)
    }

    /// `adit upgrade`: the report, or what it says on standard error.
    pub fn upgrade(&self) -> Result<Value, String> {
        let output = self.cli(&["upgrade", "--json"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() {
            Ok(serde_json::from_slice(&output.stdout).expect("a report"))
        } else {
            assert_eq!(output.status.code(), Some(1), "{said}");
            Err(said)
        }
    }

    pub fn upgraded(&self) -> Value {
        self.upgrade().unwrap_or_else(|error| panic!("{error}\n{}", self.log()))
    }

    /// Asks probes, status and metrics again and again until `over`: how many good answers came, and what else.
    pub fn ask(&self, over: &AtomicBool) -> (usize, Vec<String>) {
        let (mut answered, mut wrong) = (0, Vec::new());
        while !over.load(Ordering::Relaxed) {
            for (port, path) in [(15021, "/healthz/ready"), (15000, "/status"), (15020, "/metrics")] {
                match request(self.host, port, "GET", path) {
                    Some((200, _)) => answered += 1,
                    other => {
                        wrong.push(format!("{path}: {:?}", other.map(|(status, body)| format!("{status} {body}"))))
                    }
                }
            }
            pause(Duration::from_millis(2));
        }
        (answered, wrong)
    }

    /// Waits for the first process to end.
    pub fn wait_first(&mut self) -> ExitStatus {
        until(LIMIT, "the first process to end", || self.first.try_wait().expect("our child"))
    }

    /// Ends the version that serves; the line must have said nothing that alarms but what contains one of these texts.
    pub fn stop(mut self, meant: &[&str]) {
        let pid = self.pid();
        send(pid, Signal::TERM);
        wait_gone(pid, LIMIT);
        let _ = self.first.try_wait();
        let log = self.log();
        assert!(!log.contains("panicked"), "{log}");
        let alarms: Vec<&str> = log
            .lines()
            .filter(|line| !line.contains("\taccess\t"))
            .filter(|line| line.contains("\twarn\t") || line.contains("\terror\t") || line.starts_with("error:"))
            .filter(|line| !meant.iter().any(|text| line.contains(text)))
            .collect();
        assert!(alarms.is_empty(), "{alarms:#?}");
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        // Later versions are killed with the process group of the test.
        let _ = self.first.kill();
        let _ = self.first.wait();
        if std::thread::panicking() {
            show(&fs::read_to_string(self.file("log")).unwrap_or_default());
        }
    }
}

#[expect(clippy::print_stderr, reason = "what the daemon said is half of every failure")]
fn show(log: &str) {
    eprintln!("adit said:\n{log}");
}

/// A copy under that name at once, as a file of its own.
pub fn put(program: &Path, path: &Path) {
    let beside = path.with_extension("beside");
    fs::copy(program, &beside).expect("a writable folder");
    fs::rename(&beside, path).expect("the same folder");
}

pub fn pid_of(value: &Value) -> Pid {
    let number = value.as_i64().and_then(|number| i32::try_from(number).ok());
    number.and_then(Pid::from_raw).unwrap_or_else(|| panic!("not a process id: {value}"))
}

pub fn send(pid: Pid, signal: Signal) {
    kill_process(pid, signal).expect("a running process");
}

/// Whether it is there and no mere zombie.
pub fn runs(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid())).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

pub fn wait_gone(pid: Pid, limit: Duration) {
    until(limit, &format!("process {pid:?} to end"), || (!runs(pid)).then_some(()));
}
