//! A peer's process: started on its core, awaited, stopped.
//!
//! Invariant: on return from `stop` no process of the peer is left. If the cell dies first, its PID namespace takes the peer with it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::account;
use super::cores::{self, Cores};
use super::namespace;
use super::recipe::Recipe;

const START: Duration = Duration::from_secs(10);
const STOP: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(10);

/// A running peer.
pub(crate) struct Proxy {
    child: Child,
    log: PathBuf,
    /// Holds the config and the log; removed with us.
    _folder: TempDir,
}

impl Proxy {
    /// Starts the peer on its core and waits until its door is open.
    pub(crate) fn start(recipe: &Recipe, target: SocketAddrV4, cores: Cores) -> Result<Self> {
        let folder = tempfile::tempdir().context("cannot make a folder")?;
        let config = folder.path().join("config");
        let log = folder.path().join("log");
        fs::write(&config, &recipe.config).context("cannot write the peer's config")?;
        let output = File::create(&log).context("cannot write the peer's log")?;
        cores::go_to(cores.proxy)?;
        let child = Command::new(&recipe.program)
            .args(recipe.arguments)
            .arg(&config)
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("cannot write the peer's log")?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot start {}", recipe.program.display()));
        cores::go_to(cores.load)?;
        let mut proxy = Self { child: child?, log, _folder: folder };
        proxy.ready(recipe, target)?;
        Ok(proxy)
    }

    fn ready(&mut self, recipe: &Recipe, target: SocketAddrV4) -> Result<()> {
        let deadline = Instant::now() + START;
        // A captured door stands behind a rule that is not there yet; its readiness port, or the door's own port, tells.
        let door = recipe.capture.map_or(target, |capture| SocketAddrV4::new([127, 0, 0, 1].into(), capture.to));
        loop {
            if let Some(status) = self.child.try_wait().context("cannot wait for the peer")? {
                bail!("it exited ({status}) before it was ready:\n{}", self.tail());
            }
            if recipe.readiness.map_or_else(|| connects(door), answers) {
                break;
            }
            if Instant::now() > deadline {
                bail!("it was not ready after {START:?}:\n{}", self.tail());
            }
            pause(LOOK)?;
        }
        recipe.capture.map_or(Ok(()), namespace::capture)
    }

    /// Stops the peer and everything it started.
    pub(crate) fn stop(mut self) -> Result<()> {
        let deadline = Instant::now() + STOP;
        signal(self.child.id(), Signal::TERM)?;
        let mut killed = false;
        loop {
            let exited = self.child.try_wait().context("cannot wait for the peer")?.is_some();
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

/// True when `GET /healthz/ready` is answered with 200.
fn answers(address: SocketAddrV4) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::V4(address), Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"GET /healthz/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.take(16 * 1024).read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.split(' ').nth(1) == Some("200"))
}
