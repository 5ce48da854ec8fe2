//! A data worker: one thread with its own current-thread runtime. A connection stays on its worker, so everything here
//! is in cells; what workers share is in [`Shared`].
//!
//! The worker reads each new snapshot and settings once, into its own cells: a connection reads them there without any
//! lock. It hears the phases of the process, obeys commands from the control thread, and sweeps its connections.

mod endpoints;
mod memory;
mod run;

use std::cell::{Cell, Ref, RefCell};
use std::num::NonZeroU32;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::config::Settings;
use crate::hbone::client::DialOut;
use crate::hbone::window::Windows;
use crate::hbone::{self, Tunnels};
use crate::identity::TlsGeneration;
use crate::identity::failures::HandshakeFailures;
use crate::identity::peers::Peers;
use crate::identity::tls::system_clock;
use crate::lifecycle::{Lifecycle, Readiness};
use crate::mesh::Snapshot;
use crate::net::address::{PeerAddr, UpstreamAddr};
use crate::net::descriptors::{Budget, Lent};
use crate::net::local::LocalAddresses;
use crate::net::own_sockets::OwnSockets;
use crate::proxy::accept::Exhaustion;
use crate::proxy::baggage::Baggage;
use crate::proxy::balance::eject::Ejections;
use crate::proxy::gate::Served;
use crate::proxy::handshakes::{Queue, Slots};
use crate::proxy::hostnames::{Hostnames, System};
use crate::proxy::limits::{Admitted, ConnectionLimits};
use crate::proxy::loops::OwnPorts;
use crate::proxy::pool::Pool;
use crate::proxy::rate::Rates;
use crate::proxy::registry::Registry;
use crate::proxy::tunnelled::Arrived;
use crate::telemetry::log::LogHandle;
use crate::telemetry::traffic::{TrafficCache, TrafficFamilies, TrafficLabels, TrafficSeries};
use crate::telemetry::workers::WorkerCounters;
use crate::telemetry::{ConnectionInfo, Door, LineLimiter};

pub use run::{WorkerDoor, spawn};

/// Early failures that one worker logs a second for each listener.
const EARLY_LINES: NonZeroU32 = match NonZeroU32::new(5) {
    Some(lines) => lines,
    None => NonZeroU32::MIN,
};

/// What all workers share.
#[derive(Debug)]
pub struct Shared {
    pub settings: watch::Receiver<Arc<Settings>>,
    pub snapshot: watch::Receiver<Arc<Snapshot>>,
    /// The credentials in force; nothing: no identity is configured, and there are no tunnels.
    pub tls: Option<watch::Receiver<Option<Arc<TlsGeneration>>>>,
    /// Live peers by root, and handshakes that failed by reason.
    pub peers: Peers,
    pub handshake_failures: Arc<HandshakeFailures>,
    pub lifecycle: Lifecycle,
    pub readiness: Readiness,
    pub own_sockets: OwnSockets,
    pub own_ports: OwnPorts,
    pub budget: Budget,
    pub limits: ConnectionLimits,
    /// How many connections each source has made lately.
    pub rates: Rates,
    pub ejections: Ejections,
    pub handshakes: Slots,
    /// What the peers of all tunnels may send before an application takes it.
    pub windows: Arc<Windows>,
    pub log: LogHandle,
    pub families: Arc<TrafficFamilies>,
    /// `SO_MARK` of every upstream socket that does not dial in a client's name.
    pub mark: Option<NonZeroU32>,
    /// Whether showing the application the client's address has been proved to work, for IPv4 and IPv6.
    pub can_show_source: [AtomicBool; 2],
    /// By when a forced end must be complete; set before the phase is announced.
    pub force_until: std::sync::OnceLock<Instant>,
    /// Whether accepting lacks descriptors.
    pub exhaustion: Exhaustion,
    /// How many listening sockets of each door still accept.
    pub accepting: [AtomicUsize; Door::ALL.len()],
    /// When the process started: the workers' heartbeats count from here.
    pub started: Instant,
    /// One per worker.
    pub posts: Vec<Post>,
}

/// Where to reach a worker, and how it is.
#[derive(Debug)]
pub struct Post {
    pub commands: mpsc::Sender<Command>,
    /// Live connections, for balancing between workers.
    pub load: AtomicUsize,
    /// Milliseconds since the start of the process at the worker's last turn.
    pub beat: AtomicU64,
}

/// What a worker can be asked to do.
#[derive(Debug)]
pub enum Command {
    /// Carry a connection that another worker has accepted.
    Carry(Box<Accepted<std::net::TcpStream>>),
    /// List the live connections.
    List(oneshot::Sender<Vec<ConnectionInfo>>),
}

