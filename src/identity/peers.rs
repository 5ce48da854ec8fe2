//! Who is connected to us, or we to: how many live peers hang on each root, so that "can this root go?" has an answer.
//!
//! In: a peer whose handshake is complete. Out: a guard that counts it until it is dropped, and the counts. One short
//! lock per connection, none to drop it. Bounded by the roots that were ever trusted and still have somebody on them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::identity::credentials::Root;
use crate::identity::verify::{PeerIdentity, Usage};

/// Roots without peers are forgotten beyond this many.
const REMEMBERED: usize = 64;

/// One for the whole process; clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Peers {
    /// By the root's fingerprint.
    roots: Arc<RwLock<HashMap<Arc<str>, Arc<Count>>>>,
}

#[derive(Debug)]
struct Count {
    root: Root,
    clients: AtomicU64,
    servers: AtomicU64,
}

/// A peer that lives for as long as this does.
#[derive(Debug)]
#[must_use]
pub struct PeerGuard {
    count: Arc<Count>,
    usage: Usage,
}

impl Peers {
    /// Counts a peer. `usage`: what it is to us.
    pub fn join(&self, peer: &PeerIdentity, usage: Usage) -> PeerGuard {
        let known = self.roots.read().unwrap_or_else(PoisonError::into_inner).get(&peer.root.fingerprint).cloned();
        let count = known.unwrap_or_else(|| self.add(&peer.root));
        count.of(usage).fetch_add(1, Ordering::Relaxed);
        PeerGuard { count, usage }
    }

    fn add(&self, root: &Root) -> Arc<Count> {
        let mut roots = self.roots.write().unwrap_or_else(PoisonError::into_inner);
        if roots.len() >= REMEMBERED {
            // Whoever holds one is about to count on it.
            roots.retain(|_, count| Arc::strong_count(count) > 1);
        }
        let new = || Count { root: Arc::clone(root), clients: AtomicU64::new(0), servers: AtomicU64::new(0) };
        Arc::clone(roots.entry(Arc::clone(&root.fingerprint)).or_insert_with(|| Arc::new(new())))
    }

    /// Peers by root; roots without peers may be missing.
    #[must_use]
    pub fn counts(&self) -> Vec<(Root, u64)> {
        let roots = self.roots.read().unwrap_or_else(PoisonError::into_inner);
        roots.values().map(|count| (Arc::clone(&count.root), count.live())).collect()
    }

    /// How many hang on this root: (those that connected to us, those that we connected to).
    #[must_use]
    pub fn of(&self, root: &Root) -> (u64, u64) {
        let roots = self.roots.read().unwrap_or_else(PoisonError::into_inner);
        let of = |usage| roots.get(&root.fingerprint).map_or(0, |count| count.of(usage).load(Ordering::Relaxed));
        (of(Usage::Client), of(Usage::Server))
    }
}

impl Count {
    const fn of(&self, usage: Usage) -> &AtomicU64 {
        match usage {
            Usage::Client => &self.clients,
            Usage::Server => &self.servers,
        }
    }

    fn live(&self) -> u64 {
        self.clients.load(Ordering::Relaxed) + self.servers.load(Ordering::Relaxed)
    }
}

impl Drop for PeerGuard {
    fn drop(&mut self) {
        self.count.of(self.usage).fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::identity::certificate::CertificateFacts;
    use crate::identity::fixture;

    fn peer(name: &str) -> PeerIdentity {
        let root = Arc::new(CertificateFacts::of(fixture::root(name).certificate()).unwrap());
        PeerIdentity { id: fixture::id("web"), serial: "1".into(), not_after: SystemTime::now(), root }
    }

    #[test]
    fn peers_are_counted_while_they_live() {
        let peers = Peers::default();
        let (a, b) = (peer("a"), peer("b"));
        let first = peers.join(&a, Usage::Client);
        let same = peers.clone();
        let second = same.join(&a, Usage::Server);
        let third = peers.join(&b, Usage::Server);
        assert_eq!((peers.of(&a.root), peers.of(&b.root)), ((1, 1), (0, 1)));
        assert_eq!(peers.counts().iter().map(|(_, live)| live).sum::<u64>(), 3);
        drop((first, third));
        assert_eq!((peers.of(&a.root), peers.of(&b.root)), ((0, 1), (0, 0)));
        drop(second);
        assert_eq!(peers.of(&a.root), (0, 0));
    }

    #[test]
    fn threads_do_not_lose_any_and_roots_without_peers_are_forgotten() {
        let peers = Peers::default();
        let a = peer("a");
        let _stays = peers.join(&a, Usage::Client);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|_| drop(peers.join(&a, Usage::Server))));
            }
        });
        assert_eq!(peers.of(&a.root), (1, 0));
        for index in 0..REMEMBERED + 10 {
            let mut facts = (*a.root).clone();
            facts.fingerprint = format!("{index}").into();
            drop(peers.join(&PeerIdentity { root: Arc::new(facts), ..a.clone() }, Usage::Client));
        }
        assert!(peers.counts().len() <= REMEMBERED, "{}", peers.counts().len());
        assert_eq!(peers.of(&a.root), (1, 0), "one with a peer never");
    }
}
