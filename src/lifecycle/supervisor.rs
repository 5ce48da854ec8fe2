//! The process that is pid 1 when adit is: it starts the daemon and every later version of it, passes signals on, reaps
//! whatever ends, and exits with the status of the last version. It carries no traffic and reads no settings.
//!
//! A daemon that is itself pid 1 could not leave its place to a later version: the container ends with it.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, waitpid};
use serde::{Deserialize, Serialize};
use tokio::runtime::{Builder, LocalOptions};
use tokio::signal::unix::{Signal as Signals, SignalKind, signal};
use tokio::sync::mpsc;

use super::launcher::BY_SIGNAL;
use super::link::{AsyncLink, Link};
use super::program::{Program, Starter};

/// How long the supervisor may take to say what to do: it has said so before the process began.
const BEGIN_WITHIN: Duration = Duration::from_secs(5);
/// How long starting a version may take.
const START_WITHIN: Duration = Duration::from_secs(5);

/// To a version.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Down {
    /// First of all: the names of the listening sockets that come along; after them, if it is to take over from another
    /// version, the link to that.
    #[serde(rename_all = "camelCase")]
    Begin { sockets: Vec<String>, successor: bool },
    /// The answer to [`Up::Start`].
    Started { pid: u32 },
    /// The other.
    NotStarted { reason: String },
}

/// From a version.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Up {
    /// It can take signals.
    Listening,
    /// Start the program anew, with the link that comes along as the one to its predecessor.
    Start,
    /// End that one, which has come to nothing.
    End { pid: u32 },
    /// It serves now; whoever did before drains.
    Current,
}

/// What a version begins with.
#[derive(Debug)]
pub struct Begin {
    pub supervised: Supervised,
    pub sockets: Vec<(String, OwnedFd)>,
    pub predecessor: Option<Link>,
}

/// A version's link to its supervisor, before there is a runtime.
#[derive(Debug)]
pub struct Supervised(Link);

/// A version's link to its supervisor.
#[derive(Debug)]
pub struct Supervisor(AsyncLink);

/// A version learns what it is for, blocking.
///
/// # Errors
/// When the supervisor does not say so.
pub fn begin(link: Link) -> io::Result<Begin> {
    let (Down::Begin { sockets, successor }, mut descriptors) = link.receive_blocking::<Down>(BEGIN_WITHIN)? else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let predecessor = if successor { descriptors.pop() } else { None };
    let predecessor = predecessor.map(Link::from_given).transpose()?;
    Ok(Begin { supervised: Supervised(link), sockets: sockets.into_iter().zip(descriptors).collect(), predecessor })
}

impl Supervised {
    /// # Errors
    /// When the runtime cannot watch the link.
    pub fn watched(self) -> io::Result<Supervisor> {
        Ok(Supervisor(self.0.watched()?))
    }
}

impl Supervisor {
    /// Signals may come from now on.
    pub fn listening(&self) {
        let _gone = self.0.send(&Up::Listening, &[]);
    }

    /// This version serves.
    pub fn current(&self) {
        let _gone = self.0.send(&Up::Current, &[]);
    }

    /// Has the next version started; `link` is the successor's end. Returns its process id.
    ///
    /// # Errors
    /// Why it could not be started.
    pub async fn start(&self, link: BorrowedFd<'_>) -> io::Result<u32> {
        self.0.send(&Up::Start, &[link])?;
        match tokio::time::timeout(START_WITHIN, self.0.receive::<Down>()).await {
            Ok(Ok((Down::Started { pid }, _))) => Ok(pid),
            Ok(Ok((Down::NotStarted { reason }, _))) => Err(io::Error::other(reason)),
            Ok(Ok(_)) => Err(io::ErrorKind::InvalidData.into()),
            Ok(Err(error)) => Err(error),
            Err(_elapsed) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Has a version ended that has come to nothing.
    pub fn end(&self, pid: u32) {
        let _gone = self.0.send(&Up::End { pid }, &[]);
    }
}

/// A version that runs.
struct Version {
    pid: Pid,
    link: Rc<AsyncLink>,
    listening: bool,
}

/// What a version says, with the descriptors that come along.
type Said = io::Result<(Up, Vec<OwnedFd>)>;

struct Pid1<'a> {
    program: &'a Program,
    versions: Vec<Version>,
    /// The one that serves.
    current: Option<Pid>,
    /// How the last one that served has ended.
    status: i32,
    messages: mpsc::Sender<(Pid, Said)>,
}

/// Runs until the last version has ended. `sockets` are for the first one. Returns the exit status.
///
/// # Errors
/// When the first version cannot be started.
pub fn supervise(program: &Program, sockets: Vec<(String, OwnedFd)>) -> io::Result<u8> {
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
    runtime.block_on(run(program, sockets))
}

async fn run(program: &Program, sockets: Vec<(String, OwnedFd)>) -> io::Result<u8> {
    let (messages, mut inbox) = mpsc::channel(16);
    let mut ended = signal(SignalKind::child())?;
    let mut signals = Passed::listen()?;
    let mut pid1 = Pid1 { program, versions: Vec::new(), current: None, status: 0, messages };
    let names = sockets.iter().map(|(name, _)| name.clone()).collect();
    let descriptors: Vec<_> = sockets.iter().map(|(_, socket)| socket.as_fd()).collect();
    pid1.current = Some(pid1.start(names, &descriptors, false)?);
    // From here on they are the first version's alone.
    drop(descriptors);
    drop(sockets);
    loop {
        tokio::select! {
            _ = ended.recv() => {
                if pid1.reap() {
                    return Ok(u8::try_from(pid1.status).unwrap_or(u8::MAX));
                }
            }
            passed = signals.next() => pid1.pass_on(passed),
            Some((pid, message)) = inbox.recv() => {
                // A link that fails ends with its process, which is reaped.
                if let Ok((message, descriptors)) = message {
                    pid1.obey(pid, &message, &descriptors);
                }
            }
        }
    }
}

impl Pid1<'_> {
    /// Starts a version and tells it what it is for.
    fn start(&mut self, sockets: Vec<String>, descriptors: &[BorrowedFd<'_>], successor: bool) -> io::Result<Pid> {
        let (ours, theirs) = Link::pair()?;
        // It lies there until the process reads it.
        ours.send(&Down::Begin { sockets, successor }, descriptors)?;
        let child = self.program.start(Starter::Supervisor, theirs)?;
        let pid = Pid::from_child(&child);
        let link = Rc::new(ours.watched()?);
        let (messages, reader) = (self.messages.clone(), Rc::clone(&link));
        tokio::task::spawn_local(async move {
            loop {
                let message = reader.receive().await;
                let over = message.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::InvalidData);
                if messages.send((pid, message)).await.is_err() || over {
                    return;
                }
            }
        });
        self.versions.push(Version { pid, link, listening: false });
        Ok(pid)
    }