/// A connection that was accepted and let in.
#[derive(Debug)]
pub struct Accepted<S> {
    pub door: Door,
    pub stream: S,
    pub peer: PeerAddr,
    pub admitted: Admitted,
    pub lent: Lent,
}

/// One worker's own state.
#[derive(Debug)]
pub struct Worker {
    pub index: usize,
    pub shared: Arc<Shared>,
    pub registry: Rc<Registry>,
    pub pool: Rc<Pool>,
    pub tunnels: Rc<Tunnels>,
    /// Tunnels to others; nothing: no identity is configured.
    pub tunnel_pool: Option<Rc<hbone::Pool>>,
    pub baggage: Baggage,
    pub hostnames: Hostnames,
    /// Sockets of the HBONE door before they are tunnels.
    pub handshakes: Queue<Arrived>,
    pub counters: Arc<WorkerCounters>,
    settings: RefCell<Rc<Settings>>,
    snapshot: RefCell<Arc<Snapshot>>,
    /// Of that snapshot.
    served: RefCell<Served>,
    local: RefCell<LocalAddresses>,
    traffic: RefCell<TrafficCache>,
    limiters: RefCell<[LineLimiter; Door::ALL.len()]>,
    random: RefCell<fastrand::Rng>,
    /// Which doors accept; told through `doors_changed`.
    closed_doors: Cell<u8>,
    doors_changed: Notify,
    /// For the review.
    new_state: Notify,
    /// For connections that wait for something to appear in the state.
    any_state: Notify,
}

impl Worker {
    #[must_use]
    pub fn new(index: usize, shared: Arc<Shared>, counters: Arc<WorkerCounters>) -> Rc<Self> {
        let settings = Rc::new(Settings::clone(&shared.settings.borrow()));
        let snapshot = Arc::clone(&shared.snapshot.borrow());
        let tunnels = Tunnels::new(Arc::clone(&counters));
        let served = served_in(&snapshot, &settings);
        Rc::new(Self {
            index,
            registry: Rc::new(Registry::new(index)),
            pool: Pool::new(shared.budget.clone()),
            tunnel_pool: tunnel_pool(&shared, &tunnels),
            tunnels,
            baggage: Baggage::default(),
            hostnames: Hostnames::new(Rc::new(System), Arc::clone(&counters)),
            handshakes: Queue::default(),
            counters,
            settings: RefCell::new(settings),
            snapshot: RefCell::new(snapshot),
            served: RefCell::new(served),
            local: RefCell::default(),
            traffic: RefCell::default(),
            limiters: RefCell::new(std::array::from_fn(|_| LineLimiter::new(EARLY_LINES))),
            random: RefCell::new(fastrand::Rng::new()),
            closed_doors: Cell::new(0),
            doors_changed: Notify::new(),
            new_state: Notify::new(),
            any_state: Notify::new(),
            shared,
        })
    }

    /// The settings in force for the next connection.
    #[must_use]
    pub fn settings(&self) -> Rc<Settings> {
        Rc::clone(&self.settings.borrow())
    }

