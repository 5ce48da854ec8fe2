//! One worker's tunnels to others, kept and shared: a stream goes into a tunnel that is there, or a new one is made.
//!
//! ```text
//! open -> own identity? -> a place in a tunnel (choice, row) -> CONNECT (client::ask) -> Stream
//!                          no room: wait; tunnels are made by tasks of the pool (attempt), for all who wait
//! ```
//!
//! A tunnel is shared by streams of one [`TunnelKey`] only. Streams are counted while they live; a place is taken before
//! anything is sent, so limits hold, ours (`tunnel.maxStreams`) and the peer's as it changes. Full tunnels always get
//! company: `tunnel.maxPerPeer` bounds only how many are opened while others still have room. A tunnel leaves the pool
//! when it takes no streams any more (goodbye or silence of the peer, newer credentials, age, idleness, another workload
//! at its address); its streams go on. No key waits for another, nothing is borrowed across an await, and what
//! a key needed is gone when its last tunnel and its last waiter are.
//!
//! Absent: retries on other endpoints; the caller has them, and [`OpenError::retryable`] says when not. A stream whose tunnel
//! turns out to be gone is tried once more in a fresh one.

mod attempt;
mod choice;
mod inside;
mod row;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Request;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout_at;

use crate::config::settings::Tunnel as Limits;
use crate::hbone::client::{Client, Dial, Failed, OpenError, Opened, Slot, Stage, ask};
use crate::hbone::pool::attempt::Attempt;
use crate::hbone::pool::row::Row;
use crate::hbone::tunnel::Tunnels;
use crate::hbone::window::Windows;
use crate::identity::failures::{HandshakeFailures, Role};
use crate::identity::peers::Peers;
use crate::identity::tls::Clock;
use crate::identity::{SpiffeId, TlsGeneration};
use crate::telemetry::TunnelEnd;

/// Tunnels without streams that a worker keeps; beyond, those that have been idle longest go early.
pub const IDLE_TUNNELS: usize = 1000;
/// After so long without streams a tunnel goes that was opened beyond `tunnel.maxPerPeer` because the others were full: what
/// a burst has opened is not kept as long as what is needed every day.
pub const SURPLUS_AFTER: Duration = Duration::from_secs(5);

/// What streams must have in common to share a tunnel. Our own identity is one per process.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TunnelKey {
    address: SocketAddr,
    identities: Arc<[SpiffeId]>,
    client: IpAddr,
    uid: Arc<str>,
    /// See [`TunnelKey::to_go_on`].
    pub goes_on: bool,
}

impl TunnelKey {
    /// `address`: the next hop. `identities`: who may be there, in any order. `client`: the original client, since the far
    /// side takes the tunnel's source for it. `uid`: of the target workload, since addresses are used again.
    #[must_use]
    pub fn new(address: SocketAddr, identities: Arc<[SpiffeId]>, client: IpAddr, uid: Arc<str>) -> Self {
        let identities = if identities.is_sorted_by(|one, next| one < next) {
            identities
        } else {
            let mut sorted = identities.to_vec();
            sorted.sort_unstable();
            sorted.dedup();
            sorted.into()
        };
        Self { address, identities, client, uid, goes_on: false }
    }

    /// To a waypoint or gateway: its streams go on from there, and its own protocol says nothing.
    #[must_use]
    pub fn to_go_on(self) -> Self {
        Self { goes_on: true, ..self }
    }

    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    #[must_use]
    pub const fn identities(&self) -> &Arc<[SpiffeId]> {
        &self.identities
    }

    #[must_use]
    pub const fn client(&self) -> IpAddr {
        self.client
    }

    #[must_use]
    pub const fn uid(&self) -> &Arc<str> {
        &self.uid
    }
}

/// What the pool is made of.
pub struct Parts {
    pub dial: Rc<dyn Dial>,
    pub tls: watch::Receiver<Option<Arc<TlsGeneration>>>,
    pub tunnels: Rc<Tunnels>,
    pub clock: Clock,
    /// Most often [`IDLE_TUNNELS`].
    pub idle_tunnels: usize,
    pub books: Books,
}

/// What the process counts of all its tunnels.
#[derive(Debug, Clone, Default)]
pub struct Books {
    pub windows: Arc<Windows>,
    pub peers: Peers,
    pub failures: Arc<HandshakeFailures>,
}

impl Books {
    /// Counts a handshake of ours that failed.
    fn failed(&self, error: &OpenError) {
        let reason = match error {
            OpenError::NoIdentity => "no_credentials",
            OpenError::HandshakeTimeout => "timeout",
            OpenError::Handshake(error) => error.reason(),
            OpenError::TurnedAway => "alert",
            _ => return,
        };
        self.failures.count(Role::Client, reason);
    }
}

