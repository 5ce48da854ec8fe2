//! The whole state at one moment: what the data path reads, once per connection. Immutable, shared by `Arc`, published
//! on one watch channel. Its maps are persistent: the next snapshot shares all that did not change.
//!
//! Look-ups are by (network, address), host name or workload name; addresses are canonicalised first, and none of them
//! allocates for an address. A snapshot comes only out of a [`SnapshotBuilder`](crate::mesh::SnapshotBuilder), so the parts always agree.
//! Deliberately absent: choosing an endpoint, and deciding between a service and a workload of the same address (that is
//! the data path's, in one place).

use std::net::IpAddr;
use std::sync::Arc;

use imbl::{OrdSet, Vector};

use crate::config::settings::LocalWorkload;
use crate::mesh::index::Index;
use crate::mesh::key::NameRef;
use crate::mesh::map::HashMap;
use crate::mesh::policies::Policies;
use crate::mesh::policy::{Policy, PolicyKey, PolicyView};
use crate::mesh::spec::ServiceSpec;
use crate::mesh::{Endpoint, ServiceKey, ServiceState, Workload};

#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    pub(super) generation: u64,
    pub(super) source_hash: Arc<str>,
    pub(super) tables: Tables,
    pub(super) index: Index,
    pub(super) policies: Policies,
}

/// What is known, by its own key.
#[derive(Debug, Clone, Default)]
pub(super) struct Tables {
    /// By uid.
    pub(super) workloads: HashMap<Arc<str>, Arc<Workload>>,
    /// As defined.
    pub(super) specs: HashMap<ServiceKey, Arc<ServiceSpec>>,
    /// As read: with endpoints. The same keys as `specs`.
    pub(super) services: HashMap<ServiceKey, Arc<ServiceState>>,
    /// Endpoints of services that workloads name but nobody has defined; never empty.
    pub(super) staged: HashMap<ServiceKey, Vector<Arc<Endpoint>>>,
    /// uid -> services that list it among their explicit endpoints; never empty.
    pub(super) referrers: HashMap<Arc<str>, OrdSet<ServiceKey>>,
}

impl Snapshot {
    /// The workload that has the address. Where several have it: pods that accept HBONE, then pods, then what accepts
    /// HBONE, then the rest, each by uid. A workload on its host's network is not found by address.
    #[must_use]
    pub fn workload(&self, network: &str, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.index.workload(network, ip)
    }

    /// The workload of that host name, in any case and with or without the root's dot; precedence as for addresses.
    #[must_use]
    pub fn workload_by_hostname(&self, namespace: &str, hostname: &str) -> Option<&Arc<Workload>> {
        self.index.workload_by_hostname(namespace, hostname)
    }

    #[must_use]
    pub fn workload_by_uid(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.tables.workloads.get(uid)
    }

    /// The service that a client of `client_namespace` reaches at the address: among those it may see, an exact virtual
    /// address before ranges, its own namespace before others, the longest range, canonical before others, then by key.
    #[must_use]
    pub fn service(&self, network: &str, ip: IpAddr, client_namespace: &str) -> Option<&Arc<ServiceState>> {
        self.state_of(&self.index.service(network, ip, client_namespace)?.key)
    }

    /// All services at the address, exact or by range, whoever may see them. For a waypoint, which serves services that
    /// its own namespace may not see.
    pub fn services_at(&self, network: &str, ip: IpAddr) -> impl Iterator<Item = &Arc<ServiceState>> {
        self.index.services_at(network, ip).filter_map(|service| self.state_of(&service.key))
    }

    /// The services that a workload is an endpoint of: those that it names, then those that name it.
    pub fn services_of<'a>(&'a self, workload: &'a Workload) -> impl Iterator<Item = &'a Arc<ServiceState>> {
        let naming = self.tables.referrers.get(&workload.uid).into_iter().flatten();
        let naming = naming.filter(|key| !workload.services.contains_key(*key));
        workload.services.keys().chain(naming).filter_map(|key| self.state_of(key))
    }

