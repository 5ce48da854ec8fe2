//! The running daemon: the parts that everything else holds on to, started in order and ended in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};

use crate::admin::api::rfc3339;
use crate::app::asking::Asking;
use crate::app::control::{Controller, Requests};
use crate::app::doors::Doors;
use crate::app::gauges::with_gauges;
use crate::app::reload::{ReloadStatus, Reloader};
use crate::app::signals::Signals;
use crate::app::succession::Succession;
use crate::app::upgrade::{self, Follower, Upgrader};
use crate::app::{Invalid, demo, housekeeping, shutdown, surfaces};
use crate::config::auto::{self, Machine};
use crate::config::{Settings, Sources};
use crate::hbone::window::Windows;
use crate::identity::plan::{self, Plan};
use crate::identity::rotation::Terms;
use crate::identity::tls::system_clock;
use crate::identity::{Rotation, Rotator};
use crate::lifecycle::{Lifecycle, Phase, Program, Readiness, notify};
use crate::mesh::{Opened, ReloadOutcome};
use crate::net::descriptors::{self, Budget};
use crate::net::own_sockets::OwnSockets;
use crate::proxy::accept::Exhaustion;
use crate::proxy::balance::eject::Ejections;
use crate::proxy::handshakes::Slots;
use crate::proxy::limits::ConnectionLimits;
use crate::proxy::rate::Rates;
use crate::proxy::worker::{self, Command, Post, Shared};
use crate::telemetry::door::Scope;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traffic::TrafficLimits;
use crate::telemetry::{CloseReason, Logger};

/// Connections that may wait to be handed to a worker, and requests to it.
const COMMANDS: usize = 1024;
/// Requests to reload or drain that may wait.
const REQUESTS: usize = 4;

/// Why it is not ready before the first look at the mesh files is over.
const READING: &str = "the mesh files are being read";
/// How long the workers may take to begin.
const START_WITHIN: Duration = Duration::from_secs(1);
/// How long the surfaces of a superseded process may take to answer whoever has come to them.
const SURFACES_WITHIN: Duration = Duration::from_secs(2);
/// How long an exit at once may take to reset what is open.
const RESET_WITHIN: Duration = Duration::from_millis(300);

type LocalTask = tokio::task::JoinHandle<()>;

/// The parts that everything else holds on to.
pub(super) struct Daemon {
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
    settings: watch::Sender<Arc<Settings>>,
    commands: Vec<mpsc::Receiver<Command>>,
    machine: Machine,
    identity: Option<(Rotator, Rotation)>,
    succession: Succession,
    program: Option<Program>,
}

/// How a daemon ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// In its own time.
    Drained,
    /// Its time was up, or it was told twice.
    Forced,
}

/// What a daemon is made from.
pub(super) struct Basis<'a> {
    pub(super) settings: &'a Settings,
    pub(super) machine: Machine,
    pub(super) doors: &'a Doors,
    pub(super) mesh: &'a Opened,
    pub(super) logger: &'a Logger,
    pub(super) started: Instant,
    pub(super) workers: usize,
    pub(super) plan: Option<Plan>,
    pub(super) lifecycle: Lifecycle,
    pub(super) succession: Succession,
    /// What an upgrade starts.
    pub(super) program: Option<Program>,
}

