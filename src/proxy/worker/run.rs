//! A worker's thread: its main loop beside its acceptors and connections.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::sleep_until;

use crate::identity::TlsGeneration;
use crate::lifecycle::Phase;
use crate::mesh::Protocol;
use crate::net::listen::ListenOptions;
use crate::proxy::registry::{Direction, Entry, State};
use crate::proxy::review::review;
use crate::proxy::sweep::{IDLE_TICK, TICK, sweep};
use crate::proxy::worker::memory::{Ebb, give_back};
use crate::proxy::worker::{Accepted, Command, Shared, Worker};
use crate::proxy::{accept, carry, tunnelled};
use crate::telemetry::workers::WorkerCounters;
use crate::telemetry::{
    CloseReason, ConnectionInfo, ConnectionPeer, ConnectionState, Door, PeerLabels, Role, TunnelEnd,
};

/// Threads for name look-ups of SOCKS5 clients, per worker.
const BLOCKING_THREADS: usize = 4;
/// How often what is left is cut while the end is forced.
const CUT_EVERY: Duration = Duration::from_millis(50);
/// How often the label cache lets go of what is no longer asked for.
const ROTATE_EVERY: Duration = Duration::from_secs(60);

/// One listening socket of this worker.
#[derive(Debug)]
pub struct WorkerDoor {
    pub door: Door,
    pub listener: Arc<std::net::TcpListener>,
    /// Of a socket that was made elsewhere: what is still to be set on it.
    pub adopted: Option<ListenOptions>,
}

/// Starts the thread of worker `index`. It ends when all doors are closed and no connection is left.
///
/// # Errors
/// The thread or its runtime could not be made.
pub fn spawn(
    index: usize,
    shared: Arc<Shared>,
    counters: Arc<WorkerCounters>,
    doors: Vec<WorkerDoor>,
    commands: mpsc::Receiver<Command>,
) -> io::Result<std::thread::JoinHandle<()>> {
    // Before the thread starts, so that it cannot miss a phase.
    let phases = shared.lifecycle.subscribe();
    for WorkerDoor { door, .. } in &doors {
        shared.accepting[*door as usize].fetch_add(1, Ordering::Relaxed);
    }
    let runtime_of = move || {
        Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(BLOCKING_THREADS)
            .thread_name(format!("adit-names-{index}"))
            .build_local(LocalOptions::default())
    };
    std::thread::Builder::new().name(format!("adit-data-{index}")).spawn(move || match runtime_of() {
        Ok(runtime) => {
            let worker = Worker::new(index, shared, counters);
            runtime.block_on(main_loop(&worker, doors, commands, phases));
            // Names that are still being looked up would otherwise hold the exit up.
            runtime.shutdown_background();
        }
        Err(error) => tracing::error!(worker = index, %error, "a data worker has no runtime"),
    })
}

async fn main_loop(
    worker: &Rc<Worker>,
    doors: Vec<WorkerDoor>,
    mut commands: mpsc::Receiver<Command>,
    mut phases: broadcast::Receiver<Phase>,
) {
    let mut acceptors = tokio::task::JoinSet::new();
    for WorkerDoor { door, listener, adopted } in doors {
        let worker = Rc::clone(worker);
        acceptors.spawn_local(async move {
            accept::accept(&worker, door, listener, adopted).await;
            worker.shared.accepting[door as usize].fetch_sub(1, Ordering::Relaxed);
        });
    }
    let _review = Alone(tokio::task::spawn_local(review(Rc::clone(worker))));
    let _handshakes = Alone(tokio::task::spawn_local(tunnelled::begin_handshakes(Rc::clone(worker))));
    let (mut judging, mut judged): (Option<Alone>, Option<Arc<TlsGeneration>>) = (None, None);
    let mut credentials = worker.shared.tls.clone();
    let mut settings = worker.shared.settings.clone();
    let mut snapshot = worker.shared.snapshot.clone();
    let mut chores = Chores { next_rotation: Instant::now() + ROTATE_EVERY, ebb: Ebb::default() };
    let mut phase = worker.shared.lifecycle.phase();
    let mut heard = false;
    let mut last_turn = tokio::time::Instant::now();
    loop {
        beat(worker);
        obey(worker, phase);
        if phase >= Phase::DrainInbound && acceptors.is_empty() && is_empty(worker) {
            // Nobody hands anything over from here on; what was handed over before is carried to its end.
            commands.close();
            match commands.recv().await {
                Some(command) => execute(worker, command),
                None => return,
            }
        }
        let tick = if phase >= Phase::Forced {
            CUT_EVERY
        } else if phase > Phase::Ready || !is_empty(worker) {
            TICK
        } else {
            IDLE_TICK
        };
        tokio::select! {
            // Counted from the last one: whatever else wakes the worker, however often, must not put it off.
            () = sleep_until(last_turn + tick) => {
                last_turn = tokio::time::Instant::now();
                turn(worker, &mut chores);
                if phase >= Phase::Forced {
                    cut(worker, phase);
                }
            }
            Ok(()) = changed(&mut settings) => {
                *worker.settings.borrow_mut() = Rc::new((**settings.borrow_and_update()).clone());
            }
            Ok(()) = changed(&mut snapshot) => {
                let new = Arc::clone(&snapshot.borrow_and_update());
                worker.follow(new);
                follow_workloads(worker);
            }
            Some(Some(generation)) = published(&mut credentials) => {
                if let Some(pool) = &worker.tunnel_pool {
                    pool.follow_generation(generation.number);
                }
                // A mere new leaf changes nothing. One that still judges by other trust is not needed any more.
                if !judged.as_ref().is_some_and(|known| known.same_trust(&generation)) {
                    let task = tunnelled::judge_tunnels(Rc::clone(worker), Arc::clone(&generation));
                    drop(judging.replace(Alone(tokio::task::spawn_local(task))));
                }
                judged = Some(generation);
            }
            Some(command) = commands.recv() => execute(worker, command),
            Some(_) = acceptors.join_next() => {}
            _ = phases.recv(), if !heard => {}
        }
        phase = worker.shared.lifecycle.phase();
        heard = phase == Phase::Stopped;
    }
}

