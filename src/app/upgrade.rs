//! Upgrade, as the version sees it that is to be followed: it starts the program that lies at its own path now, gives it
//! every listening socket by name, and goes on serving until the new one accepts; then it drains. Whatever goes wrong
//! before leaves it serving, with the reason in the log and in the answer.
//!
//! Only listening sockets move. Connections, tunnels, ejections and counters stay here and end here.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

use crate::admin::api::{DrainingVersion, UpgradeReport, rfc3339};
use crate::app::doors::Handle;
use crate::app::succession::{MOST_DRAINING, Predecessors};
use crate::config::settings::Shutdown;
use crate::lifecycle::handover::{Gift, HandoverError, Heir, Left, Ready, Version};
use crate::lifecycle::launcher::Launched;
use crate::lifecycle::link::Link;
use crate::lifecycle::program::Program;
use crate::lifecycle::supervisor::Supervisor;
use crate::lifecycle::{Phase, notify};
use crate::proxy::worker::Shared;
use crate::telemetry::door::Scope;

/// How long the new version may take until it could serve: settings, first state, first certificates.
const READY_WITHIN: Duration = Duration::from_secs(45);
/// How long a process that has closed its link may take to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(1);
/// How often the new version is told what is left here.
const TELL_EVERY: Duration = Duration::from_millis(500);

/// A request to upgrade; the answer is optional (a signal wants none).
pub(super) type Request = Option<oneshot::Sender<Result<UpgradeReport, String>>>;

/// Owns what an upgrade needs. One upgrade at a time; the first that succeeds is the last.
pub(super) struct Upgrader {
    pub(super) program: Option<Program>,
    pub(super) handles: Vec<Handle>,
    pub(super) owns_socket_file: Option<Arc<AtomicBool>>,
    pub(super) supervisor: Option<Arc<Supervisor>>,
    pub(super) predecessors: Predecessors,
    pub(super) shared: Arc<Shared>,
    /// Gets what there is of the new version.
    pub(super) followed: oneshot::Sender<Follower>,
}

/// The version that has taken over.
#[derive(Debug)]
pub(super) struct Follower {
    heir: Heir,
    /// When what is left here is cut.
    pub(super) until: Option<SystemTime>,
}

/// A new version that could serve.
struct Prepared {
    heir: Heir,
    ready: Ready,
}

/// A new version that does not serve yet. Dropped, it is taken back and ended.
struct Attempt {
    heir: Option<Heir>,
    started: Started,
}

enum Started {
    /// By this process.
    Here(Launched),
    /// By the supervisor.
    Elsewhere { number: u64, supervisor: Arc<Supervisor> },
}

impl Upgrader {
    /// Until an upgrade has succeeded or the process is told to stop.
    pub(super) async fn run(self, mut requests: mpsc::Receiver<Request>) {
        let lifecycle = self.shared.lifecycle.clone();
        loop {
            let answer = tokio::select! {
                biased;
                () = lifecycle.reached(Phase::PreDrain) => return,
                Some(answer) = requests.recv() => answer,
            };
            notify::status("upgrading");
            let prepared = tokio::select! {
                biased;
                () = lifecycle.reached(Phase::PreDrain) => Err("adit is stopping".to_owned()),
                prepared = self.prepare() => prepared,
            };
            let outcome = match prepared {
                Ok(prepared) => self.commit(prepared).await,
                Err(reason) => Err(reason),
            };
            // Who has asked meanwhile has seen it.
            while let Ok(Some(asked)) = requests.try_recv() {
                let _ = asked.send(Err("an upgrade was under way already".to_owned()));
            }
            match outcome {
                Ok((follower, report)) => {
                    if let Some(owned) =
                        self.owns_socket_file.as_ref().filter(|_| !report.left.iter().any(|it| it == "admin"))
                    {
                        owned.store(false, Ordering::Relaxed);
                    }
                    if let Some(answer) = answer {
                        // Whoever asked has given up.
                        let _ = answer.send(Ok(report));
                    }
                    lifecycle.supersede();
                    // Gone only with the process.
                    let _ = self.followed.send(follower);
                    return;
                }
                Err(reason) => {
                    tracing::error!(reason, "the upgrade has failed: nothing has changed");
                    if lifecycle.phase() == Phase::Ready {
                        notify::status("accepting connections; the last upgrade has failed");
                    }
                    if let Some(answer) = answer {
                        let _ = answer.send(Err(reason));
                    }
                }
            }
        }
    }

    /// Brings a new version as far as that it could serve.
    async fn prepare(&self) -> Result<Prepared, String> {
        if self.shared.lifecycle.phase() != Phase::Ready {
            return Err("this version does not serve yet".to_owned());
        }
        let draining = self.predecessors.list();
        if draining.len() >= MOST_DRAINING {
            return Err(too_many(&draining));
        }
        let mut attempt = self.start().await?;
        match self.hand_over(&mut attempt).await {
            Ok(ready) => match attempt.heir.take() {
                Some(heir) => Ok(Prepared { heir, ready }),
                None => Err("it was taken back".to_owned()),
            },
            Err(error) => Err(format!("the new version cannot serve: {}", attempt.failed(error).await)),
        }
    }