    /// The service of that host name, in any case and with or without the root's dot; precedence as for addresses.
    #[must_use]
    pub fn service_by_host(&self, hostname: &str, client_namespace: &str) -> Option<&Arc<ServiceState>> {
        self.state_of(&self.index.service_by_host(hostname, client_namespace)?.key)
    }

    #[must_use]
    pub fn service_by_key(&self, namespace: &str, hostname: &str) -> Option<&Arc<ServiceState>> {
        self.tables.services.get(&NameRef { namespace, name: hostname })
    }

    /// The workload that this daemon serves: by name, namespace and service account. A workload that names a node must
    /// name this one (unless `node` is empty); one that names this node comes first, then the smallest uid.
    #[must_use]
    pub fn local_workload(&self, local: &LocalWorkload, node: &str) -> Option<&Arc<Workload>> {
        let candidates = || {
            self.index
                .workloads_named(&local.namespace, &local.name)
                .filter(|workload| workload.service_account == local.service_account)
                .filter(|workload| node.is_empty() || workload.node.is_empty() || *workload.node == *node)
        };
        candidates().find(|workload| !workload.node.is_empty()).or_else(|| candidates().next())
    }

    /// Counts the published states of this process, from 1; 0 is the empty state before the first.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// SHA-256 of what the state was made from, in hexadecimal; empty when it was made from nothing.
    #[must_use]
    pub fn source_hash(&self) -> &str {
        &self.source_hash
    }

    #[must_use]
    pub fn workload_count(&self) -> usize {
        self.tables.workloads.len()
    }

    #[must_use]
    pub fn service_count(&self) -> usize {
        self.tables.services.len()
    }

    /// The policies that concern the workload: of all, of its namespace, and those that it lists. Never stale, even if the
    /// workload itself has left the state.
    #[must_use]
    pub fn policies_for(&self, workload: &Workload) -> PolicyView {
        self.policies.view(workload)
    }

    #[must_use]
    pub fn policy(&self, key: &str) -> Option<&Arc<Policy>> {
        self.policies.get(key)
    }

    #[must_use]
    pub fn policy_count(&self) -> usize {
        self.policies.len()
    }

    /// In no order.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.iter()
    }

    /// (uid, key) of policies that workloads list and nobody has defined. In no order.
    pub fn missing_policies(&self) -> impl Iterator<Item = (&Arc<str>, &PolicyKey)> {
        let listing = self.tables.workloads.values().filter(|workload| !workload.authorization_policies.is_empty());
        listing.flat_map(|workload| self.policies.missing(workload).iter().map(move |key| (&workload.uid, key)))
    }

    /// Services that workloads name but nobody has defined: not an error, since the definition may come later.
    pub fn undefined_services(&self) -> impl Iterator<Item = &ServiceKey> {
        self.tables.staged.keys()
    }

    /// (service, uid) of explicit endpoints whose workload nobody has defined.
    pub fn undefined_workloads(&self) -> impl Iterator<Item = (&ServiceKey, &Arc<str>)> {
        let unknown = |uid: &Arc<str>| !self.tables.workloads.contains_key(uid);
        self.tables
            .referrers
            .iter()
            .filter(move |(uid, _)| unknown(uid))
            .flat_map(|(uid, keys)| keys.iter().map(move |key| (key, uid)))
    }

    /// In no order.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.tables.workloads.values()
    }

    /// In no order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<ServiceState>> {
        self.tables.services.values()
    }

    pub(super) fn spec(&self, key: &ServiceKey) -> Option<&Arc<ServiceSpec>> {
        self.tables.specs.get(key)
    }

    /// Services as defined, in no order.
    pub(super) fn specs(&self) -> impl Iterator<Item = &Arc<ServiceSpec>> {
        self.tables.specs.values()
    }

    fn state_of(&self, key: &ServiceKey) -> Option<&Arc<ServiceState>> {
        self.tables.services.get(key)
    }
}

#[cfg(test)]
mod tests;
