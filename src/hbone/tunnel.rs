//! One tunnel, in either role: who is at the other end, what it carries, and what it has been told.
//!
//! Belongs to one worker. The [`drive()`] task owns the HTTP/2 connection; everybody else holds an `Rc<Tunnel>`: streams
//! by a [`Lease`] (that is how they are counted), the worker by its list of [`Tunnels`]. A tunnel is asked to take no
//! new streams ([`Tunnel::retire`]) or to end at once ([`Tunnel::cut`]); the first cause counts. When it is gone its
//! end is known ([`Tunnel::end`]), and streams that fell with it say why.

mod drive;
mod judged;
mod meter;

pub use drive::{Driven, Pulse, Wire, drive};
pub use meter::{Meter, Metered, TURN};

use std::cell::{Cell, OnceCell, RefCell};
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rustls_pki_types::CertificateDer;
use slab::Slab;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::identity::PeerIdentity;
use crate::telemetry::{LineLimiter, Role, TunnelEnd, WorkerCounters};

/// How long the streams of a tunnel that has ended may take to notice.
const LEARNED_WITHIN: Duration = Duration::from_secs(1);
/// Ends of tunnels that peers made, and made nothing of, that a worker logs a second.
const LINES: NonZeroU32 = match NonZeroU32::new(5) {
    Some(lines) => lines,
    None => NonZeroU32::MIN,
};

/// What is known of a tunnel when it is made.
#[derive(Debug)]
pub struct About {
    pub role: Role,
    pub peer: SocketAddr,
    /// Our end: for a server the address that the peer connected to.
    pub local: SocketAddr,
    pub identity: Arc<PeerIdentity>,
    /// What the peer presented: judged again whenever trust changes.
    pub chain: Vec<CertificateDer<'static>>,
    /// Of our credentials.
    pub generation: u64,
}

/// One live tunnel.
#[derive(Debug)]
pub struct Tunnel {
    pub about: About,
    pub opened: Instant,
    pub meter: Rc<Meter>,
    streams: Cell<u32>,
    carried: Cell<u64>,
    /// Since when it has had no stream.
    idle_since: Cell<Option<Instant>>,
    /// Bytes of streams that are received and not taken.
    buffered: Cell<u64>,
    retiring: Cell<Option<TunnelEnd>>,
    cutting: Cell<Option<TunnelEnd>>,
    end: Cell<Option<TunnelEnd>>,
    /// When it is cut because the root of its peer is not trusted any more.
    doomed: Cell<Option<SystemTime>>,
    /// Streams that have learned that the tunnel was lost, and those of them that are still there.
    lost: Cell<u32>,
    falling: Cell<u32>,
    /// Whether its loss has been held against the far side.
    blamed: Cell<bool>,
    /// Whether somebody waits for a stream to end.
    wanted: Cell<bool>,
    /// Tells the driver about the above, and that a stream has ended: the last one, or one whose place is wanted.
    told: Notify,
    over: Notify,
    /// Of the worker that lists it.
    lines: OnceCell<Rc<RefCell<LineLimiter>>>,
}

impl Tunnel {
    #[must_use]
    pub fn new(about: About, meter: Rc<Meter>) -> Rc<Self> {
        let now = Instant::now();
        Rc::new(Self {
            about,
            opened: now,
            meter,
            streams: Cell::new(0),
            carried: Cell::new(0),
            idle_since: Cell::new(Some(now)),
            buffered: Cell::new(0),
            retiring: Cell::new(None),
            cutting: Cell::new(None),
            end: Cell::new(None),
            doomed: Cell::new(None),
            lost: Cell::new(0),
            falling: Cell::new(0),
            blamed: Cell::new(false),
            wanted: Cell::new(false),
            told: Notify::new(),
            over: Notify::new(),
            lines: OnceCell::new(),
        })
    }

    /// Counts one more stream until the lease is dropped.
    #[must_use]
    pub fn lease(self: &Rc<Self>) -> Lease {
        self.streams.set(self.streams.get() + 1);
        self.carried.set(self.carried.get() + 1);
        self.idle_since.set(None);
        Lease { tunnel: Rc::clone(self), lost: Cell::new(false) }
    }

