//! The real binary, in a host.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use std::{fs, mem};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::host::Host;
use super::wait::{LIMIT, until};

/// A running daemon. [`Self::stop`] ends it and checks it; one that is dropped is
/// killed, and checked for panics only.
pub struct Adit {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
    expected: Vec<String>,
    tolerated: Vec<String>,
    folder: TempDir,
}

impl Adit {
    /// Starts `adit run` in `host` and returns at once.
    pub fn start(host: &Host, config: &str, mesh: &str) -> Self {
        Self::start_program(env!("CARGO_BIN_EXE_adit"), host, config, mesh)
    }

    /// [`Self::start`] for another build of it, or for what stands in for it.
    pub fn start_program(program: &str, host: &Host, config: &str, mesh: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).expect("a writable folder");
        write("adit.yaml", config);
        let mut command = host.command(program);
        command.arg("run").arg("--config").arg(folder.path().join("adit.yaml"));
        if !mesh.is_empty() {
            write("mesh.yaml", mesh);
            write("files.yaml", "mesh: { files: [mesh.yaml] }\n");
            command.arg("--config").arg(folder.path().join("files.yaml"));
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary under test");
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let sink = Arc::clone(&log);
        let reader = thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                sink.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        Self { child, log, reader: Some(reader), expected: Vec::new(), tolerated: Vec::new(), folder }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Where `adit.yaml` and `mesh.yaml` are, for tests that change them.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Puts a whole file into that folder at once: half of one would be a content of its own.
    pub fn replace(&self, name: &str, text: &str) {
        let (beside, path) = (self.folder().join("new"), self.folder().join(name));
        fs::write(&beside, text).expect("a writable folder");
        fs::rename(&beside, &path).expect("the same folder");
    }

    /// Every line on standard error so far.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A warning or error that contains `text` is what the test wants.
    pub fn expect_log(&mut self, text: &str) {
        self.expected.push(text.to_owned());
    }

    /// A warning or error that contains `text` is right where it comes, and whether it does depends on the machine.
    pub fn tolerate_log(&mut self, text: &str) {
        self.tolerated.push(text.to_owned());
    }

    /// Waits until a line contains `text`, and returns it.
    pub fn wait_log(&self, text: &str) -> String {
        until(LIMIT, &format!("a log line with {text:?}"), || self.log().into_iter().find(|line| line.contains(text)))
    }

    /// Waits until the readiness port answers 200; fails at once if the daemon ends instead.
    pub fn wait_ready(&mut self, host: &Host) {
        until(LIMIT, "adit to be ready", || {
            let ended = self.child.try_wait().expect("our child");
            assert!(ended.is_none(), "adit ended instead of getting ready: {ended:?}\n{}", self.log().join("\n"));
            get(host, 15021, "/healthz/ready").filter(|answer| answer.starts_with("HTTP/1.1 200")).map(drop)
        });
    }

    /// SIGTERM; the daemon must end cleanly within `limit` and must have logged no warning or error but the expected ones.
    pub fn stop_within(mut self, limit: Duration) {
        kill_process(self.pid(), Signal::TERM).expect("a running daemon");
        let status = self.wait(limit);
        self.check(status);
    }

    /// [`Self::stop_within`] the usual limit.
    pub fn stop(self) {
        self.stop_within(LIMIT);
    }

    /// Waits for the daemon to end by itself.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let status = until(limit, "adit to end", || self.child.try_wait().expect("our child"));
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the log reader does not panic");
        }
        status
    }

    fn check(&mut self, status: ExitStatus) {
        let log = mem::take(&mut *self.log.lock().unwrap_or_else(PoisonError::into_inner));
        assert!(status.success(), "adit ended with {status}:\n{}", log.join("\n"));
        let is_meant = |line: &str| self.expected.iter().chain(&self.tolerated).any(|text| line.contains(text));
        let unexpected: Vec<&String> = log.iter().filter(|line| is_alarm(line) && !is_meant(line)).collect();
        assert!(unexpected.is_empty(), "unexpected warnings or errors: {unexpected:#?}");
        for text in &self.expected {
            assert!(log.iter().any(|line| line.contains(text)), "expected in the log: {text:?}\n{}", log.join("\n"));
        }
    }
}

impl Drop for Adit {
    fn drop(&mut self) {
        // Fails if it has ended, which is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            show(&self.log());
        } else {
            let panics: Vec<String> = self.log().into_iter().filter(|line| line.contains("panicked")).collect();
            assert!(panics.is_empty(), "{panics:#?}");
        }
    }
}

#[expect(clippy::print_stderr, reason = "what the daemon said is half of every failure")]
fn show(log: &[String]) {
    eprintln!("adit said:\n{}", log.join("\n"));
}

/// One HTTP request to a port on loopback of `host`; `None` unless there is a whole answer. What came in chunks is put together.
pub fn get(host: &Host, port: u16, path: &str) -> Option<String> {
    host.run(|| {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut stream = TcpStream::connect_timeout(&address, LIMIT).ok()?;
        stream.set_read_timeout(Some(LIMIT)).ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        match answer.split_once("\r\n\r\n") {
            Some((head, body)) if head.to_ascii_lowercase().contains("\r\ntransfer-encoding: chunked") => {
                Some(format!("{head}\r\n\r\n{}", joined(body)?))
            }
            _ => Some(answer),
        }
    })
}

/// The content of a body in chunks.
fn joined(mut chunks: &str) -> Option<String> {
    let mut whole = String::new();
    loop {
        let (size, rest) = chunks.split_once("\r\n")?;
        let size = usize::from_str_radix(size, 16).ok()?;
        if size == 0 {
            return Some(whole);
        }
        whole += rest.get(..size)?;
        chunks = rest.get(size..)?.strip_prefix("\r\n")?;
    }
}

/// A warning, an error or a panic. Text lines are `time TAB level TAB scope TAB message`; the CLI's begin with `error:`.
fn is_alarm(line: &str) -> bool {
    let level = line.split('\t').nth(1).unwrap_or_default();
    let alarming = |level: &str| level.eq_ignore_ascii_case("warn") || level.eq_ignore_ascii_case("error");
    let json = line.strip_prefix("{\"level\":\"").and_then(|rest| rest.split('"').next());
    alarming(level) || json.is_some_and(alarming) || line.starts_with("error:") || line.contains("panicked at")
}
