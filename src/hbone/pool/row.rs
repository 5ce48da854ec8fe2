//! All there is for one key: tunnels that take streams, tunnels on their way, and who waits for them.
//!
//! Who waits is served in order, each by a message of its own. A tunnel on its way is promised to as many of them as it
//! is expected to carry; if it fails, so many are told, the longest-waiting first. Everything here is in cells, and
//! nothing is borrowed while something else is called that could come back.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use rustls::ClientConfig;
use tokio::sync::oneshot;

use crate::config::settings::Tunnel as Limits;
use crate::hbone::client::{Client, OpenError, Slot, Stage};
use crate::hbone::pool::choice::{self, Load};
use crate::hbone::pool::{SURPLUS_AFTER, TunnelKey};
use crate::identity::TlsGeneration;
use crate::telemetry::TunnelEnd;

type Handed = Result<Slot, OpenError>;

#[derive(Debug)]
struct Waiter {
    hand: oneshot::Sender<Handed>,
    /// Takes no tunnel older than this.
    floor: u64,
}

/// See the module.
pub(super) struct Row {
    pub(super) key: TunnelKey,
    /// As of the last that asked.
    limits: RefCell<Limits>,
    clients: RefCell<Vec<Rc<Client>>>,
    waiters: RefCell<BTreeMap<u64, Waiter>>,
    next_waiter: Cell<u64>,
    under_way: Cell<u32>,
    /// How many streams the tunnels under way are expected to take.
    coming: Cell<u32>,
    stage: Cell<Stage>,
    /// The peer's limit as last heard.
    peer_limit: Cell<Option<u32>>,
    /// Counts how often the tunnels under way were disowned, and says why.
    disowned: Cell<(u64, TunnelEnd)>,
    config: RefCell<Option<(u64, Arc<ClientConfig>)>>,
}

impl Row {
    pub(super) fn new(key: TunnelKey, limits: Limits) -> Rc<Self> {
        Rc::new(Self {
            key,
            limits: RefCell::new(limits),
            clients: RefCell::default(),
            waiters: RefCell::default(),
            next_waiter: Cell::new(0),
            under_way: Cell::new(0),
            coming: Cell::new(0),
            stage: Cell::new(Stage::Connecting),
            peer_limit: Cell::new(None),
            disowned: Cell::new((0, TunnelEnd::Idle)),
            config: RefCell::default(),
        })
    }

    /// Tunnels beyond `tunnel.maxPerPeer` that have had no stream for a while, the latest first.
    pub(super) fn surplus(&self, now: Instant, limits: &Limits) -> Vec<Rc<Client>> {
        let clients = self.clients.borrow();
        let most = usize::try_from(limits.max_per_peer.get()).unwrap_or(usize::MAX);
        let idle = clients
            .iter()
            .rev()
            .filter(|client| client.is_settled() && client.tunnel.idle(now).is_some_and(|idle| idle >= SURPLUS_AFTER));
        idle.take(clients.len().saturating_sub(most)).cloned().collect()
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits.borrow().clone()
    }

    pub(super) fn set_limits(&self, limits: &Limits) {
        self.limits.borrow_mut().clone_from(limits);
    }

    pub(super) fn stage(&self) -> Stage {
        self.stage.get()
    }

    pub(super) fn set_stage(&self, stage: Stage) {
        self.stage.set(stage);
    }

    pub(super) fn has_waiters(&self) -> bool {
        !self.waiters.borrow().is_empty()
    }

    /// The TLS configuration for this key, made once per generation.
    pub(super) fn config(&self, tls: &TlsGeneration) -> Arc<ClientConfig> {
        if let Some((number, config)) = &*self.config.borrow()
            && *number == tls.number
        {
            return Arc::clone(config);
        }
        let config = tls.client(Arc::clone(&self.key.identities));
        *self.config.borrow_mut() = Some((tls.number, Arc::clone(&config)));
        config
    }

    pub(super) fn add(&self, client: &Rc<Client>) {
        self.clients.borrow_mut().push(Rc::clone(client));
    }

    pub(super) fn forget(&self, client: &Rc<Client>) {
        self.clients.borrow_mut().retain(|other| !Rc::ptr_eq(other, client));
    }

    pub(super) fn clients(&self) -> Vec<Rc<Client>> {
        self.clients.borrow().clone()
    }

    /// Lets go of tunnels that take no streams any more. Returns whether nothing is left.
    pub(super) fn prune(&self) -> bool {
        self.clients.borrow_mut().retain(|client| client.takes_streams());
        self.clients.borrow().is_empty() && self.under_way.get() == 0 && !self.has_waiters()
    }

    /// A place in a tunnel, if one has room. `floor`: no tunnel older than this.
    pub(super) fn take(&self, floor: u64) -> Option<Slot> {
        let share = self.share();
        let client = {
            let clients = self.clients.borrow();
            let loads = clients.iter().map(|client| if client.serial < floor { FULL } else { self.load(client) });
            Rc::clone(clients.get(choice::pick(loads, share)?)?)
        };
        client.reserve()
    }

