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
/// `SIGRTMAX`.
const LAST_SIGNAL: i32 = 64;

/// To the launcher; the link for the new version comes along.
#[derive(Debug, Serialize, Deserialize)]
struct Launch {
    path: PathBuf,
}

/// From the launcher.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Said {
    /// With a handle of the process.
    Started,
    NotStarted {
        reason: String,
    },
}

/// A version that has been started and not let go.
#[derive(Debug)]
pub struct Launched {
    /// Of the new version: its number may be another's once it has ended.
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
            Ok((Said::Started, mut handles)) => handles.pop().ok_or_else(|| io::ErrorKind::InvalidData.into()),
            Ok((Said::NotStarted { reason }, _)) => Err(io::Error::other(reason)),
            Err(error) => Err(error),
        };
        match started {
            Ok(handle) => Ok(Launched { handle, launcher, hold: Some(hold) }),
            Err(error) => {
                let _ = launcher.kill();
                let _ = launcher.wait();
                Err(error)
            }
        }
    }
}

impl Launched {
    /// How it has ended, if it has; as a shell says it if by a signal.
    ///
    /// # Errors
    /// The system's, when that cannot be known.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        let status = self.launcher.try_wait()?;
        Ok(status.map(|status| match status.code() {
            Some(code) if (1..=LAST_SIGNAL).contains(&(code - BY_SIGNAL)) => ExitStatus::from_raw(code - BY_SIGNAL),
            _ => status,
        }))
    }

    /// From now on it is not ours: whoever adopts orphans has it.
    pub fn let_go(&mut self) {
        if self.hold.take().is_some() {
            // It has nothing else to do, and may stand still.
            let _ = self.launcher.kill();
            let _ = self.launcher.wait();
        }
    }

    /// Ends it at once. Gone already is as good.
    pub fn kill(&mut self) {
        let _ = pidfd_send_signal(&self.handle, Signal::KILL);
        self.let_go();
    }
}

/// One that nobody has let go comes to nothing.
impl Drop for Launched {
    fn drop(&mut self) {
        if self.hold.is_some() {
            self.kill();
        }
    }
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
    // Before anybody waits for it, so that the number is still its own.
    let handle = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
    link.send(&Said::Started, &[handle.as_fd()])?;
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