/// A closed channel is not a change: the sender goes away only with the process.
async fn changed<T>(receiver: &mut watch::Receiver<T>) -> Result<(), watch::error::RecvError> {
    match receiver.changed().await {
        Ok(()) => Ok(()),
        Err(_closed) => std::future::pending().await,
    }
}

/// The next credentials.
async fn published(
    credentials: &mut Option<watch::Receiver<Option<Arc<TlsGeneration>>>>,
) -> Option<Option<Arc<TlsGeneration>>> {
    match credentials {
        Some(credentials) => {
            changed(credentials).await.ok()?;
            Some(credentials.borrow_and_update().clone())
        }
        None => std::future::pending().await,
    }
}

/// Tunnels to workloads that have left the state, or whose address another one has now, take no new streams.
fn follow_workloads(worker: &Worker) {
    let Some(pool) = &worker.tunnel_pool else { return };
    let snapshot = worker.snapshot();
    pool.retain(|key| {
        let ip = key.address().ip();
        snapshot.workload_by_uid(key.uid()).is_some_and(|it| {
            let has_door = key.goes_on || it.protocol == Protocol::Hbone;
            // What its name leads to is not in the state.
            has_door && (it.ips.contains(&ip) || !it.hostname.is_empty())
        })
    });
}

/// What is remembered from turn to turn.
struct Chores {
    next_rotation: Instant,
    ebb: Ebb,
}

/// A task that ends with whoever started it.
struct Alone(tokio::task::JoinHandle<()>);