impl Daemon {
    #[must_use]
    pub(super) fn new(basis: Basis<'_>) -> Self {
        let Basis { settings, machine, doors, mesh, logger, started, workers, plan, lifecycle, succession, program } =
            basis;
        let (sender, settings_reader) = watch::channel(Arc::new(settings.clone()));
        let (posts, commands) = (0..workers)
            .map(|_| {
                let (commands, receiver) = mpsc::channel(COMMANDS);
                (Post { commands, load: AtomicUsize::new(0), beat: AtomicU64::new(0) }, receiver)
            })
            .unzip();
        let mut metrics = Metrics::new(&settings.metrics.labels, TrafficLimits::default(), logger.handle());
        let readiness = Readiness::default();
        let identity = plan.and_then(|plan| keep_identity(settings, plan, &readiness));
        if let Some((_, rotation)) = &identity {
            metrics.register(Box::new(rotation.metrics()));
        }
        let families = Arc::clone(&metrics.traffic);
        let shared = Arc::new(Shared {
            settings: settings_reader,
            snapshot: mesh.snapshots.clone(),
            tls: identity.as_ref().map(|(_, rotation)| rotation.tls.clone()),
            peers: identity.as_ref().map(|(_, rotation)| rotation.peers.clone()).unwrap_or_default(),
            handshake_failures: identity.as_ref().map(|(_, it)| Arc::clone(&it.handshakes)).unwrap_or_default(),
            lifecycle,
            readiness,
            own_sockets: OwnSockets::default(),
            own_ports: doors.own_ports.clone(),
            budget: Budget::new(machine.open_files.unwrap_or(u64::MAX), descriptors::open_now()),
            limits: ConnectionLimits::default(),
            rates: Rates::default(),
            ejections: Ejections::default(),
            handshakes: Slots::new(settings.limits.handshakes),
            windows: Windows::new(),
            log: logger.handle(),
            families,
            mark: settings.packet_mark.filter(|_| captures(settings)),
            can_show_source: [AtomicBool::new(false), AtomicBool::new(false)],
            force_until: std::sync::OnceLock::new(),
            exhaustion: Exhaustion::default(),
            accepting: Default::default(),
            started,
            posts,
        });
        let metrics = Arc::new(with_gauges(metrics, &shared, &succession.predecessors));
        let daemon = Self { shared, metrics, settings: sender, commands, machine, identity, succession, program };
        let decided = apply_limits(&daemon.shared, &daemon.metrics, settings, &daemon.machine);
        let limit = daemon.shared.limits.usage(Scope::Total).1;
        let limit = limit.map_or_else(|| "none".to_owned(), |limit| limit.to_string());
        tracing::info!(limit, decided, workers, "limit of connections");
        daemon
    }

    /// Starts everything, waits for the end, ends everything.
    ///
    /// # Errors
    /// What could not be started; [`Invalid`] when that was the state.
    pub(super) async fn serve(
        mut self,
        sources: Sources,
        settings: Settings,
        mut doors: Doors,
        mesh: Opened,
        demo: bool,
        signals: Signals,
    ) -> Result<End> {
        let shared = Arc::clone(&self.shared);
        shared.readiness.block("mesh", Some(READING.to_owned()));
        let threads = self.start_workers(&mut doors)?;
        let (mesh_requests, asked_of_mesh) = mpsc::channel(REQUESTS);
        let rotation = self.identity.take().map(|(rotator, rotation)| {
            tokio::task::spawn_local(rotator.run(shared.lifecycle.clone()));
            rotation
        });
        let (reloads, requests) = mpsc::channel(REQUESTS);
        let (status, reload_status) = watch::channel(ReloadStatus::default());
        let reloader = Reloader {
            sources,
            settings: self.settings.clone(),
            shared: Arc::clone(&shared),
            metrics: Arc::clone(&self.metrics),
            machine: self.machine,
            mesh: mesh_requests,
            identity: rotation.clone(),
            status,
        };
        tokio::task::spawn_local(reloader.run(requests));
        let (drains, drain_requests) = mpsc::channel(1);
        let (upgrades, upgrade_requests) = mpsc::channel(1);
        let predecessors = self.succession.predecessors.clone();
        let requests = Requests { reloads: reloads.clone(), drains, upgrades: upgrades.clone() };
        let controller =
            Controller::new(Arc::clone(&shared), mesh.status.clone(), reload_status, requests, predecessors, &doors)
                .with_identity(rotation, Arc::clone(&self.metrics));
        let successor = self.succession.is_successor();
        let surfaces = surfaces::start(&shared, &self.metrics, &mut doors, &settings, controller, successor);
        housekeeping::start_watchdog(&shared, successor);
        let owns_socket_file = doors.owns_socket_file();
        let (followed, mut follower) = oneshot::channel();
        let upgrader = tokio::task::spawn_local(self.upgrader(&mut doors, followed).run(upgrade_requests));
        if demo {
            demo::start(shared.lifecycle.clone())?;
        }
        let mut asking = Asking::new(signals, drain_requests, reloads, upgrades);
        let mut succession = std::mem::take(&mut self.succession);
        let running = async {
            self.come_up(&settings, mesh, asked_of_mesh, &mut succession).await?;
            if let Some(owned) = owns_socket_file {
                owned.store(true, Ordering::Relaxed);
            }
            if demo {
                demo::ready(&shared.lifecycle, &shared.readiness).await;
                demo::greet(&doors, &settings.mesh.files).context("cannot print")?;
            }
            anyhow::Ok(())
        };
        let follower = tokio::select! {
            biased;
            // No upgrader can fail while this waits for one.
            Ok(follower) = &mut follower => Some(follower),
            // Once it is up, only whoever asks ends it.
            Err(error) = running => {
                shared.lifecycle.advance(Phase::Stopped);
                let _ = timeout(RESET_WITHIN, all_ended(&threads)).await;
                return Err(error);
            }
            () = asking.asked() => None,
        };
        let end = Box::pin(self.finish(threads, &mut asking, follower, surfaces)).await;
        // A new version that does not serve yet ends with it.
        let _ = timeout(RESET_WITHIN, upgrader).await;
        Ok(end)
    }