    /// Streams at this moment.
    #[must_use]
    pub fn streams(&self) -> u32 {
        self.streams.get()
    }

    /// Streams over its whole life.
    #[must_use]
    pub fn carried(&self) -> u64 {
        self.carried.get()
    }

    /// For how long it has had no stream.
    #[must_use]
    pub fn idle(&self, now: Instant) -> Option<Duration> {
        self.idle_since.get().map(|since| now.saturating_duration_since(since))
    }

    /// Bytes of streams that are received and that no application has taken.
    #[must_use]
    pub fn buffered(&self) -> u64 {
        self.buffered.get()
    }

    /// A stream has received or given on bytes.
    pub fn hold(&self, change: i64) {
        self.buffered.set(self.buffered.get().saturating_add_signed(change));
    }

    /// Whether this is the first time that somebody holds its loss against the far side.
    #[must_use]
    pub fn blame_once(&self) -> bool {
        !self.blamed.replace(true)
    }

    /// Whether the driver is to be told of each stream that ends.
    pub fn want_room(&self, wanted: bool) {
        self.wanted.set(wanted);
    }

    /// Takes no new streams from here on and ends when the last one has.
    pub fn retire(&self, why: TunnelEnd) {
        if self.retiring.get().is_none() {
            self.retiring.set(Some(why));
            self.told.notify_one();
        }
    }

    /// Ends at once, with all its streams.
    pub fn cut(&self, why: TunnelEnd) {
        if self.cutting.get().is_none() {
            self.retire(why);
            self.cutting.set(Some(why));
            self.told.notify_one();
        }
    }

    /// When it is to be cut.
    #[must_use]
    pub fn doomed(&self) -> Option<SystemTime> {
        self.doomed.get()
    }

    pub fn set_doomed(&self, at: Option<SystemTime>) {
        self.doomed.set(at);
    }

    /// Why it takes no new streams.
    #[must_use]
    pub fn retiring(&self) -> Option<TunnelEnd> {
        self.end.get().or_else(|| self.cutting.get()).or_else(|| self.retiring.get())
    }

    /// How it ended; nothing while it lives.
    #[must_use]
    pub fn end(&self) -> Option<TunnelEnd> {
        self.end.get()
    }

    /// Returns when the end is known, which is before the connection has been seen off. For one listener.
    pub async fn over(&self) {
        self.over.notified().await;
    }

    /// Why it has been told to end at once.
    #[must_use]
    pub fn cutting(&self) -> Option<TunnelEnd> {
        self.cutting.get()
    }

    /// Says how it ended, once: one line for the operator, as far as peers cannot make it many ([`Tunnel::may_flood`]). Waits a moment for its streams: they may have
    /// ended in order just before, without anyone having seen to them yet, and those were not cut.
    async fn ended(&self, end: TunnelEnd, detail: Option<&str>) {
        self.end.set(Some(end));
        self.over.notify_one();
        let all_know = async {
            while self.streams.get() > self.falling.get() {
                self.told.notified().await;
            }
        };
        // Whoever is slower than this is none the better for the tunnel's end.
        let _ = timeout(LEARNED_WITHIN, all_know).await;
        if self.may_flood(end) && !self.lines.get().is_none_or(|lines| lines.borrow_mut().admit(Instant::now())) {
            return;
        }
        let About { role, peer, identity, .. } = &self.about;
        let unaware = self.streams.get().saturating_sub(self.falling.get());
        let (cut, carried) = (self.lost.get() + unaware, self.carried.get());
        let age = self.opened.elapsed();
        let cause = end.as_str();
        // Nobody lost anything by a tunnel that carried nothing, however it ended; and a peer that closes one with streams
        // in it does so in no order.
        if cut == 0 || end.is_orderly() && end != TunnelEnd::PeerClosed {
            tracing::info!(role = role.as_str(), %peer, identity = %identity.id, ?age, streams_cut = cut, carried,
                cause, detail, "tunnel closed");
        } else {
            tracing::warn!(role = role.as_str(), %peer, identity = %identity.id, ?age, streams_cut = cut, carried,
                cause, detail, "tunnel closed");
        }
    }
}