/// See the module. Dropping it ends its tunnels at once; [`Pool::drain`] first.
pub struct Pool {
    parts: Parts,
    rows: RefCell<HashMap<TunnelKey, Rc<Row>>>,
    /// The newest generation of credentials heard of.
    generation: Cell<u64>,
    draining: Cell<bool>,
    next_serial: Rc<Cell<u64>>,
    tasks: RefCell<JoinSet<()>>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("keys", &self.keys()).finish_non_exhaustive()
    }
}

impl Pool {
    #[must_use]
    pub fn new(parts: Parts) -> Rc<Self> {
        Rc::new(Self {
            parts,
            rows: RefCell::default(),
            generation: Cell::new(0),
            draining: Cell::new(false),
            next_serial: Rc::new(Cell::new(1)),
            tasks: RefCell::default(),
        })
    }

    /// Opens a stream: waits for an identity, a place in a tunnel and the answer, all until `until` at most. Dropped before,
    /// it takes back what it began, except that a tunnel on its way is still made.
    ///
    /// # Errors
    /// Why there is none; see [`OpenError`].
    pub async fn open(
        self: &Rc<Self>,
        key: &TunnelKey,
        request: Request<()>,
        limits: &Limits,
        until: tokio::time::Instant,
    ) -> Result<Opened, OpenError> {
        let mut floor = 0;
        loop {
            self.identity(until).await?;
            let slot = self.place(key, limits, floor, until).await?;
            // Nothing has been asked yet: it is placed anew.
            if !slot.is_good() {
                continue;
            }
            let by = until.min(tokio::time::Instant::now() + limits.response_timeout);
            match Box::pin(ask(slot, request.clone(), by)).await {
                Ok(opened) => return Ok(opened),
                Err(Failed { stale: true, .. }) if floor == 0 => floor = self.next_serial.get(),
                Err(Failed { error, .. }) => return Err(error),
            }
        }
    }

    /// Tunnels made with older credentials take no new streams. Does nothing for a number that is not newer.
    pub fn follow_generation(&self, number: u64) {
        if number <= self.generation.replace(number.max(self.generation.get())) {
            return;
        }
        self.retire_where(|_, client| {
            (client.tunnel.about.generation < number && client.is_settled()).then_some(TunnelEnd::Rotated)
        });
    }

    /// Tunnels of keys for which `keep` says no take no new streams: their workload is gone, or is another one.
    pub fn retain(&self, mut keep: impl FnMut(&TunnelKey) -> bool) {
        for row in self.rows().into_iter().filter(|row| !keep(&row.key)) {
            row.disown(TunnelEnd::PeerReplaced);
            for client in row.clients().iter().filter(|client| client.is_settled()) {
                client.retire(TunnelEnd::PeerReplaced);
            }
            self.tidy(&row);
        }
    }

    /// No tunnel is kept beyond its streams any more. Streams can still be opened, for connections that are about to.
    pub fn drain(&self) {
        self.draining.set(true);
        self.retire_where(|_, client| client.is_settled().then_some(TunnelEnd::Drain));
    }

    /// Lets go of what is idle, too old or gone. To be called every second or more often.
    pub fn sweep(&self, now: Instant, limits: &Limits) {
        while let Some(done) = self.tasks.borrow_mut().try_join_next() {
            if let Err(error) = done
                && error.is_panic()
            {
                tracing::error!("a task of the tunnel pool has failed");
            }
        }
        for client in self.rows().iter().flat_map(|row| row.surplus(now, limits)) {
            client.retire(TunnelEnd::Idle);
        }
        let mut idle: Vec<(Duration, Rc<Client>)> = Vec::new();
        self.retire_where(|_, client| {
            let verdict = expired(client, now, limits);
            if verdict.is_none()
                && client.is_settled()
                && let Some(since) = client.tunnel.idle(now)
            {
                idle.push((since, Rc::clone(client)));
            }
            verdict
        });
        let excess = idle.len().saturating_sub(self.parts.idle_tunnels);
        if excess > 0 {
            idle.sort_unstable_by_key(|(since, _)| std::cmp::Reverse(*since));
            for (_, client) in idle.iter().take(excess) {
                client.retire(TunnelEnd::Idle);
            }
            self.retire_where(|_, _| None);
        }
    }

    /// Keys for which there is a tunnel, one under way, or somebody who waits.
    #[must_use]
    pub fn keys(&self) -> usize {
        self.rows.borrow().len()
    }

    /// The credentials to use; nothing if there are none that are still valid.
    fn current(&self) -> Option<Arc<TlsGeneration>> {
        let tls = self.parts.tls.borrow().clone()?;
        if !tls.is_current((self.parts.clock)()) {
            return None;
        }
        self.follow_generation(tls.number);
        Some(tls)
    }

