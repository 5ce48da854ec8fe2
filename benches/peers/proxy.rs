//! A peer's processes: started on its core, awaited, stopped.
//!
//! Invariant: on return from `stop` no process of the peer is left. If the cell dies first, its PID namespace takes the peer with it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::account;
use super::cores::{self, Cores};
use super::namespace::{self, AtSocket};
use super::recipe::{Part, Recipe, tunnel};

const START: Duration = Duration::from_secs(10);
const STOP: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(10);

/// A running peer.
pub(crate) struct Proxy {
    children: Vec<Child>,
    log: PathBuf,
    /// Holds the configs and the log; removed with us.
    folder: TempDir,
}

impl Proxy {
    /// Starts the peer on its core, one part after another, and waits until its door is open.
    pub(crate) fn start(recipe: &Recipe, target: SocketAddrV4, cores: Cores, cgroup: Option<&Path>) -> Result<Self> {
        let folder = tempfile::tempdir().context("cannot make a folder")?;
        let log = folder.path().join("log");
        for (name, contents) in &recipe.files {
            fs::write(folder.path().join(name), contents).with_context(|| format!("cannot write {name}"))?;
        }
        if let Some(issuer) = &recipe.issuer {
            tunnel::issue(issuer, folder.path())?;
        }
        File::create(&log).context("cannot write the peer's log")?;
        let mut proxy = Self { children: Vec::new(), log, folder };
        for part in &recipe.parts {
            proxy.launch(part, cores)?;
            // A captured door stands behind a rule that is not there yet; its own port tells.
            let door = recipe.capture.map_or(target, |capture| SocketAddrV4::new([127, 0, 0, 1].into(), capture.to));
            proxy.ready(part, door)?;
        }
        if let Some(capture) = recipe.capture {
            let program = recipe.parts.first().map(|part| part.program.as_path());
            let at_socket = program.zip(cgroup).map(|(program, cgroup)| AtSocket { program, cgroup });
            namespace::capture(capture, at_socket)?;
        }
        Ok(proxy)
    }

    fn launch(&mut self, part: &Part, cores: Cores) -> Result<()> {
        let folder = self.folder.path();
        let mut command = Command::new(&part.program);
        command.args(part.arguments).envs(part.environment.iter().copied());
        if let Some(contents) = &part.config {
            let config = folder.join(format!("config-{}.yaml", self.children.len()));
            fs::write(&config, contents).context("cannot write the peer's config")?;
            command.arg(&config);
        }
        let output = File::options().append(true).open(&self.log).context("cannot write the peer's log")?;
        cores::go_to(cores.proxy)?;
        let child = command
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("cannot write the peer's log")?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot start {}", part.program.display()));
        cores::go_to(cores.load)?;
        self.children.push(child?);
        Ok(())
    }

    /// Waits until the part that was launched last is ready; `door` is where it lets clients in.
    fn ready(&mut self, part: &Part, door: SocketAddrV4) -> Result<()> {
        let deadline = Instant::now() + START;
        loop {
            for child in &mut self.children {
                if let Some(status) = child.try_wait().context("cannot wait for the peer")? {
                    bail!("it exited ({status}) before it was ready:\n{}", self.tail());
                }
            }
            if part.readiness.map_or_else(|| connects(door), |(address, path)| answers(address, path)) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("it was not ready after {START:?}:\n{}", self.tail());
            }
            pause(LOOK)?;
        }
    }

    /// Stops the peer and everything it started.
    pub(crate) fn stop(mut self) -> Result<()> {
        let deadline = Instant::now() + STOP;
        for child in &self.children {
            signal(child.id(), Signal::TERM)?;
        }
        let mut killed = false;
        loop {
            let mut exited = true;
            for child in &mut self.children {
                exited &= child.try_wait().context("cannot wait for the peer")?.is_some();
            }
            if exited && account::peer_processes()?.is_empty() {
                break;
            }
            if Instant::now() > deadline {
                if killed {
                    bail!("it did not die of SIGKILL");
                }
                killed = true;
                for process in account::peer_processes()? {
                    signal(process, Signal::KILL)?;
                }
            }
            pause(LOOK)?;
        }
        if killed {
            bail!("it did not stop within {STOP:?} of SIGTERM and was killed");
        }
        Ok(())
    }

    /// The last lines that the peer wrote.
    pub(crate) fn tail(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        let first = lines.len().saturating_sub(15);
        lines.iter().skip(first).map(|line| format!("    {line}\n")).collect()
    }
}

fn signal(process: u32, signal: Signal) -> Result<()> {
    let process = i32::try_from(process).ok().and_then(Pid::from_raw).context("not a process id")?;
    match kill_process(process, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(errno) => Err(errno).context("cannot signal the peer"),
    }
}

/// Lets a moment pass between two looks at a condition.
fn pause(moment: Duration) -> Result<()> {
    let moment = Timespec::try_from(moment).context("interval")?;
    poll(&mut [], Some(&moment)).context("cannot wait")?;
    Ok(())
}

/// True when something listens there. The connection that proves it is refused further on, or closed by us.
fn connects(address: SocketAddrV4) -> bool {
    TcpStream::connect_timeout(&SocketAddr::V4(address), Duration::from_secs(1)).is_ok()
}

/// True when `GET path` is answered with 200.
fn answers(address: SocketAddrV4, path: &str) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::V4(address), Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.take(16 * 1024).read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.split(' ').nth(1) == Some("200"))
}