    fn upgrader(&self, doors: &mut Doors, followed: oneshot::Sender<Follower>) -> Upgrader {
        Upgrader {
            program: self.program.clone(),
            handles: std::mem::take(&mut doors.handles),
            owns_socket_file: doors.owns_socket_file(),
            supervisor: self.succession.supervisor(),
            predecessors: self.succession.predecessors.clone(),
            shared: Arc::clone(&self.shared),
            followed,
        }
    }

    /// What takes its time: the workers' first turn, the first state, the first proof of source preservation, and leave to
    /// serve from the version before. Nothing is accepted before the end of it. Whoever wants to stop drops it, and does not
    /// wait for the thread that reads.
    async fn come_up(
        &self,
        settings: &Settings,
        mesh: Opened,
        requests: mpsc::Receiver<oneshot::Sender<ReloadOutcome>>,
        succession: &mut Succession,
    ) -> Result<()> {
        let shared = &self.shared;
        all_turn(shared).await;
        // Only now is everything open that is not the data path's: each worker has a runtime, the watchers their queues.
        shared.budget.set_others(descriptors::open_now());
        mesh.source.load_first().await.map_err(Invalid)?;
        tokio::task::spawn_local(mesh.source.run(requests, shared.lifecycle.clone()));
        let mut status = mesh.status.clone();
        housekeeping::start(shared, &self.metrics, settings, mesh.status).await;
        // Ends only with the process.
        let _ = status.wait_for(|status| status.has_state()).await;
        succession.begin(&shared.lifecycle, &shared.readiness).await?;
        tracing::info!(after = ?shared.started.elapsed(), "accepting");
        Ok(())
    }

    fn start_workers(&mut self, doors: &mut Doors) -> Result<Vec<JoinHandle<()>>> {
        let mut threads = Vec::new();
        for (index, commands) in std::mem::take(&mut self.commands).into_iter().enumerate() {
            let doors = doors.data.get_mut(index).map(std::mem::take).unwrap_or_default();
            let counters = self.metrics.workers.register();
            let thread = worker::spawn(index, Arc::clone(&self.shared), counters, doors, commands)
                .context("cannot start a data worker")?;
            threads.push(thread);
        }
        Ok(threads)
    }

