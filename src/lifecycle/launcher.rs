//! Starting a later version so that it can be let go: between it and the version before stands a launcher, the program that
//! runs now with nothing to do but to wait. While it waits, the version before learns how the new one has ended; when it is
//! told to, it ends, and the new one is a child of whoever adopts orphans.
//!
//! A service manager can only follow its own children: it must have adopted the new version before it is told to watch it.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, ExitStatus};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use super::link::Link;
use super::program::{Program, Starter};

/// How long the launcher and the version before may take to say what they have to say to each other.
const SAY_WITHIN: Duration = Duration::from_secs(5);
/// As a shell says it of a process that a signal has ended.
pub const BY_SIGNAL: i32 = 128;

/// To the launcher; the link for the new version comes along.
#[derive(Debug, Serialize, Deserialize)]
struct Launch {
    path: PathBuf,
}

/// From the launcher.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Said {
    Started { pid: u32 },
    NotStarted { reason: String },
}

/// A version that has been started and not let go.
#[derive(Debug)]
pub struct Launched {
    pid: Pid,
    /// Of the new version, whose number may be another's once it has been let go and has ended.
    handle: OwnedFd,
    launcher: Child,
    /// While this is open the launcher waits.
    hold: Option<Link>,
}

impl Program {
    /// Starts it with `link` as its standard input; returns once it has been started. Blocks.
    ///
    /// # Errors
    /// Why it could not be started.
    pub fn launch(&self, link: OwnedFd) -> io::Result<Launched> {
        let (hold, theirs) = Link::pair()?;
        hold.send(&Launch { path: self.path().to_owned() }, &[link.as_fd()])?;
        let mut launcher = self.start_itself(Starter::Launcher, theirs)?;
        drop(link);
        let started = match hold.receive_blocking::<Said>(SAY_WITHIN) {
            Ok((Said::Started { pid }, _)) => handle_of(pid),
            Ok((Said::NotStarted { reason }, _)) => Err(io::Error::other(reason)),
            Err(error) => Err(error),
        };
        match started {
            Ok((pid, handle)) => Ok(Launched { pid, handle, launcher, hold: Some(hold) }),
            Err(error) => {
                let _ = launcher.kill();
                let _ = launcher.wait();
                Err(error)
            }
        }
    }
}

impl Launched {
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// How it has ended, if it has; as a shell says it if by a signal.
    ///
    /// # Errors
    /// The system's, when that cannot be known.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        let status = self.launcher.try_wait()?;
        Ok(status.map(|status| match status.code() {
            Some(code) if code > BY_SIGNAL => ExitStatus::from_raw(code - BY_SIGNAL),
            _ => status,
        }))
    }

    /// From now on it is not ours: whoever adopts orphans has it. Blocks for as long as it takes the launcher to end.
    pub fn let_go(&mut self) {
        self.hold = None;
        // It has nothing else to do.
        let _ = self.launcher.wait();
    }

    /// Ends it at once. Gone already is as good.
    pub fn kill(&mut self) {
        let _ = pidfd_send_signal(&self.handle, Signal::KILL);
        if self.hold.take().is_some() {
            let _ = self.launcher.wait();
        }
    }
}

fn handle_of(pid: u32) -> io::Result<(Pid, OwnedFd)> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
    Ok((pid, pidfd_open(pid, PidfdFlags::empty())?))
}

/// Which of the two came first.
enum First {
    LetGo,
    Ended(io::Result<ExitStatus>),
}

/// What a launcher does. Returns its exit status: the new version's if that has ended while it was held.
///
/// # Errors
/// When the version before does not say what to do.
pub fn run(link: Link, program: &Program) -> io::Result<u8> {
    let (Launch { path }, mut descriptors) = link.receive_blocking::<Launch>(SAY_WITHIN)?;
    let for_it = descriptors.pop().ok_or(io::ErrorKind::InvalidData)?;
    let mut child = match program.at(path.clone()).start(Starter::Predecessor, for_it) {
        Ok(child) => child,
        Err(error) => {
            link.send(&Said::NotStarted { reason: format!("cannot start {}: {error}", path.display()) }, &[])?;
            return Ok(1);
        }
    };
    link.send(&Said::Started { pid: child.id() }, &[])?;
    let (first, which) = mpsc::sync_channel(2);
    let ended = first.clone();
    // Neither is waited for once the other has come: the process ends with this function.
    std::thread::spawn(move || ended.send(First::Ended(child.wait())));
    std::thread::spawn(move || {
        // Nothing more is said; only the end is waited for.
        while !link.receive_blocking::<Launch>(Duration::from_secs(3600)).is_err_and(|error| is_end(&error)) {}
        first.send(First::LetGo)
    });
    match which.recv() {
        Ok(First::Ended(status)) => {
            let status = status?;
            let code = status.code().or_else(|| Some(BY_SIGNAL + status.signal()?)).unwrap_or(1);
            Ok(u8::try_from(code).unwrap_or(u8::MAX))
        }
        Ok(First::LetGo) | Err(_) => Ok(0),
    }
}

fn is_end(error: &io::Error) -> bool {
    !matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::InvalidData)
}