    /// The state in force for the next connection. Do not hold it across an await.
    #[must_use]
    pub fn snapshot(&self) -> Ref<'_, Snapshot> {
        Ref::map(self.snapshot.borrow(), AsRef::as_ref)
    }

    /// The workload that this daemon serves, in that state. Do not hold it across an await.
    #[must_use]
    pub fn served(&self) -> Ref<'_, Served> {
        self.served.borrow()
    }

    /// Whether no workload of the state is meant to be served.
    #[must_use]
    pub fn serves_nobody(&self) -> bool {
        self.settings.borrow().workload.name.is_empty()
    }

    /// Takes a new state for all connections from here on.
    pub fn follow(&self, snapshot: Arc<Snapshot>) {
        *self.served.borrow_mut() = served_in(&snapshot, &self.settings());
        *self.snapshot.borrow_mut() = snapshot;
        self.new_state.notify_one();
        self.any_state.notify_waiters();
    }

    /// Returns when there is a state that has not been reviewed.
    pub async fn state_changed(&self) {
        self.new_state.notified().await;
    }

    /// What `find` finds in the state, now or in one that comes before `until`.
    pub async fn wait_for<T>(&self, until: tokio::time::Instant, find: impl Fn(&Snapshot) -> Option<T>) -> Option<T> {
        loop {
            let changed = self.any_state.notified();
            if let Some(found) = find(&self.snapshot()) {
                return Some(found);
            }
            tokio::time::timeout_at(until, changed).await.ok()?;
        }
    }

    /// Who we are to the peers of tunnels.
    #[must_use]
    pub fn own_identity(&self) -> Option<Arc<str>> {
        let tls = self.shared.tls.as_ref()?.borrow();
        tls.as_ref().map(|tls| tls.credentials.id().shared())
    }

    /// Whether dialling `address` would come back to adit.
    #[must_use]
    pub fn is_own(&self, address: UpstreamAddr) -> bool {
        self.shared.own_ports.contain(address, &mut self.local.borrow_mut())
    }

    /// Whether `ip` is an address of this network namespace.
    #[must_use]
    pub fn is_local(&self, ip: std::net::IpAddr) -> bool {
        self.local.borrow_mut().contains(ip)
    }

    pub fn with_random<T>(&self, use_it: impl FnOnce(&mut fastrand::Rng) -> T) -> T {
        use_it(&mut self.random.borrow_mut())
    }

    #[must_use]
    pub fn traffic(&self, labels: &TrafficLabels) -> Arc<TrafficSeries> {
        self.traffic.borrow_mut().series(&self.shared.families, labels)
    }

    /// Whether another line about an early failure at `door` may be logged now.
    #[must_use]
    pub fn admit_line(&self, door: Door) -> bool {
        let admitted = self.limiters.borrow_mut()[door as usize].admit(Instant::now());
        if !admitted {
            self.counters.lines_suppressed(1);
        }
        admitted
    }

    /// Whether `door` no longer accepts.
    #[must_use]
    pub fn is_closed(&self, door: Door) -> bool {
        self.closed_doors.get() & (1 << door as u8) != 0
    }

    /// Returns when `door` no longer accepts.
    pub async fn closing(&self, door: Door) {
        loop {
            let changed = self.doors_changed.notified();
            if self.is_closed(door) {
                return;
            }
            changed.await;
        }
    }

    fn close_door(&self, door: Door) {
        self.closed_doors.set(self.closed_doors.get() | (1 << door as u8));
        self.doors_changed.notify_waiters();
    }

    fn post(&self) -> &Post {
        &self.shared.posts[self.index]
    }

    /// Publishes how many connections live here, tunnels and what is to become one included.
    pub fn publish_load(&self) {
        let load = self.registry.len() + self.tunnels.len() + self.handshakes.len();
        self.post().load.store(load, Ordering::Relaxed);
    }
}

fn served_in(snapshot: &Snapshot, settings: &Settings) -> Served {
    Served::new(snapshot, snapshot.local_workload(&settings.workload, &settings.node))
}

fn tunnel_pool(shared: &Shared, tunnels: &Rc<Tunnels>) -> Option<Rc<hbone::Pool>> {
    let tls = shared.tls.clone()?;
    Some(hbone::Pool::new(hbone::pool::Parts {
        dial: Rc::new(DialOut {
            mark: shared.mark,
            own_sockets: shared.own_sockets.clone(),
            budget: shared.budget.clone(),
            settings: shared.settings.clone(),
        }),
        tls,
        tunnels: Rc::clone(tunnels),
        clock: system_clock(),
        idle_tunnels: hbone::pool::IDLE_TUNNELS,
        books: hbone::pool::Books {
            windows: Arc::clone(&shared.windows),
            peers: shared.peers.clone(),
            failures: Arc::clone(&shared.handshake_failures),
        },
    }))
}

/// A worker hands a new connection over when it is this much above the least loaded: by a sixteenth and a few.
#[must_use]
pub fn hand_over_to(posts: &[Post], own: usize) -> Option<usize> {
    let load = |post: &Post| post.load.load(Ordering::Relaxed);
    let (index, least) = posts.iter().map(load).enumerate().min_by_key(|(_, load)| *load)?;
    let mine = posts.get(own).map(load)?;
    (mine > least + 8 + least / 16).then_some(index)
}

/// How long a turn of a worker may take before it counts as stuck.
pub const STUCK_AFTER: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    fn posts(loads: &[usize]) -> Vec<Post> {
        loads
            .iter()
            .map(|load| Post { commands: mpsc::channel(1).0, load: AtomicUsize::new(*load), beat: AtomicU64::new(0) })
            .collect()
    }

    #[test]
    fn only_a_worker_well_above_the_least_loaded_hands_over() {
        for (loads, own, want) in [
            (&[0, 0][..], 0, None),
            (&[8, 0], 0, None),
            (&[9, 0], 0, Some(1)),
            (&[0, 9], 0, None),
            (&[1000, 950], 0, None),
            (&[1100, 950, 940], 0, Some(2)),
            (&[5000], 0, None),
        ] {
            assert_eq!(hand_over_to(&posts(loads), own), want, "{loads:?}");
        }
    }
}