    /// Drains, unless a second signal says otherwise, and ends the threads. What else asks meanwhile changes nothing.
    async fn finish(
        self,
        threads: Vec<JoinHandle<()>>,
        asking: &mut Asking,
        follower: Option<Follower>,
        surfaces: Vec<LocalTask>,
    ) -> End {
        let settings = self.settings.borrow().shutdown;
        let open = self.shared.limits.usage(Scope::Total).0;
        match follower {
            Some(follower) => {
                let until = follower.until.map_or_else(|| "the last has ended".to_owned(), rfc3339);
                tracing::info!(connections = open, until, "upgraded: what is open stays here and drains");
                tokio::task::spawn_local(upgrade::tell(follower, Arc::clone(&self.shared)));
            }
            None => {
                notify::stopping(open);
                tokio::task::spawn_local(housekeeping::extend_stop());
            }
        }
        let cuts = || self.metrics.workers.closed(CloseReason::Drain);
        let mut forced = false;
        tokio::select! {
            drained = shutdown::drain(&self.shared, &settings, cuts) => {
                tracing::info!(took = ?drained.took, connections = drained.open, cut = drained.cut, "drained");
                // The threads end once their last connection is gone; ones that do not are left behind.
                tokio::select! {
                    () = all_ended(&threads) => {}
                    () = shutdown::last_moment(&self.shared) => tracing::warn!("a data worker did not end in time"),
                }
            }
            () = asking.told_again(self.shared.lifecycle.is_superseded()) => {
                forced = true;
                let open = self.shared.limits.usage(Scope::Total).0;
                tracing::warn!(connections = open, "told twice to stop: exiting at once");
                // What the kernel closes after us would look like a clean end.
                self.shared.lifecycle.advance(Phase::Stopped);
                // Whatever cannot be reset in this time must not hold the exit up.
                let _ = timeout(RESET_WITHIN, all_ended(&threads)).await;
            }
        }
        if self.shared.lifecycle.is_superseded() && !forced {
            // Whoever has come to this process is still answered here.
            let ended = async {
                for server in surfaces {
                    let _panicked = server.await;
                }
            };
            let _ = timeout(SURFACES_WITHIN, ended).await;
        }
        self.shared.lifecycle.advance(Phase::Stopped);
        if forced || self.shared.force_until.get().is_some() { End::Forced } else { End::Drained }
    }
}

/// Returns when every worker has begun to turn, which nothing but a machine that stands still can hold up for long.
async fn all_turn(shared: &Shared) {
    let begun = || shared.posts.iter().all(|post| post.beat.load(Ordering::Relaxed) > 0);
    let turning = async {
        while !begun() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    // Then some of it is not counted.
    let _ = timeout(START_WITHIN, turning).await;
}

async fn all_ended(threads: &[JoinHandle<()>]) {
    while !threads.iter().all(JoinHandle::is_finished) {
        sleep(Duration::from_millis(5)).await;
    }
}

/// What keeps the identity fresh, and what readers hold of it.
fn keep_identity(settings: &Settings, plan: Plan, readiness: &Readiness) -> Option<(Rotator, Rotation)> {
    let source = plan::source(settings, &plan.id)?;
    tracing::info!(identity = %plan.id, source = source.name(), "identity");
    let terms = Terms {
        accepted: plan.accepted,
        root_grace: plan.root_grace,
        clock: system_clock(),
        jitter: fastrand::f64,
        readiness: readiness.clone(),
    };
    Some(Rotator::new(source, terms))
}

fn captures(settings: &Settings) -> bool {
    settings.listen.outbound.is_some() || settings.listen.inbound.is_some()
}

/// Puts the limits in force; returns the words for what decided the total.
pub(super) fn apply_limits(shared: &Shared, metrics: &Metrics, settings: &Settings, machine: &Machine) -> String {
    let total = auto::connections(settings.limits.connections, machine);
    let of = |scope| match scope {
        Scope::Total => total.limit,
        Scope::Outbound => settings.limits.outbound,
        Scope::Inbound => settings.limits.inbound,
        Scope::Socks5 => settings.limits.socks5,
        Scope::Hbone => settings.limits.hbone,
    };
    shared.limits.set(|scope| of(scope).map(std::num::NonZeroUsize::get));
    shared.handshakes.set_limit(settings.limits.handshakes);
    for scope in Scope::ALL {
        metrics.limits.set(scope, of(scope));
    }
    total.term.to_string()
}