impl Tunnel {
    /// Whether a peer can cause as many lines of this kind as it likes: it made the tunnel, and did nothing in it or ended it
    /// badly.
    fn may_flood(&self, end: TunnelEnd) -> bool {
        let is_ours = matches!(end, TunnelEnd::Revoked | TunnelEnd::Untrusted);
        self.about.role == Role::Server && !is_ours && (self.carried.get() == 0 || !end.is_orderly())
    }
}

/// One stream's part in a tunnel.
#[derive(Debug)]
pub struct Lease {
    tunnel: Rc<Tunnel>,
    lost: Cell<bool>,
}

impl Lease {
    /// The stream has fallen with its tunnel.
    pub fn lose(&self) {
        if !self.lost.replace(true) {
            self.tunnel.lost.set(self.tunnel.lost.get() + 1);
            self.tunnel.falling.set(self.tunnel.falling.get() + 1);
            self.tunnel.told.notify_one();
        }
    }
}

impl std::ops::Deref for Lease {
    type Target = Rc<Tunnel>;

    fn deref(&self) -> &Rc<Tunnel> {
        &self.tunnel
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let tunnel = &self.tunnel;
        let left = tunnel.streams.get().saturating_sub(1);
        tunnel.streams.set(left);
        if self.lost.get() {
            tunnel.falling.set(tunnel.falling.get().saturating_sub(1));
        }
        if left == 0 {
            tunnel.idle_since.set(Some(Instant::now()));
        }
        if left == 0 || tunnel.wanted.get() || tunnel.end.get().is_some() {
            tunnel.told.notify_one();
        }
    }
}

/// All tunnels of one worker.
#[derive(Debug)]
pub struct Tunnels {
    live: RefCell<Slab<Rc<Tunnel>>>,
    lines: Rc<RefCell<LineLimiter>>,
    counters: Arc<WorkerCounters>,
}

impl Tunnels {
    #[must_use]
    pub fn new(counters: Arc<WorkerCounters>) -> Rc<Self> {
        let lines = Rc::new(RefCell::new(LineLimiter::new(LINES)));
        Rc::new(Self { live: RefCell::default(), lines, counters })
    }

    /// Lists a tunnel until the returned value is dropped.
    #[must_use]
    pub fn list(self: &Rc<Self>, tunnel: &Rc<Tunnel>) -> Listed {
        self.counters.tunnels.opened(tunnel.about.role);
        let key = self.live.borrow_mut().insert(Rc::clone(tunnel));
        // It is listed once.
        let _ = tunnel.lines.set(Rc::clone(&self.lines));
        Listed { tunnels: Rc::clone(self), key }
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.live.borrow().len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Calls `visit` for each live tunnel. `visit` must not list any or let one go.
    pub fn for_each(&self, mut visit: impl FnMut(&Rc<Tunnel>)) {
        for (_, tunnel) in self.live.borrow().iter() {
            visit(tunnel);
        }
    }

    /// How many lines about tunnels that ended were left out since this was last asked.
    #[must_use]
    pub fn left_out(&self, now: Instant) -> Option<u64> {
        let lines = self.lines.borrow_mut().summary(now)?;
        self.counters.lines_suppressed(lines);
        Some(lines)
    }

    /// Tells the metrics what there is.
    pub fn publish(&self) {
        let (mut tunnels, mut streams, mut buffered) = ([0; 2], [0; 2], 0);
        self.for_each(|tunnel| {
            tunnels[tunnel.about.role as usize] += 1;
            streams[tunnel.about.role as usize] += u64::from(tunnel.streams());
            buffered += tunnel.buffered();
        });
        for role in Role::ALL {
            self.counters.tunnels.publish(role, tunnels[role as usize], streams[role as usize]);
        }
        self.counters.tunnels.publish_buffered(buffered);
    }
}

/// Keeps a tunnel listed.
#[derive(Debug)]
pub struct Listed {
    tunnels: Rc<Tunnels>,
    key: usize,
}

impl Drop for Listed {
    fn drop(&mut self) {
        let tunnel = self.tunnels.live.borrow_mut().remove(self.key);
        self.tunnels.counters.tunnels.closed(tunnel.about.role, tunnel.end().unwrap_or(TunnelEnd::Drain));
    }
}

#[cfg(test)]
mod tests;
