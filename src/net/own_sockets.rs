//! Both ends of all upstream sockets that adit has open: a captured connection that comes from one of them is adit's own,
//! and relaying it would dial it again without end.
//!
//! Both ends, since the kernel gives one local port to several connections to different places: while a tunnel lives,
//! which may be days, clients of the same host get its port for connections of their own. A connection of ours whose
//! destination somebody else's rules change on its way back to us is noticed a lap later.
//!
//! Shared by all workers and split by port, so that two of them seldom meet on one lock; a connection takes it twice,
//! once when it dials and once when it ends.
//!
//! Which way a socket goes matters: what was dialled outwards may arrive at our inbound door (a workload that talks to
//! itself by its own address), but what was dialled inwards must not. What was dialled from a client's own address says
//! nothing: the client may use the same address and port for another connection. That such a connection does not come
//! back to us is proved beforehand, and again and again, before addresses are borrowed at all.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

const SHARDS: usize = 64;

/// How many sockets have these ends, by [`Way`].
type Shard = HashMap<Ends, [u32; 3]>;

/// Of a socket; canonical.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ends {
    pub local: SocketAddr,
    /// What was dialled.
    pub remote: SocketAddr,
}

/// Which way a socket was dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Away from the local workload.
    Out,
    /// To the local workload, from an address of ours.
    In,
    /// To the local workload, from the client's address.
    Borrowed,
}

#[derive(Debug, Clone)]
pub struct OwnSockets {
    shards: Arc<[Mutex<Shard>; SHARDS]>,
    /// Read-locked between starting to connect and remembering the address.
    dialling: Arc<RwLock<()>>,
}

impl Default for OwnSockets {
    fn default() -> Self {
        Self { shards: Arc::new(std::array::from_fn(|_| Mutex::default())), dialling: Arc::default() }
    }
}

impl OwnSockets {
    /// Hold it from before `connect` until [`Self::remember`], and never across an await: within this host the other end
    /// can be accepted before `connect` returns.
    pub fn dialling(&self) -> RwLockReadGuard<'_, ()> {
        self.dialling.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// [`Self::contains`], also for a socket whose dialling ([`Self::dialling`]) has begun and not been remembered yet.
    #[must_use]
    pub fn contains_dialled(&self, ends: Ends) -> bool {
        if self.contains(ends) {
            return true;
        }
        // Whoever was between the two steps is through with them now.
        drop(self.dialling.write().unwrap_or_else(PoisonError::into_inner));
        self.contains(ends)
    }

    /// Remembers a socket until the returned value is dropped. Several may have the same ends, one after the other's.
    #[must_use]
    pub fn remember(&self, ends: Ends, way: Way) -> OwnSocket {
        self.shard(ends).entry(ends).or_default()[way as usize] += 1;
        OwnSocket { sockets: self.clone(), ends: Box::new(ends), way }
    }

    /// Whether one of our sockets has these ends, dialled either way.
    #[must_use]
    pub fn contains(&self, ends: Ends) -> bool {
        self.shard(ends).contains_key(&ends)
    }

    /// Whether one of our sockets that was dialled inwards has these ends.
    #[must_use]
    pub fn contains_inward(&self, ends: Ends) -> bool {
        self.shard(ends).get(&ends).is_some_and(|counts| counts[Way::In as usize] > 0)
    }

    fn shard(&self, ends: Ends) -> MutexGuard<'_, Shard> {
        self.shards[usize::from(ends.local.port()) % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One remembered socket.
#[derive(Debug)]
pub struct OwnSocket {
    sockets: OwnSockets,
    /// Boxed: every connection's task carries this.
    ends: Box<Ends>,
    way: Way,
}

impl OwnSocket {
    #[must_use]
    pub fn local(&self) -> SocketAddr {
        self.ends.local
    }
}

impl Drop for OwnSocket {
    fn drop(&mut self) {
        let mut shard = self.sockets.shard(*self.ends);
        if let Some(counts) = shard.get_mut(&self.ends) {
            counts[self.way as usize] -= 1;
            if *counts == [0; 3] {
                shard.remove(&self.ends);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(local: &str) -> Ends {
        Ends { local: local.parse().expect("address"), remote: "10.0.0.7:80".parse().expect("address") }
    }

    #[test]
    fn an_address_that_is_being_dialled_is_waited_for() {
        let sockets = OwnSockets::default();
        let address = ends("10.0.0.1:40000");
        std::thread::scope(|scope| {
            let dialling = sockets.dialling();
            let asked = scope.spawn(|| sockets.contains_dialled(address));
            // Whether it asks before or after this, it must know.
            std::thread::yield_now();
            let own = sockets.remember(address, Way::Out);
            drop(dialling);
            assert!(asked.join().expect("the asking thread"));
            drop(own);
        });
        assert!(!sockets.contains_dialled(address));
    }

    #[test]
    fn remembered_until_the_last_is_dropped() {
        let sockets = OwnSockets::default();
        let address = ends("10.0.0.1:40000");
        let first = sockets.remember(address, Way::Out);
        let second = sockets.remember(address, Way::In);
        assert!(sockets.contains_inward(address));
        drop(first);
        assert!(sockets.contains(address));
        let borrowed = ends("10.0.0.9:50000");
        let third = sockets.remember(borrowed, Way::Borrowed);
        assert!(sockets.contains(borrowed) && !sockets.contains_inward(borrowed));
        drop(third);
        assert!(!sockets.contains(ends("10.0.0.2:40000")));
        drop(second);
        assert!(!sockets.contains(address));
    }

    #[test]
    fn the_same_port_may_be_somebody_elses_for_another_destination() {
        let sockets = OwnSockets::default();
        let tunnel = ends("10.0.0.1:40000");
        let _own = sockets.remember(tunnel, Way::Out);
        assert!(!sockets.contains_dialled(Ends { remote: "10.0.0.7:8080".parse().expect("address"), ..tunnel }));
        assert!(!sockets.contains(Ends { remote: "10.0.0.8:80".parse().expect("address"), ..tunnel }));
    }
}
