//! The ways into the state: from an address, a range, a host name or a workload's name to what it means. Persistent
//! maps: a clone shares everything, a change copies the path to it.
//!
//! In come workloads and services as they enter and leave; out goes the best match for a client. Only a service's own
//! definition is indexed, not its endpoints, so a change to an endpoint touches nothing here and no entry can go stale.
//! Invariant: an entry is here exactly while what it points at is in the state. Nothing here can fail.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use equivalent::Equivalent;
use imbl::OrdMap;
use ipnet::IpNet;

use crate::mesh::key::{Addressed, NameRef, Named, NamespacedName, NetworkIp, NetworkIpRef};
use crate::mesh::map::HashMap;
use crate::mesh::slot::{ServiceSlot, Slot};
use crate::mesh::workload::{NetworkMode, Protocol};
use crate::mesh::{Service, Workload};

/// (precedence, uid): the smallest is best.
type WorkloadRank = (Reverse<u8>, Arc<str>);

/// (is IPv6, prefix length): the longest first within a family.
type PrefixRank = (bool, Reverse<u8>);

/// Ranges of one network: prefix length -> first address -> services.
type Ranges = OrdMap<PrefixRank, HashMap<IpAddr, ServiceSlot>>;

#[derive(Debug, Clone, Default)]
pub(super) struct Index {
    workloads: HashMap<Addressed, Slot<WorkloadRank, Arc<Workload>>>,
    names: HashMap<Named, Slot<Arc<str>, Arc<Workload>>>,
    /// By namespace and [`normal_host`] of the workload's host name.
    workload_hosts: HashMap<NamespacedName, Slot<WorkloadRank, Arc<Workload>>>,
    vips: HashMap<NetworkIp, ServiceSlot>,
    /// By network.
    ranges: HashMap<Arc<str>, Ranges>,
    /// By [`normal_host`].
    hosts: HashMap<Arc<str>, ServiceSlot>,
}

impl Index {
    pub(super) fn workload(&self, network: &str, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.workloads.get(&NetworkIpRef { network, ip: ip.to_canonical() })?.best()
    }

    /// All workloads of that name, by uid.
    pub(super) fn workloads_named(&self, namespace: &str, name: &str) -> impl Iterator<Item = &Arc<Workload>> {
        self.names.get(&NameRef { namespace, name }).into_iter().flat_map(Slot::iter)
    }

    /// The best of that host name, as among those of one address.
    pub(super) fn workload_by_hostname(&self, namespace: &str, hostname: &str) -> Option<&Arc<Workload>> {
        self.workload_hosts.get(&NameRef { namespace, name: &normal_host(hostname) })?.best()
    }

    /// An exact address first; then ranges: of the client's own namespace first, then the longest prefix.
    pub(super) fn service(&self, network: &str, ip: IpAddr, client_namespace: &str) -> Option<&Arc<Service>> {
        let ip = ip.to_canonical();
        self.vips
            .get(&NetworkIpRef { network, ip })
            .and_then(|slot| slot.find(client_namespace))
            .map(|found| found.service)
            .or_else(|| self.service_by_range(network, ip, client_namespace))
    }

    /// All services at the address, exact or by range, whoever may see them; the exact ones first.
    pub(super) fn services_at(&self, network: &str, ip: IpAddr) -> impl Iterator<Item = &Arc<Service>> {
        let ip = ip.to_canonical();
        let exact = self.vips.get(&NetworkIpRef { network, ip });
        let ranges = self.ranges.get(network).into_iter().flat_map(move |ranges| {
            ranges
                .iter()
                .filter(move |((v6, _), _)| *v6 == ip.is_ipv6())
                .filter_map(move |((_, Reverse(length)), starts)| starts.get(&IpNet::new(ip, *length).ok()?.network()))
        });
        exact.into_iter().chain(ranges).flat_map(ServiceSlot::iter)
    }

    /// Whether no service was indexed anew between the two.
    #[cfg(test)]
    pub(super) fn shares_services_with(&self, other: &Self) -> bool {
        self.vips.ptr_eq(&other.vips) && self.ranges.ptr_eq(&other.ranges) && self.hosts.ptr_eq(&other.hosts)
    }

