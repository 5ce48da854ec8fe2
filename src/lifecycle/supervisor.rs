//! The process that is pid 1 when adit is: it starts the daemon and every later version of it, passes signals on, reaps
//! whatever ends, and exits with the status of the last version. It carries no traffic and reads no settings.
//!
//! A daemon that is itself pid 1 could not leave its place to a later version: the container ends with it.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, wait};
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
    Started { number: u64 },
    /// The other.
    NotStarted { number: u64, reason: String },
}

/// From a version.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Up {
    /// It can take SIGHUP and SIGUSR2.
    Listening,
    /// Start the program anew, with the link that comes along as the one to its predecessor.
    Start { number: u64 },
    /// End the one that was started by that number: it has come to nothing.
    End { number: u64 },
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
pub struct Supervisor {
    link: AsyncLink,
    /// Of the last version that was asked for: an answer may come when nobody waits for it any more.
    last: AtomicU64,
}

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
        Ok(Supervisor { link: self.0.watched()?, last: AtomicU64::new(0) })
    }
}

impl Supervisor {
    /// Signals may come from now on.
    pub fn listening(&self) {
        let _gone = self.link.send(&Up::Listening, &[]);
    }

    /// This version serves.
    pub fn current(&self) {
        let _gone = self.link.send(&Up::Current, &[]);
    }

    /// Has the next version started; `link` is the successor's end. Returns the number by which it can be ended.
    ///
    /// # Errors
    /// Why it could not be started.
    pub async fn start(&self, link: BorrowedFd<'_>) -> io::Result<u64> {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        // Whatever comes between: what was asked for is then taken back.
        let mut undo = Undo(Some((self, number)));
        self.link.send(&Up::Start { number }, &[link])?;
        let answer = async {
            loop {
                match self.link.receive::<Down>().await?.0 {
                    Down::Started { number: answered } if answered == number => return Ok(()),
                    Down::NotStarted { number: answered, reason } if answered == number => {
                        return Err(io::Error::other(reason));
                    }
                    // Of one that has been given up.
                    _ => {}
                }
            }
        };
        let answered = tokio::time::timeout(START_WITHIN, answer).await;
        answered.map_err(|_elapsed| io::Error::other("process 1 does not answer"))??;
        undo.0 = None;
        Ok(number)
    }

    /// Has a version ended that has come to nothing.
    pub fn end(&self, number: u64) {
        let _gone = self.link.send(&Up::End { number }, &[]);
    }
}

/// Ends what was asked for when nobody waits for it any more.
struct Undo<'a>(Option<(&'a Supervisor, u64)>);

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if let Some((supervisor, number)) = self.0 {
            supervisor.end(number);
        }
    }
}

/// A version that runs.
struct Version {
    pid: Pid,
    link: Rc<AsyncLink>,
    listening: bool,
    /// Who has asked for it, and by which number.
    asked: Option<(Pid, u64)>,
    /// Whether it has ever served.
    has_served: bool,
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
    /// Whether all have been told to end.
    ending: bool,
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
    let mut pid1 = Pid1 { program, versions: Vec::new(), current: None, status: 0, ending: false, messages };
    let names = sockets.iter().map(|(name, _)| name.clone()).collect();
    let descriptors: Vec<_> = sockets.iter().map(|(_, socket)| socket.as_fd()).collect();
    pid1.current = Some(pid1.start(names, &descriptors, None)?);
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
    fn start(
        &mut self,
        sockets: Vec<String>,
        descriptors: &[BorrowedFd<'_>],
        asked: Option<(Pid, u64)>,
    ) -> io::Result<Pid> {
        let successor = asked.is_some();
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
        self.versions.push(Version { pid, link, listening: false, asked, has_served: !successor });
        Ok(pid)
    }

    fn obey(&mut self, from: Pid, message: &Up, descriptors: &[OwnedFd]) {
        match message {
            Up::Listening => {
                if let Some(version) = self.versions.iter_mut().find(|version| version.pid == from) {
                    version.listening = true;
                }
            }
            Up::Current => {
                self.current = Some(from);
                for version in self.versions.iter_mut().filter(|version| version.pid == from) {
                    version.has_served = true;
                }
            }
            Up::End { number } => {
                let asked = Some((from, *number));
                if let Some(version) = self.versions.iter().find(|it| it.asked == asked && !it.has_served) {
                    send(version.pid, Signal::KILL);
                }
            }
            Up::Start { number } if self.ending => {
                self.answer(from, &Down::NotStarted { number: *number, reason: "adit is stopping".to_owned() });
            }
            Up::Start { number } => {
                let number = *number;
                let descriptors: Vec<_> = descriptors.iter().map(OwnedFd::as_fd).collect();
                let answer = match self.start(Vec::new(), &descriptors, Some((from, number))) {
                    Ok(_pid) => Down::Started { number },
                    Err(error) => {
                        let reason = format!("cannot start {}: {error}", self.program.path().display());
                        Down::NotStarted { number, reason }
                    }
                };
                self.answer(from, &answer);
            }
        }
    }

    fn answer(&self, to: Pid, answer: &Down) {
        if let Some(version) = self.versions.iter().find(|version| version.pid == to) {
            let _gone = version.link.send(answer, &[]);
        }
    }

    /// What asks for the end is for all versions, the rest for the one that serves. A version that does not listen yet
    /// would be killed by what is not meant so.
    fn pass_on(&mut self, passed: Signal) {
        let ends = passed == Signal::TERM || passed == Signal::INT;
        self.ending |= ends;
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
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    let known = self.versions.iter().any(|version| version.pid == pid);
                    self.versions.retain(|version| version.pid != pid);
                    if known && Some(pid) == self.current {
                        self.status = exit_status(status);
                        if self.status != 0 {
                            // Whoever has not served yet must not begin to when nobody watches it.
                            for version in self.versions.iter().filter(|version| !version.has_served) {
                                send(version.pid, Signal::KILL);
                            }
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

/// The signals that are passed on, and others that would end this process and mean nothing to a daemon.
struct Passed {
    passed: [(Signal, Signals); 4],
    _ignored: [Signals; 2],
}

impl Passed {
    fn listen() -> io::Result<Self> {
        Ok(Self {
            passed: [
                (Signal::TERM, signal(SignalKind::terminate())?),
                (Signal::INT, signal(SignalKind::interrupt())?),
                (Signal::HUP, signal(SignalKind::hangup())?),
                (Signal::USR2, signal(SignalKind::user_defined2())?),
            ],
            _ignored: [signal(SignalKind::quit())?, signal(SignalKind::user_defined1())?],
        })
    }

    async fn next(&mut self) -> Signal {
        std::future::poll_fn(|cx| {
            for (which, signals) in &mut self.passed {
                if signals.poll_recv(cx).is_ready() {
                    return std::task::Poll::Ready(*which);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}