impl Drop for Alone {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Whether nothing lives here: no connection, no tunnel, and nothing that is to become one.
fn is_empty(worker: &Worker) -> bool {
    worker.registry.is_empty() && worker.tunnels.is_empty() && worker.handshakes.is_empty()
}

fn beat(worker: &Worker) {
    let now = worker.shared.started.elapsed().as_millis();
    worker.post().beat.store(u64::try_from(now).unwrap_or(u64::MAX), Ordering::Relaxed);
    worker.publish_load();
}

fn obey(worker: &Worker, phase: Phase) {
    if phase < Phase::DrainInbound {
        return;
    }
    for door in [Door::Inbound, Door::Hbone] {
        if !worker.is_closed(door) {
            worker.close_door(door);
        }
    }
    // Told again each time: a tunnel that was in its handshake when the doors closed has not heard of it.
    // Those to others are the pool's: it lets one that is under way serve who waits for it.
    worker.tunnels.for_each(|tunnel| {
        if tunnel.about.role == Role::Server {
            tunnel.retire(TunnelEnd::Drain);
        }
    });
    if phase >= Phase::DrainAll {
        if let Some(pool) = &worker.tunnel_pool {
            pool.drain();
        }
        for door in Door::ALL.into_iter().filter(|door| !worker.is_closed(*door)) {
            worker.close_door(door);
        }
    }
}

fn execute(worker: &Rc<Worker>, command: Command) {
    match command {
        Command::Carry(accepted) => {
            let Accepted { door, stream, peer, admitted, lent } = *accepted;
            match tokio::net::TcpStream::from_std(stream) {
                Ok(stream) => carry(worker, Accepted { door, stream, peer, admitted, lent }),
                Err(error) => tracing::warn!(%error, "a connection was lost between two workers"),
            }
        }
        Command::List(answer) => {
            let now = Instant::now();
            let mut connections = Vec::with_capacity(worker.registry.len());
            worker.registry.for_each(|entry| connections.push(info(entry, now)));
            // Nobody waits any more: the request has timed out.
            let _ = answer.send(connections);
        }
    }
}

/// One turn of the sweep.
fn turn(worker: &Worker, chores: &mut Chores) {
    let now = Instant::now();
    let mut orphans = 0;
    worker.registry.for_each(|entry| {
        sweep(entry, now);
        orphans += u64::from(entry.orphaned_for(now).is_some());
    });
    worker.counters.publish_orphans(orphans);
    tunnelled::look_after(worker, now, SystemTime::now());
    if let Some(pool) = &worker.tunnel_pool {
        pool.sweep(now, &worker.settings().tunnel);
    }
    worker.registry.shrink();
    worker.pool.shrink();
    worker.tunnels.publish();
    if chores.ebb.sees(worker.registry.len(), now) {
        drop(tokio::task::spawn_blocking(give_back));
    }
    if now >= chores.next_rotation {
        chores.next_rotation = now + ROTATE_EVERY;
        worker.traffic.borrow_mut().rotate();
    }
    for door in Door::ALL {
        if let Some(lines) = worker.limiters.borrow_mut()[door as usize].summary(now) {
            tracing::warn!(listener = door.as_str(), lines, "more connections failed early; their lines were left out");
        }
    }
    if let Some(lines) = worker.tunnels.left_out(now) {
        tracing::warn!(lines, "more tunnels that peers made ended badly or unused; their lines were left out");
    }
    if let Some(lines) = worker.shared.handshakes.left_out(now) {
        let listener = Door::Hbone.as_str();
        tracing::warn!(listener, lines, "more handshakes failed; their lines were left out");
    }
}

/// Cuts its share of what is left, so that all is gone, evenly, when the time is up; all when the process stops.
fn cut(worker: &Worker, phase: Phase) {
    let now = Instant::now();
    let until = worker.shared.force_until.get().copied().filter(|_| phase == Phase::Forced).unwrap_or(now);
    let turns = until.saturating_duration_since(now).as_millis() / CUT_EVERY.as_millis() + 1;
    let left = worker.registry.len();
    let share = left.div_ceil(usize::try_from(turns).unwrap_or(usize::MAX));
    let mut to_cut = share;
    worker.registry.for_each(|entry| {
        if to_cut > 0 && entry.killed().is_none() {
            entry.kill(CloseReason::Drain);
            to_cut -= 1;
        }
    });
    // A tunnel falls after its streams, so that its peer hears of each; with them once the time is up and all of them
    // have been told before.
    let over = phase == Phase::Stopped || now >= until && to_cut == share;
    worker.tunnels.for_each(|tunnel| {
        if tunnel.streams() == 0 || over {
            tunnel.cut(TunnelEnd::Drain);
        }
    });
}

fn info(entry: &Entry, now: Instant) -> ConnectionInfo {
    let facts = entry.facts.borrow();
    let peer = |labels: &Option<Arc<PeerLabels>>| {
        labels.as_ref().map_or_else(ConnectionPeer::default, |labels| ConnectionPeer {
            workload: labels.name.to_string(),
            namespace: labels.namespace.to_string(),
            identity: labels.principal.to_string(),
        })
    };
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    ConnectionInfo {
        id: entry.id,
        direction: entry.door.direction(),
        listener: entry.door,
        downstream: facts.client.unwrap_or(entry.peer).socket_addr(),
        original_dst: facts.original_dst.map(|dst| dst.socket_addr()),
        upstream: facts.upstream.map(|upstream| upstream.socket_addr()),
        source: peer(&facts.source),
        destination: peer(&facts.destination),
        service: facts.service.as_ref().map_or_else(String::new, |service| service.hostname.to_string()),
        bytes_from_downstream: entry.bytes(Direction::Up),
        bytes_from_upstream: entry.bytes(Direction::Down),
        age_ms: millis(now.saturating_duration_since(entry.accepted)),
        idle_ms: millis(entry.idle(now)),
        state: state(entry),
    }
}

fn state(entry: &Entry) -> ConnectionState {
    match entry.state() {
        _ if entry.killed().is_some() => ConnectionState::Closing,
        State::Opening => ConnectionState::Accepting,
        State::Connecting => ConnectionState::Connecting,
        State::Established => ConnectionState::Open,
        State::HalfClosed(Direction::Up) => ConnectionState::DownstreamClosed,
        State::HalfClosed(Direction::Down) => ConnectionState::UpstreamClosed,
        State::Flushing => ConnectionState::Closing,
    }
}