    /// Lets it serve. It may accept connections from here on, so it is not ended any more whatever happens here.
    async fn commit(&self, Prepared { heir, ready }: Prepared) -> Result<(Follower, UpgradeReport), String> {
        heir.take_over().await.map_err(|error| format!("the new version has failed as it took over: {error}"))?;
        let shutdown = self.shared.settings.borrow().shutdown;
        let until = deadline(&shutdown);
        let left = left(&self.shared, until);
        let report = UpgradeReport {
            from: Version::own(),
            to: ready.version,
            moved: ready.moved,
            opened: ready.opened,
            left: ready.left,
            connections: left.connections,
            until: left.until,
        };
        Ok((Follower { heir, until }, report))
    }

    async fn start(&self) -> Result<Attempt, String> {
        let (ours, theirs) = Link::pair().map_err(|error| format!("cannot make a link: {error}"))?;
        let started = match (&self.supervisor, &self.program) {
            (Some(supervisor), _) => {
                let number = supervisor.start(theirs.as_fd()).await.map_err(|error| error.to_string())?;
                Started::Elsewhere { number, supervisor: Arc::clone(supervisor) }
            }
            (None, Some(program)) => Started::Here(launch(program.clone(), theirs).await?),
            (None, None) => {
                return Err(
                    "the demo cannot be upgraded, and neither can a program that does not know its own path".to_owned()
                );
            }
        };
        tracing::info!("upgrade: the new version has been started");
        let heir = Heir::new(ours).map_err(|error| format!("cannot watch the link: {error}"))?;
        Ok(Attempt { heir: Some(heir), started })
    }

    async fn hand_over(&self, attempt: &mut Attempt) -> Result<Ready, HandoverError> {
        let Some(heir) = &attempt.heir else { return Err(HandoverError::Withdrawn) };
        {
            // Held until they have arrived, and not while the new one makes up its mind: a door may close meanwhile.
            let held: Vec<_> = self.handles.iter().filter_map(|handle| Some((handle.name, handle.hold()?))).collect();
            let draining = self.predecessors.links();
            let mut gift = Gift::default();
            for (name, socket) in &held {
                gift.listener(name, socket.as_fd());
            }
            for version in &draining {
                gift.draining(version);
            }
            heir.give(&gift).await?;
        }
        let ready = heir.ready(READY_WITHIN).await?;
        // Before it says that it is the one to watch.
        if let Started::Here(launched) = &mut attempt.started {
            launched.let_go();
        }
        Ok(ready)
    }
}

impl Attempt {
    /// Why, and how the process has ended if it has.
    async fn failed(&mut self, error: HandoverError) -> String {
        let Started::Here(launched) = &mut self.started else { return error.to_string() };
        if !matches!(error, HandoverError::Ended | HandoverError::Refused(_)) {
            return error.to_string();
        }
        let ended = async {
            loop {
                match launched.try_wait() {
                    Ok(Some(status)) => return Some(status),
                    Ok(None) => sleep(Duration::from_millis(10)).await,
                    Err(_) => return None,
                }
            }
        };
        match (timeout(GONE_WITHIN, ended).await.ok().flatten(), error) {
            (Some(status), HandoverError::Ended) => {
                format!("it ended with {status} before it was ready; see the log")
            }
            (_, error) => error.to_string(),
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let Some(heir) = self.heir.take() else { return };
        heir.withdraw();
        match &mut self.started {
            Started::Elsewhere { number, supervisor } => supervisor.end(*number),
            // It has served nobody.
            Started::Here(launched) => launched.kill(),
        }
    }
}

/// Starts it on another thread: it takes some milliseconds.
async fn launch(program: Program, link: OwnedFd) -> Result<Launched, String> {
    let launched = tokio::task::spawn_blocking(move || program.launch(link)).await;
    launched.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}

fn too_many(draining: &[DrainingVersion]) -> String {
    let mut text = "earlier versions are still draining:".to_owned();
    for version in draining {
        let connections = version.connections.map_or_else(String::new, |count| format!(" with {count} connections"));
        let until = version.until.as_ref().map_or_else(String::new, |until| format!(" until {until}"));
        text.push_str(&format!(" pid {}{connections}{until};", version.pid));
    }
    text.push_str(&format!(" at most {MOST_DRAINING} may drain at a time. Wait, or end the oldest with SIGTERM twice"));
    text
}

/// When what is left is cut, if the drain begins now.
fn deadline(shutdown: &Shutdown) -> Option<SystemTime> {
    shutdown.deadline.and_then(|deadline| SystemTime::now().checked_add(deadline))
}

fn left(shared: &Shared, until: Option<SystemTime>) -> Left {
    let connections = u64::try_from(shared.limits.usage(Scope::Total).0).unwrap_or(u64::MAX);
    Left { connections, until: until.map(rfc3339) }
}

/// Tells the new version what is left here, for as long as this process lives.
pub(super) async fn tell(Follower { heir, until }: Follower, shared: Arc<Shared>) {
    loop {
        heir.tell(&left(&shared, until));
        sleep(TELL_EVERY).await;
    }
}
