//! One connection: its facts, byte counts and clocks, and the handle by which a sweep orders or ends it.
//!
//! Belongs to one worker and is touched only on its thread, hence cells and no locks. A connection subscribes to
//! nothing: the sweep leaves an order here and wakes it.

use std::cell::{Cell, OnceCell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::{Direction, Facts, Order, State, Using, Who};
use crate::config::Settings;
use crate::mesh::Workload;
use crate::net::address::PeerAddr;
use crate::proxy::authorize::Denial;
use crate::telemetry::traffic::TrafficSeries;
use crate::telemetry::{CloseReason, Door};

/// One live connection.
#[derive(Debug)]
pub struct Entry {
    pub id: u64,
    pub door: Door,
    pub peer: PeerAddr,
    pub accepted: Instant,
    /// In force when it was accepted; a reload does not touch it.
    pub settings: Rc<Settings>,
    pub facts: RefCell<Facts>,
    state: Cell<State>,
    bytes: [Cell<u64>; 2],
    /// How many of `bytes` the traffic metrics know.
    published: [Cell<u64>; 2],
    traffic: OnceCell<Arc<TrafficSeries>>,
    first_byte: Cell<Option<Instant>>,
    last_activity: Cell<Instant>,
    blocked_since: [Cell<Option<Instant>>; 2],
    /// Since when what was written may be unacknowledged.
    unsettled_since: [Cell<Option<Instant>>; 2],
    orders: Cell<u8>,
    /// Orders that were ever given.
    given: Cell<u8>,
    using: OnceCell<Using>,
    who: OnceCell<Who>,
    /// Why policy does not want it, if it does not.
    denial: OnceCell<Denial>,
    /// What policies that are not enforced said of it.
    dry_run: OnceCell<Box<str>>,
    /// Since when the endpoint is not in the state any more.
    orphaned: Cell<Option<Instant>>,
    killed: Cell<Option<CloseReason>>,
    waker: RefCell<Option<Waker>>,
}

impl Entry {
    pub(super) fn new(id: u64, door: Door, peer: PeerAddr, settings: Rc<Settings>) -> Self {
        let now = Instant::now();
        Self {
            id,
            door,
            peer,
            accepted: now,
            settings,
            facts: RefCell::default(),
            state: Cell::new(State::Opening),
            bytes: [Cell::new(0), Cell::new(0)],
            published: [Cell::new(0), Cell::new(0)],
            traffic: OnceCell::new(),
            first_byte: Cell::new(None),
            last_activity: Cell::new(now),
            blocked_since: [Cell::new(None), Cell::new(None)],
            unsettled_since: [Cell::new(None), Cell::new(None)],
            orders: Cell::new(0),
            given: Cell::new(0),
            using: OnceCell::new(),
            who: OnceCell::new(),
            denial: OnceCell::new(),
            dry_run: OnceCell::new(),
            orphaned: Cell::new(None),
            killed: Cell::new(None),
            waker: RefCell::new(None),
        }
    }

    /// Who makes the connection: the peer, or whom a trusted peer has named.
    #[must_use]
    pub fn client(&self) -> PeerAddr {
        self.facts.borrow().client.unwrap_or(self.peer)
    }

    pub fn set_state(&self, state: State) {
        self.state.set(state);
    }

    #[must_use]
    pub fn state(&self) -> State {
        self.state.get()
    }

    /// Counts bytes that were written in `direction`.
    pub fn moved(&self, direction: Direction, bytes: usize) {
        let now = Instant::now();
        let count = &self.bytes[direction.index()];
        if direction == Direction::Down && count.get() == 0 {
            self.first_byte.set(Some(now));
        }
        count.set(count.get() + bytes as u64);
        self.last_activity.set(now);
        self.blocked_since[direction.index()].set(None);
        self.unsettle(direction, now);
    }

    /// As [`Entry::moved`], when there may be none.
    pub fn moved_if_any(&self, direction: Direction, bytes: usize) {
        if bytes > 0 {
            self.moved(direction, bytes);
        }
    }

    /// Bytes carried in `direction` so far, of payload, as accepted by the receiving socket.
    #[must_use]
    pub fn bytes(&self, direction: Direction) -> u64 {
        self.bytes[direction.index()].get()
    }

    /// Bytes carried in `direction` since this was last asked.
    #[must_use]
    pub fn take_unpublished(&self, direction: Direction) -> u64 {
        let bytes = self.bytes(direction);
        bytes - self.published[direction.index()].replace(bytes)
    }

    /// Opens the traffic account; the first one stays.
    pub fn set_traffic(&self, series: Arc<TrafficSeries>) {
        let _ = self.traffic.set(series);
    }

    #[must_use]
    pub fn traffic(&self) -> Option<&TrafficSeries> {
        self.traffic.get().map(AsRef::as_ref)
    }

    /// Notes the endpoint that was reached; the first one stays.
    pub fn set_using(&self, using: Using) {
        let _ = self.using.set(using);
    }

    /// Notes what policy decides by; the first one stays.
    pub fn set_who(&self, who: Who) -> &Who {
        self.who.get_or_init(|| who)
    }

    #[must_use]
    pub fn who(&self) -> Option<&Who> {
        self.who.get()
    }

    /// Notes why it is denied; the first one stays.
    pub fn set_denial(&self, denial: Denial) {
        let _ = self.denial.set(denial);
    }

    #[must_use]
    pub fn denial(&self) -> Option<&Denial> {
        self.denial.get()
    }

    pub fn set_dry_run(&self, said: Box<str>) {
        let _ = self.dry_run.set(said);
    }

    #[must_use]
    pub fn dry_run(&self) -> Option<&str> {
        self.dry_run.get().map(AsRef::as_ref)
    }

    #[must_use]
    pub fn using(&self) -> Option<&Using> {
        self.using.get()
    }

    /// The workload that was reached, as it was then.
    #[must_use]
    pub fn endpoint(&self) -> Option<&Arc<Workload>> {
        self.using.get().map(|using| &using.workload)
    }

    /// Whether the endpoint is still in the state, as a look at it has shown.
    pub fn set_orphaned(&self, orphaned: bool) {
        match (orphaned, self.orphaned.get()) {
            (true, None) => self.orphaned.set(Some(Instant::now())),
            (false, Some(_)) => self.orphaned.set(None),
            _ => {}
        }
    }

    /// For how long the endpoint has been gone from the state.
    #[must_use]
    pub fn orphaned_for(&self, now: Instant) -> Option<Duration> {
        self.orphaned.get().map(|since| now.saturating_duration_since(since))
    }

    /// When the first byte went downstream, measured from the accept.
    #[must_use]
    pub fn first_byte(&self) -> Option<Duration> {
        self.first_byte.get().map(|at| at.duration_since(self.accepted))
    }

    /// Something happened that is not bytes: a half ended, the upstream connected.
    pub fn touch(&self) {
        self.last_activity.set(Instant::now());
    }

    #[must_use]
    pub fn idle(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.last_activity.get())
    }

    /// A write in `direction` could not go on.
    pub fn blocked(&self, direction: Direction) {
        let since = &self.blocked_since[direction.index()];
        if since.get().is_none() {
            since.set(Some(Instant::now()));
        }
    }

    #[must_use]
    pub fn is_blocked(&self, direction: Direction) -> bool {
        self.blocked_since[direction.index()].get().is_some()
    }

    #[must_use]
    pub fn blocked_for(&self, direction: Direction, now: Instant) -> Option<Duration> {
        self.blocked_since[direction.index()].get().map(|since| now.saturating_duration_since(since))
    }

    /// Something was written in `direction` that its peer has yet to acknowledge; what was written before counts on.
    pub fn unsettle(&self, direction: Direction, now: Instant) {
        let since = &self.unsettled_since[direction.index()];
        if since.get().is_none() {
            since.set(Some(now));
        }
    }

    /// All that was written in `direction` until now was acknowledged, or has a kernel that looks after it.
    pub fn settled(&self, direction: Direction) {
        self.unsettled_since[direction.index()].set(None);
    }

    /// Not all of it was, but the peer takes it as it comes: a while from now it is to be looked at again.
    pub fn settling(&self, direction: Direction, now: Instant) {
        self.unsettled_since[direction.index()].set(Some(now));
    }

    #[must_use]
    pub fn unsettled_for(&self, direction: Direction, now: Instant) -> Option<Duration> {
        self.unsettled_since[direction.index()].get().map(|since| now.saturating_duration_since(since))
    }

    /// Whether `order` was never given to this connection.
    #[must_use]
    pub fn first_time(&self, order: Order) -> bool {
        self.given.get() & order as u8 == 0
    }

    /// A number of this connection's own, spread evenly over 0..256.
    #[must_use]
    pub fn jitter(&self) -> u8 {
        // Fibonacci hashing: neighbouring ids get numbers far apart.
        self.id.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0]
    }

    /// Leaves an order and wakes the connection.
    pub fn order(&self, order: Order) {
        self.orders.set(self.orders.get() | order as u8);
        self.given.set(self.given.get() | order as u8);
        self.wake();
    }

    /// Takes the order, if it was given.
    #[must_use]
    pub fn take_order(&self, order: Order) -> bool {
        let given = self.orders.get() & order as u8 != 0;
        self.orders.set(self.orders.get() & !(order as u8));
        given
    }

    /// Ends the connection with `reason` (the first reason counts).
    pub fn kill(&self, reason: CloseReason) {
        if self.killed.get().is_none() {
            self.killed.set(Some(reason));
            self.wake();
        }
    }

    #[must_use]
    pub fn killed(&self) -> Option<CloseReason> {
        self.killed.get()
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }

    /// Makes orders and kills wake the task that polls with `cx`.
    pub fn listen(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        match waker.as_ref() {
            Some(known) if known.will_wake(cx.waker()) => {}
            _ => *waker = Some(cx.waker().clone()),
        }
    }

    /// Runs `work` until it is done or the connection is killed.
    ///
    /// # Errors
    /// The reason of the kill.
    pub async fn unless_killed<T>(&self, mut work: Pin<&mut impl Future<Output = T>>) -> Result<T, CloseReason> {
        poll_fn(|cx| {
            self.listen(cx);
            match self.killed() {
                Some(reason) => Poll::Ready(Err(reason)),
                None => work.as_mut().poll(cx).map(Ok),
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::super::Registry;
    use super::*;

    fn peer() -> PeerAddr {
        PeerAddr::new("10.0.0.1:1234".parse().expect("address"))
    }

    #[tokio::test]
    async fn a_kill_ends_work_that_would_never_end_and_keeps_its_first_reason() {
        let registry = Rc::new(Registry::new(0));
        let entry = registry.register(Door::Outbound, peer(), Rc::default());
        let mut never = std::pin::pin!(std::future::pending::<()>());
        let work = entry.unless_killed(never.as_mut());
        let kill = async {
            tokio::task::yield_now().await;
            entry.kill(CloseReason::Drain);
            entry.kill(CloseReason::IdleTimeout);
        };
        let (ended, ()) = tokio::time::timeout(Duration::from_secs(5), async { tokio::join!(work, kill) })
            .await
            .expect("the kill wakes the work");
        assert_eq!(ended, Err(CloseReason::Drain));
    }

    #[test]
    fn orders_are_taken_once() {
        let registry = Rc::new(Registry::new(0));
        let entry = registry.register(Door::Outbound, peer(), Rc::default());
        entry.order(Order::KeepAlive);
        assert!(!entry.take_order(Order::CheckStall));
        assert!(entry.take_order(Order::KeepAlive));
        assert!(!entry.take_order(Order::KeepAlive));
    }

    #[test]
    fn moving_bytes_unblocks_and_marks_the_first_byte() {
        let registry = Rc::new(Registry::new(0));
        let entry = registry.register(Door::Outbound, peer(), Rc::default());
        entry.blocked(Direction::Down);
        assert!(entry.blocked_for(Direction::Down, Instant::now()).is_some());
        entry.moved(Direction::Up, 10);
        assert!(entry.first_byte().is_none());
        entry.moved(Direction::Down, 5);
        assert!(entry.first_byte().is_some());
        assert!(entry.blocked_for(Direction::Down, Instant::now()).is_none());
        assert_eq!((entry.bytes(Direction::Up), entry.bytes(Direction::Down)), (10, 5));
    }
}