    /// Whether another tunnel is to be opened beside those that have room.
    pub(super) fn wants_company(&self) -> bool {
        let clients = self.clients.borrow();
        let settled = clients.iter().filter(|client| client.takes_streams() && client.is_settled()).count();
        let tunnels = u32::try_from(settled).unwrap_or(u32::MAX).saturating_add(self.under_way.get());
        let usable = clients.iter().filter(|client| client.takes_streams()).map(|client| self.load(client));
        choice::wants_company(usable, tunnels, self.share(), self.limits.borrow().max_per_peer.get())
    }

    /// How many tunnels must be begun for those who wait.
    pub(super) fn connects_needed(&self) -> u32 {
        let waiting = u32::try_from(self.waiters.borrow().len()).unwrap_or(u32::MAX);
        choice::connects_needed(waiting, self.coming.get(), self.expected(), self.under_way.get())
    }

    /// Queues up.
    pub(super) fn wait(self: &Rc<Self>, floor: u64) -> Waiting {
        let (hand, receiver) = oneshot::channel();
        let id = self.next_waiter.replace(self.next_waiter.get() + 1);
        self.waiters.borrow_mut().insert(id, Waiter { hand, floor });
        Waiting { row: Rc::clone(self), id, receiver }
    }

    /// Gives places to those who wait, as far as there are any.
    pub(super) fn hand_out(&self) {
        let mut from = 0;
        loop {
            let next = self.waiters.borrow().range(from..).next().map(|(id, waiter)| (*id, waiter.floor));
            let Some((id, floor)) = next else { break };
            match self.take(floor) {
                Some(slot) => {
                    let waiter = self.waiters.borrow_mut().remove(&id);
                    // Nobody listens: the place is free again when this is dropped.
                    drop(waiter.map(|waiter| waiter.hand.send(Ok(slot))));
                }
                None if floor == 0 => break,
                None => {}
            }
            from = id + 1;
        }
        let wanted = self.has_waiters();
        for client in &*self.clients.borrow() {
            client.tunnel.want_room(wanted);
        }
    }

    /// Tells the tunnels under way that they are not to be kept, beyond those who wait for them.
    pub(super) fn disown(&self, why: TunnelEnd) {
        self.disowned.set((self.disowned.get().0 + 1, why));
    }

    /// Promises a tunnel to those who wait.
    pub(super) fn promise(self: &Rc<Self>) -> Promise {
        let streams = self.expected();
        self.under_way.set(self.under_way.get() + 1);
        self.coming.set(self.coming.get() + streams);
        Promise { row: Rc::clone(self), streams, disowned: self.disowned.get().0 }
    }

    fn share(&self) -> u32 {
        let limits = self.limits.borrow();
        choice::share(limits.max_streams.get(), limits.max_per_peer.get())
    }

    /// How many streams a new tunnel will take.
    fn expected(&self) -> u32 {
        let ours = self.limits.borrow().max_streams.get();
        self.peer_limit.get().map_or(ours, |peer| peer.min(ours)).max(1)
    }

    fn load(&self, client: &Client) -> Load {
        if !client.takes_streams() || client.is_doubtful() {
            return FULL;
        }
        let peer = client.peer_limit();
        let limit = choice::limit(self.limits.borrow().max_streams.get(), peer, client.tunnel.carried());
        Load { streams: client.tunnel.streams(), limit }
    }
}

const FULL: Load = Load { streams: 0, limit: 0 };

/// A place in the queue, left by dropping it.
pub(super) struct Waiting {
    row: Rc<Row>,
    id: u64,
    receiver: oneshot::Receiver<Handed>,
}

impl Waiting {
    /// The place in a tunnel, or why there is none.
    pub(super) async fn served(&mut self) -> Handed {
        // The sender is in the row until it is used.
        (&mut self.receiver).await.unwrap_or(Err(OpenError::Lost { end: None }))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let waiter = self.row.waiters.borrow_mut().remove(&self.id);
        drop(waiter);
    }
}

/// A tunnel under way. It counts until dropped.
pub(super) struct Promise {
    row: Rc<Row>,
    streams: u32,
    disowned: u64,
}

impl Promise {
    /// The tunnel is there and the peer has said how many streams it takes. Returns why it is not to be kept, if so.
    pub(super) fn keep(self, client: &Client) -> Option<TunnelEnd> {
        self.row.peer_limit.set(client.peer_limit());
        let (disowned, why) = self.row.disowned.get();
        (disowned != self.disowned).then_some(why)
    }

    /// There will be no tunnel: those whom it was for learn why.
    pub(super) fn fail(self, error: &OpenError) {
        for _ in 0..self.streams {
            let Some((_, waiter)) = self.row.waiters.borrow_mut().pop_first() else { break };
            drop(waiter.hand.send(Err(error.clone())));
        }
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.row.under_way.set(self.row.under_way.get().saturating_sub(1));
        self.row.coming.set(self.row.coming.get().saturating_sub(self.streams));
    }
}