    fn obey(&mut self, from: Pid, message: &Up, descriptors: &[OwnedFd]) {
        match message {
            Up::Listening => {
                if let Some(version) = self.versions.iter_mut().find(|version| version.pid == from) {
                    version.listening = true;
                }
            }
            Up::Current => self.current = Some(from),
            Up::End { pid } => {
                let pid = i32::try_from(*pid).ok().and_then(Pid::from_raw);
                if let Some(version) = self.versions.iter().find(|version| Some(version.pid) == pid) {
                    send(version.pid, Signal::KILL);
                }
            }
            Up::Start => {
                let descriptors: Vec<_> = descriptors.iter().map(OwnedFd::as_fd).collect();
                let answer = match self.start(Vec::new(), &descriptors, true) {
                    Ok(pid) => Down::Started { pid: pid.as_raw_nonzero().get().unsigned_abs() },
                    Err(error) => {
                        Down::NotStarted { reason: format!("cannot start {}: {error}", self.program.path().display()) }
                    }
                };
                if let Some(version) = self.versions.iter().find(|version| version.pid == from) {
                    let _gone = version.link.send(&answer, &[]);
                }
            }
        }
    }

    /// What asks for the end is for all versions, the rest for the one that serves. A version that does not listen yet
    /// would be killed by what is not meant so.
    fn pass_on(&self, passed: Signal) {
        let ends = passed == Signal::TERM || passed == Signal::INT;
        for version in &self.versions {
            if ends || version.listening && Some(version.pid) == self.current {
                send(version.pid, passed);
            }
        }
    }

    /// Takes note of all that have ended. Whether it is over: none is left, or the one that served has failed, and whoever
    /// watches the container must learn of it now.
    fn reap(&mut self) -> bool {
        loop {
            match waitpid(None, WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    let known = self.versions.iter().any(|version| version.pid == pid);
                    self.versions.retain(|version| version.pid != pid);
                    if known && Some(pid) == self.current {
                        self.status = exit_status(status);
                        if self.status != 0 {
                            return true;
                        }
                    }
                }
                Err(Errno::INTR) => {}
                Ok(None) | Err(_) => return self.versions.is_empty(),
            }
        }
    }
}

fn send(pid: Pid, signal: Signal) {
    // Gone already is as good.
    let _ = kill_process(pid, signal);
}

fn exit_status(status: WaitStatus) -> i32 {
    status.exit_status().or_else(|| Some(BY_SIGNAL + status.terminating_signal()?)).unwrap_or(1)
}

/// The signals that are passed on.
struct Passed([(Signal, Signals); 6]);

impl Passed {
    fn listen() -> io::Result<Self> {
        Ok(Self([
            (Signal::TERM, signal(SignalKind::terminate())?),
            (Signal::INT, signal(SignalKind::interrupt())?),
            (Signal::QUIT, signal(SignalKind::quit())?),
            (Signal::HUP, signal(SignalKind::hangup())?),
            (Signal::USR1, signal(SignalKind::user_defined1())?),
            (Signal::USR2, signal(SignalKind::user_defined2())?),
        ]))
    }

    async fn next(&mut self) -> Signal {
        std::future::poll_fn(|cx| {
            for (which, signals) in &mut self.0 {
                if signals.poll_recv(cx).is_ready() {
                    return std::task::Poll::Ready(*which);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}