    async fn identity(&self, until: tokio::time::Instant) -> Result<(), OpenError> {
        if self.current().is_some() {
            return Ok(());
        }
        let mut tls = self.parts.tls.clone();
        let waiting = async {
            while self.current().is_none() {
                if tls.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        timeout_at(until, waiting).await.map_err(|_elapsed| OpenError::NoIdentity)
    }

    async fn place(
        self: &Rc<Self>,
        key: &TunnelKey,
        limits: &Limits,
        floor: u64,
        until: tokio::time::Instant,
    ) -> Result<Slot, OpenError> {
        let row = self.row(key, limits);
        if !row.has_waiters()
            && let Some(slot) = row.take(floor)
        {
            if row.wants_company() {
                self.connect(&row);
            }
            return Ok(slot);
        }
        let mut waiting = row.wait(floor);
        self.serve(&row);
        let served = timeout_at(until, waiting.served()).await;
        drop(waiting);
        self.tidy(&row);
        served.unwrap_or_else(|_elapsed| match row.stage() {
            Stage::Connecting => Err(OpenError::ConnectTimeout),
            Stage::Handshaking => Err(OpenError::HandshakeTimeout),
        })
    }

    fn row(&self, key: &TunnelKey, limits: &Limits) -> Rc<Row> {
        let mut rows = self.rows.borrow_mut();
        if let Some(row) = rows.get(key) {
            row.set_limits(limits);
            return Rc::clone(row);
        }
        let row = Row::new(key.clone(), limits.clone());
        rows.insert(key.clone(), Rc::clone(&row));
        row
    }

    /// Gives those who wait what there is, and begins tunnels for the others.
    fn serve(self: &Rc<Self>, row: &Rc<Row>) {
        row.hand_out();
        for _ in 0..row.connects_needed() {
            self.connect(row);
        }
    }

    fn connect(self: &Rc<Self>, row: &Rc<Row>) {
        // First, since it keeps the key from being removed.
        let promise = row.promise();
        let attempt = Attempt {
            pool: Rc::downgrade(self),
            dial: Rc::clone(&self.parts.dial),
            tunnels: Rc::clone(&self.parts.tunnels),
            tls: self.current(),
            row: Rc::clone(row),
            promise,
            next_serial: Rc::clone(&self.next_serial),
            limits: row.limits(),
            books: self.parts.books.clone(),
        };
        self.tasks.borrow_mut().spawn_local(attempt.run());
    }

    /// Why a tunnel that has just been made is for those who waited and for nobody else.
    fn unwanted(&self, client: &Client) -> Option<TunnelEnd> {
        if self.draining.get() {
            Some(TunnelEnd::Drain)
        } else {
            (client.tunnel.about.generation < self.generation.get()).then_some(TunnelEnd::Rotated)
        }
    }

    /// The far side may have been revoked while the tunnel was made: nobody has judged it by that yet.
    fn judge_newcomer(&self, client: &Client) {
        let current = self.parts.tls.borrow().clone();
        client.tunnel.judge_newcomer(current.as_deref(), (self.parts.clock)());
    }

    fn rows(&self) -> Vec<Rc<Row>> {
        self.rows.borrow().values().cloned().collect()
    }

    fn retire_where(&self, mut verdict: impl FnMut(&Row, &Rc<Client>) -> Option<TunnelEnd>) {
        for row in self.rows() {
            for client in row.clients() {
                if let Some(why) = verdict(&row, &client) {
                    client.retire(why);
                }
            }
            self.tidy(&row);
        }
    }

    /// Removes a key that needs nothing any more.
    fn tidy(&self, row: &Rc<Row>) {
        if row.prune() {
            let mut rows = self.rows.borrow_mut();
            if rows.get(&row.key).is_some_and(|other| Rc::ptr_eq(other, row)) {
                rows.remove(&row.key);
            }
        }
    }
}

/// Whether a limit of time has run out.
fn expired(client: &Client, now: Instant, limits: &Limits) -> Option<TunnelEnd> {
    // Until the peer's SETTINGS have come it is under way still, and has other limits.
    if !client.is_settled() {
        return None;
    }
    if client.tunnel.idle(now).is_some_and(|idle| idle >= limits.idle_release) {
        return Some(TunnelEnd::Idle);
    }
    // Up to a tenth later, so that tunnels made together do not all end together.
    let jitter = f64::from(u8::try_from(client.serial % 256).unwrap_or_default()) / 2560.0;
    let max_age = limits.max_age.map(|age| age + age.mul_f64(jitter));
    let age = now.saturating_duration_since(client.tunnel.opened);
    max_age.is_some_and(|max_age| age >= max_age).then_some(TunnelEnd::MaxAge)
}

#[cfg(test)]
mod tests;
