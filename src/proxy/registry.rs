//! The per-worker table of connections: what policy, the sweep and an operator need to know of each, its byte counts,
//! and a handle to end it with a reason.
//!
//! Belongs to one worker and is touched only on its thread.

mod entry;
mod facts;

pub use entry::Entry;
pub use facts::{Direction, Facts, Order, State, Using, Who};

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use slab::Slab;

use crate::config::Settings;
use crate::net::address::PeerAddr;
use crate::telemetry::Door;

/// All live connections of one worker.
#[derive(Debug)]
pub struct Registry {
    entries: RefCell<Slab<Rc<Entry>>>,
    next_id: Cell<u64>,
}

impl Registry {
    /// `worker` makes ids unique in the process.
    #[must_use]
    pub fn new(worker: usize) -> Self {
        Self { entries: RefCell::default(), next_id: Cell::new((worker as u64) << 48) }
    }

    /// An id that no connection has, for what fails before it is one.
    #[must_use]
    pub fn new_id(&self) -> u64 {
        let id = self.next_id.get() + 1;
        self.next_id.set(id);
        id
    }

    /// Registers a connection until the returned value is dropped.
    pub fn register(self: &Rc<Self>, door: Door, peer: PeerAddr, settings: Rc<Settings>) -> Registered {
        let entry = Rc::new(Entry::new(self.new_id(), door, peer, settings));
        let key = self.entries.borrow_mut().insert(Rc::clone(&entry));
        Registered { entry, key, registry: Rc::clone(self) }
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.borrow().len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Calls `visit` for each live connection. `visit` must not register or drop connections.
    pub fn for_each(&self, mut visit: impl FnMut(&Entry)) {
        for (_, entry) in self.entries.borrow().iter() {
            visit(entry);
        }
    }

    /// At most `most` live connections from place `from` on, and the place to go on at; nothing when that was all. Whoever
    /// comes later may be left out.
    #[must_use]
    pub fn some(&self, from: usize, most: usize) -> (Vec<Rc<Entry>>, Option<usize>) {
        let entries = self.entries.borrow();
        let until = entries.capacity().min(from.saturating_add(most));
        let some = (from..until).filter_map(|place| entries.get(place)).map(Rc::clone).collect();
        (some, (until < entries.capacity()).then_some(until))
    }

    /// Gives back memory that a past crowd left behind.
    pub fn shrink(&self) {
        let mut entries = self.entries.borrow_mut();
        if entries.capacity() > 1024 && entries.len() < entries.capacity() / 4 {
            entries.shrink_to_fit();
        }
    }
}

/// Keeps a connection in the registry.
#[derive(Debug)]
pub struct Registered {
    entry: Rc<Entry>,
    key: usize,
    registry: Rc<Registry>,
}

impl std::ops::Deref for Registered {
    type Target = Entry;

    fn deref(&self) -> &Entry {
        &self.entry
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.registry.entries.borrow_mut().remove(self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer() -> PeerAddr {
        PeerAddr::new("10.0.0.1:1234".parse().expect("address"))
    }

    #[test]
    fn a_connection_is_listed_while_it_lives_and_ids_never_repeat() {
        let registry = Rc::new(Registry::new(3));
        let first = registry.register(Door::Outbound, peer(), Rc::default());
        let second = registry.register(Door::Inbound, peer(), Rc::default());
        assert_eq!(registry.len(), 2);
        assert_ne!(first.id, second.id);
        assert_eq!(first.id >> 48, 3);
        let id = first.id;
        drop(first);
        assert!(registry.register(Door::Outbound, peer(), Rc::default()).id > id);
        assert_eq!(registry.len(), 1);
    }
}
