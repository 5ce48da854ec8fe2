//! The keys of the state's maps, and their borrowed forms, so that a look-up on the data path allocates nothing.
//!
//! Invariant: an owned key and its borrowed form hash alike (both derive `Hash` over the same fields in the same order).

use std::cmp::Ordering;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use equivalent::{Comparable, Equivalent};

use crate::mesh::ServiceKey;

/// An address in a network. The address is canonical.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct NetworkIp {
    pub(super) network: Arc<str>,
    pub(super) ip: IpAddr,
}

/// [`NetworkIp`], borrowed.
#[derive(Debug, Clone, Copy, Hash)]
pub(super) struct NetworkIpRef<'a> {
    pub(super) network: &'a str,
    pub(super) ip: IpAddr,
}

impl Equivalent<NetworkIp> for NetworkIpRef<'_> {
    fn equivalent(&self, key: &NetworkIp) -> bool {
        self.ip == key.ip && *self.network == *key.network
    }
}

/// A workload's name in its namespace; several workloads may have it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct NamespacedName {
    pub(super) namespace: Arc<str>,
    pub(super) name: Arc<str>,
}

/// [`NamespacedName`] or [`ServiceKey`], borrowed.
#[derive(Debug, Clone, Copy, Hash)]
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

    #[test]
    fn borrowed_keys_hash_like_owned_ones() {
        let hasher = RandomState::new();
        let ip: IpAddr = [10, 0, 0, 1].into();
        assert_eq!(
            hasher.hash_one(NetworkIp { network: "n".into(), ip }),
            hasher.hash_one(NetworkIpRef { network: "n", ip })
        );
        let name = NameRef { namespace: "ns", name: "a" };
        assert_eq!(hasher.hash_one(NamespacedName { namespace: "ns".into(), name: "a".into() }), hasher.hash_one(name));
        assert_eq!(hasher.hash_one(ServiceKey { namespace: "ns".into(), hostname: "a".into() }), hasher.hash_one(name));
    }
}