    /// Keys in each map: nothing may be left behind.
    #[cfg(test)]
    pub(super) fn sizes(&self) -> [usize; 7] {
        let starts = self.ranges.values().flat_map(|ranges| ranges.values()).map(HashMap::len).sum();
        let hosts = self.workload_hosts.len();
        [self.workloads.len(), self.names.len(), hosts, self.vips.len(), self.ranges.len(), starts, self.hosts.len()]
    }

    fn service_by_range(&self, network: &str, ip: IpAddr, client_namespace: &str) -> Option<&Arc<Service>> {
        let mut foreign = None;
        for ((_, Reverse(length)), starts) in
            self.ranges.get(network)?.iter().filter(|((v6, _), _)| *v6 == ip.is_ipv6())
        {
            let Ok(net) = IpNet::new(ip, *length) else { continue };
            let Some(found) = starts.get(&net.network()).and_then(|slot| slot.find(client_namespace)) else { continue };
            if found.own {
                return Some(found.service);
            }
            foreign = foreign.or(Some(found.service));
        }
        foreign
    }

    pub(super) fn service_by_host(&self, hostname: &str, client_namespace: &str) -> Option<&Arc<Service>> {
        self.hosts.get(&*normal_host(hostname))?.find(client_namespace).map(|found| found.service)
    }

    pub(super) fn put_workload(&mut self, workload: &Arc<Workload>) {
        if workload.network_mode == NetworkMode::Standard {
            for key in workload.ips.iter().filter_map(|ip| Addressed::new(workload, *ip)) {
                put(&mut self.workloads, key, workload, workload_rank);
            }
        }
        if !workload.name.is_empty() {
            put(&mut self.names, Named(Arc::clone(workload)), workload, uid);
        }
        if let Some(host) = namespaced_host(workload) {
            put(&mut self.workload_hosts, host, workload, workload_rank);
        }
    }

    pub(super) fn remove_workload(&mut self, workload: &Workload) {
        if workload.network_mode == NetworkMode::Standard {
            for ip in &workload.ips {
                let key = NetworkIpRef { network: &workload.network, ip: *ip };
                remove(&mut self.workloads, &key, workload, workload_rank, |left| Addressed::new(left, *ip));
            }
        }
        if !workload.name.is_empty() {
            let key = NameRef { namespace: &workload.namespace, name: &workload.name };
            remove(&mut self.names, &key, workload, uid, |left| Some(Named(Arc::clone(left))));
        }
        if let Some(host) = namespaced_host(workload) {
            remove(&mut self.workload_hosts, &host, workload, workload_rank, |left| namespaced_host(left));
        }
    }

    pub(super) fn put_service(&mut self, service: &Arc<Service>) {
        for (network, ip) in exact_vips(service) {
            put_service_in(&mut self.vips, NetworkIp { network: Arc::clone(network), ip }, service);
        }
        for (network, net) in ranges(service) {
            let ranges = self.ranges.entry(Arc::clone(network)).or_default();
            let starts = ranges.entry(prefix_rank(net)).or_default();
            put_service_in(starts, net.network(), service);
        }
        put_service_in(&mut self.hosts, normal_host(&service.key.hostname).into(), service);
    }

    pub(super) fn remove_service(&mut self, service: &Service) {
        for (network, ip) in exact_vips(service) {
            remove_service_from(&mut self.vips, &NetworkIp { network: Arc::clone(network), ip }, service);
        }
        for (network, net) in ranges(service) {
            let Some(ranges) = self.ranges.get_mut(network) else { continue };
            if let Some(starts) = ranges.get_mut(&prefix_rank(net)) {
                remove_service_from(starts, &net.network(), service);
                if starts.is_empty() {
                    ranges.remove(&prefix_rank(net));
                }
            }
            if ranges.is_empty() {
                self.ranges.remove(network);
            }
        }
        remove_service_from(&mut self.hosts, &normal_host(&service.key.hostname).into(), service);
    }
}

