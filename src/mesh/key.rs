//! The keys of the state's maps, and their borrowed forms, so that a look-up on the data path allocates nothing.
//!
//! Invariant: an owned key and its borrowed form hash alike (both derive `Hash` over the same fields in the same order).

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use equivalent::{Comparable, Equivalent};

use crate::mesh::{ServiceKey, Workload};

/// An address in a network. The address is canonical.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct NetworkIp {
    pub(super) network: Arc<str>,
    pub(super) ip: IpAddr,
}

/// [`NetworkIp`], borrowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct NetworkIpRef<'a> {
    pub(super) network: &'a str,
    pub(super) ip: IpAddr,
}

impl Equivalent<NetworkIp> for NetworkIpRef<'_> {
    fn equivalent(&self, key: &NetworkIp) -> bool {
        self.ip == key.ip && *self.network == *key.network
    }
}

/// A workload as the key of one of its addresses. The map's nodes are a third full: a key without a network of its own is
/// what makes a map of all addresses small. With the address in it most others are told apart without looking at theirs.
#[derive(Debug, Clone)]
pub(super) struct Addressed {
    workload: Arc<Workload>,
    ip: IpAddr,
}

impl Addressed {
    /// `None` when the workload does not have the address.
    pub(super) fn new(workload: &Arc<Workload>, ip: IpAddr) -> Option<Self> {
        workload.ips.contains(&ip).then(|| Self { workload: Arc::clone(workload), ip })
    }

    fn borrowed(&self) -> NetworkIpRef<'_> {
        NetworkIpRef { network: &self.workload.network, ip: self.ip }
    }
}

impl PartialEq for Addressed {
    fn eq(&self, other: &Self) -> bool {
        self.borrowed() == other.borrowed()
    }
}

impl Eq for Addressed {}

impl Hash for Addressed {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.borrowed().hash(state);
    }
}

impl Equivalent<Addressed> for NetworkIpRef<'_> {
    fn equivalent(&self, key: &Addressed) -> bool {
        self.ip == key.ip && *self.network == *key.workload.network
    }
}

/// A workload as the key of its name in its namespace.
#[derive(Debug, Clone)]
pub(super) struct Named(pub(super) Arc<Workload>);

impl Named {
    fn borrowed(&self) -> NameRef<'_> {
        NameRef { namespace: &self.0.namespace, name: &self.0.name }
    }
}

impl PartialEq for Named {
    fn eq(&self, other: &Self) -> bool {
        self.borrowed() == other.borrowed()
    }
}

impl Eq for Named {}

impl Hash for Named {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.borrowed().hash(state);
    }
}

impl Equivalent<Named> for NameRef<'_> {
    fn equivalent(&self, key: &Named) -> bool {
        *self == key.borrowed()
    }
}

/// A workload's host name in its namespace; several workloads may have it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct NamespacedName {
    pub(super) namespace: Arc<str>,
    pub(super) name: Arc<str>,
}

/// [`NamespacedName`] or [`ServiceKey`], borrowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct NameRef<'a> {
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
}

impl Equivalent<NamespacedName> for NameRef<'_> {
    fn equivalent(&self, key: &NamespacedName) -> bool {
        *self.namespace == *key.namespace && *self.name == *key.name
    }
}

impl Equivalent<ServiceKey> for NameRef<'_> {
    fn equivalent(&self, key: &ServiceKey) -> bool {
        *self.namespace == *key.namespace && *self.name == *key.hostname
    }
}

/// Orders the services of one slot: by namespace, canonical ones first, then by host name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct OwnRank {
    pub(super) namespace: Arc<str>,
    pub(super) not_canonical: bool,
    pub(super) hostname: Arc<str>,
}

/// A place just before every [`OwnRank`] of the namespace.
#[derive(Debug, Clone, Copy)]
pub(super) struct NamespaceStart<'a>(pub(super) &'a str);

impl Equivalent<OwnRank> for NamespaceStart<'_> {
    fn equivalent(&self, _: &OwnRank) -> bool {
        false
    }
}

impl Comparable<OwnRank> for NamespaceStart<'_> {
    fn compare(&self, key: &OwnRank) -> Ordering {
        self.0.cmp(&key.namespace).then(Ordering::Less)
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasher, RandomState};

    use super::*;
    use crate::mesh::fixture;

    #[test]
    fn borrowed_keys_hash_like_owned_ones() {
        let hasher = RandomState::new();
        let ip: IpAddr = [10, 0, 0, 1].into();
        assert_eq!(
            hasher.hash_one(NetworkIp { network: "n".into(), ip }),
            hasher.hash_one(NetworkIpRef { network: "n", ip })
        );
        let ips = vec![[10, 0, 0, 9].into(), ip];
        let workload = Arc::new(Workload { network: "n".into(), name: "a".into(), ips, ..fixture::workload("u") });
        let addressed = Addressed::new(&workload, ip).expect("it has the address");
        assert_eq!(hasher.hash_one(addressed), hasher.hash_one(NetworkIpRef { network: "n", ip }));
        let named = NameRef { namespace: &workload.namespace, name: "a" };
        assert_eq!(hasher.hash_one(Named(Arc::clone(&workload))), hasher.hash_one(named));
        assert!(Addressed::new(&workload, [10, 0, 0, 2].into()).is_none());
        let name = NameRef { namespace: "ns", name: "a" };
        assert_eq!(hasher.hash_one(NamespacedName { namespace: "ns".into(), name: "a".into() }), hasher.hash_one(name));
        assert_eq!(hasher.hash_one(ServiceKey { namespace: "ns".into(), hostname: "a".into() }), hasher.hash_one(name));
    }
}