fn put<K: Hash + Eq + Clone, R: Ord + Clone>(
    map: &mut HashMap<K, Slot<R, Arc<Workload>>>,
    key: K,
    workload: &Arc<Workload>,
    rank: fn(&Workload) -> R,
) {
    match map.get_mut(&key) {
        Some(slot) => slot.put(Arc::clone(workload), |it| rank(it)),
        None => drop(map.insert(key, Slot::One(Arc::clone(workload)))),
    }
}

/// What is left is found by a key made of it, not of what has gone.
fn remove<K: Hash + Eq + Clone, Q: Hash + Equivalent<K>, R: Ord + Clone>(
    map: &mut HashMap<K, Slot<R, Arc<Workload>>>,
    key: &Q,
    gone: &Workload,
    rank: fn(&Workload) -> R,
    key_of: impl Fn(&Arc<Workload>) -> Option<K>,
) {
    let Some(mut slot) = map.remove(key) else { return };
    if !slot.remove(&rank(gone), |it| rank(it))
        && let Some(key) = slot.best().and_then(key_of)
    {
        map.insert(key, slot);
    }
}

fn put_service_in<K: Hash + Eq + Clone>(map: &mut HashMap<K, ServiceSlot>, key: K, service: &Arc<Service>) {
    match map.get_mut(&key) {
        Some(slot) => slot.put(service),
        None => drop(map.insert(key, ServiceSlot::One(Arc::clone(service)))),
    }
}

fn remove_service_from<K: Hash + Eq + Clone>(map: &mut HashMap<K, ServiceSlot>, key: &K, service: &Service) {
    if map.get_mut(key).is_some_and(|slot| slot.remove(service)) {
        map.remove(key);
    }
}

/// A workload that accepts HBONE before one that does not, a pod before anything else; then by uid.
fn workload_rank(workload: &Workload) -> WorkloadRank {
    let hbone = workload.protocol == Protocol::Hbone;
    let precedence = match (workload.uid.contains("//Pod/"), hbone) {
        (true, true) => 3,
        (true, false) => 2,
        (false, true) => 1,
        (false, false) => 0,
    };
    (Reverse(precedence), Arc::clone(&workload.uid))
}

fn uid(workload: &Workload) -> Arc<str> {
    Arc::clone(&workload.uid)
}

/// A workload without a host name cannot be found by it.
fn namespaced_host(workload: &Workload) -> Option<NamespacedName> {
    (!workload.hostname.is_empty()).then(|| {
        let name = match normal_host(&workload.hostname) {
            Cow::Borrowed(same) if same.len() == workload.hostname.len() => Arc::clone(&workload.hostname),
            changed => changed.into(),
        };
        NamespacedName { namespace: Arc::clone(&workload.namespace), name }
    })
}

/// A range of one address is an address.
fn exact_vips(service: &Service) -> impl Iterator<Item = (&Arc<str>, IpAddr)> {
    let single = |net: &IpNet| net.prefix_len() == net.max_prefix_len();
    service
        .vips
        .iter()
        .map(|(network, ip)| (network, *ip))
        .chain(service.cidr_vips.iter().filter(move |(_, net)| single(net)).map(|(network, net)| (network, net.addr())))
}

fn ranges(service: &Service) -> impl Iterator<Item = (&Arc<str>, IpNet)> {
    service
        .cidr_vips
        .iter()
        .filter(|(_, net)| net.prefix_len() < net.max_prefix_len())
        .map(|(network, net)| (network, *net))
}

fn prefix_rank(net: IpNet) -> PrefixRank {
    (matches!(net, IpNet::V6(_)), Reverse(net.prefix_len()))
}

/// Lower case, without the root's dot. Allocates only when there is something to change.
fn normal_host(hostname: &str) -> Cow<'_, str> {
    let hostname = hostname.strip_suffix('.').unwrap_or(hostname);
    if hostname.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(hostname.to_ascii_lowercase())
    } else {
        Cow::Borrowed(hostname)
    }
}
