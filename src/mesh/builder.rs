//! Makes the next snapshot from the last one: workloads, services and policies come and go one by one; endpoints and sets
//! of policies follow.
//!
//! Invariant: what comes out depends on what the state contains, not on the edits that led there; each endpoint is
//! recomputed from the tables and never carried along. Cost: each edit costs the paths it touches; a service whose
//! endpoints change in large part is merged anew in one pass. Nothing here can fail.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::Vector;

use crate::mesh::index::Index;
use crate::mesh::policies::{Policies, Touched};
use crate::mesh::snapshot::{Snapshot, Tables};
use crate::mesh::spec::ServiceSpec;
use crate::mesh::{Endpoint, Policy, PolicyKey, ServiceKey, ServiceState, Workload};

/// Merging beats single insertions once at least one endpoint in this many changes.
const MERGE_RATIO: usize = 16;

/// One resource that enters, is replaced, or leaves.
#[derive(Debug, Clone)]
pub enum Change {
    PutWorkload(Arc<Workload>),
    /// By uid.
    RemoveWorkload(Arc<str>),
    PutService(Arc<ServiceSpec>),
    RemoveService(ServiceKey),
    PutPolicy(Arc<Policy>),
    RemovePolicy(PolicyKey),
}

#[derive(Debug)]
pub struct SnapshotBuilder {
    generation: u64,
    source_hash: Arc<str>,
    tables: Tables,
    index: Index,
    policies: Policies,
    /// Service -> uids whose endpoint in it must be computed again.
    touched: BTreeMap<ServiceKey, BTreeSet<Arc<str>>>,
    touched_policies: Touched,
}

impl SnapshotBuilder {
    /// Begins with what is in `base`; its paths are shared.
    #[must_use]
    pub fn new(base: &Snapshot) -> Self {
        Self {
            generation: base.generation.saturating_add(1),
            source_hash: Arc::clone(&base.source_hash),
            tables: base.tables.clone(),
            index: base.index.clone(),
            policies: base.policies.clone(),
            touched: BTreeMap::new(),
            touched_policies: Touched::default(),
        }
    }

    pub fn apply(&mut self, change: Change) {
        match change {
            Change::PutWorkload(workload) => self.put_workload(workload),
            Change::RemoveWorkload(uid) => self.remove_workload(&uid),
            Change::PutService(spec) => self.put_service(spec),
            Change::RemoveService(key) => self.remove_service(&key),
            Change::PutPolicy(policy) => self.policies.put(policy, &mut self.touched_policies),
            Change::RemovePolicy(key) => self.policies.remove(key.as_str(), &mut self.touched_policies),
        }
    }

    /// What the new state is made from, see [`Snapshot::source_hash`].
    pub fn set_source_hash(&mut self, hash: Arc<str>) {
        self.source_hash = hash;
    }

    #[must_use]
    pub fn finish(mut self) -> Snapshot {
        for (key, uids) in std::mem::take(&mut self.touched) {
            self.refresh(&key, &uids);
        }
        self.policies.refresh(std::mem::take(&mut self.touched_policies));
        let Self { generation, source_hash, tables, index, policies, .. } = self;
        Snapshot { generation, source_hash, tables, index, policies }
    }

    fn put_workload(&mut self, workload: Arc<Workload>) {
        self.remove_workload(&Arc::clone(&workload.uid));
        self.index.put_workload(&workload);
        self.policies.put_workload(&workload, &mut self.touched_policies);
        self.touch_endpoints_of(&workload);
        self.tables.workloads.insert(Arc::clone(&workload.uid), workload);
    }

    fn remove_workload(&mut self, uid: &Arc<str>) {
        if let Some(old) = self.tables.workloads.remove(uid) {
            self.index.remove_workload(&old);
            self.policies.remove_workload(&old, &mut self.touched_policies);
            self.touch_endpoints_of(&old);
        }
    }

    fn put_service(&mut self, spec: Arc<ServiceSpec>) {
        self.remove_service(spec.key());
        self.index.put_service(&spec.service);
        for endpoint in &spec.endpoints {
            self.tables.referrers.entry(Arc::clone(&endpoint.workload_uid)).or_default().insert(spec.key().clone());
        }
        self.touch_explicit(&spec);
        self.tables.specs.insert(spec.key().clone(), spec);
    }

    fn remove_service(&mut self, key: &ServiceKey) {
        let Some(old) = self.tables.specs.remove(key) else { return };
        self.index.remove_service(&old.service);
        for endpoint in &old.endpoints {
            let uid = &endpoint.workload_uid;
            let emptied = self.tables.referrers.get_mut(uid).is_some_and(|keys| {
                keys.remove(key);
                keys.is_empty()
            });
            if emptied {
                self.tables.referrers.remove(uid);
            }
        }
        self.touch_explicit(&old);
    }

    fn touch_endpoints_of(&mut self, workload: &Workload) {
        let explicit = self.tables.referrers.get(&workload.uid).into_iter().flatten();
        for key in workload.services.keys().chain(explicit) {
            touch(&mut self.touched, key).insert(Arc::clone(&workload.uid));
        }
    }

    fn touch_explicit(&mut self, spec: &ServiceSpec) {
        touch(&mut self.touched, spec.key()).extend(spec.endpoints.iter().map(|it| Arc::clone(&it.workload_uid)));
    }

    /// Brings the endpoints of `key` up to date for `uids`, wherever they are kept, and puts them where they belong now.
    fn refresh(&mut self, key: &ServiceKey, uids: &BTreeSet<Arc<str>>) {
        let defined = self.tables.services.get(key);
        let before = match defined {
            Some(state) => state.endpoints.clone(),
            None => self.tables.staged.get(key).cloned().unwrap_or_default(),
        };
        let updates = uids.iter().map(|uid| (uid, self.endpoint(key, uid)));
        let (after, changed) =
            if uids.len() > before.len() / MERGE_RATIO { merge(&before, updates) } else { patch(before, updates) };

        let Some(spec) = self.tables.specs.get(key) else {
            self.tables.services.remove(key);
            if after.is_empty() {
                self.tables.staged.remove(key);
            } else {
                self.tables.staged.insert(key.clone(), after);
            }
            return;
        };
        if !changed && defined.is_some_and(|state| Arc::ptr_eq(&state.service, &spec.service)) {
            return;
        }
        let state = ServiceState::new(Arc::clone(&spec.service), after, defined.map(AsRef::as_ref));
        self.tables.staged.remove(key);
        self.tables.services.insert(key.clone(), Arc::new(state));
    }

    /// What the tables say: the workload's own word first, then the service's.
    fn endpoint(&self, key: &ServiceKey, uid: &str) -> Option<Endpoint> {
        let workload = self.tables.workloads.get(uid)?;
        if let Some(ports) = workload.services.get(key) {
            return Some(Endpoint { workload: Arc::clone(workload), ports: ports.clone(), status: workload.status });
        }
        let explicit = self.tables.specs.get(key)?.explicit(uid)?;
        Some(Endpoint { workload: Arc::clone(workload), ports: explicit.ports.clone(), status: explicit.status })
    }
}

fn touch<'a>(
    touched: &'a mut BTreeMap<ServiceKey, BTreeSet<Arc<str>>>,
    key: &ServiceKey,
) -> &'a mut BTreeSet<Arc<str>> {
    // Most keys are there already, and cloning one costs two shared counters.
    if !touched.contains_key(key) {
        touched.insert(key.clone(), BTreeSet::new());
    }
    touched.entry(key.clone()).or_default()
}

fn same(a: &Endpoint, b: &Endpoint) -> bool {
    Arc::ptr_eq(&a.workload, &b.workload) && a.status == b.status && a.ports == b.ports
}

/// A few updates: each costs a path in the persistent vector.
fn patch<'a>(
    mut endpoints: Vector<Arc<Endpoint>>,
    updates: impl Iterator<Item = (&'a Arc<str>, Option<Endpoint>)>,
) -> (Vector<Arc<Endpoint>>, bool) {
    let mut changed = false;
    for (uid, update) in updates {
        let place = endpoints.binary_search_by(|endpoint| endpoint.workload.uid.cmp(uid));
        match (place, update) {
            (Ok(at), Some(new)) if endpoints.get(at).is_some_and(|old| same(old, &new)) => continue,
            (Ok(at), Some(new)) => drop(endpoints.set(at, Arc::new(new))),
            (Ok(at), None) => drop(endpoints.remove(at)),
            (Err(at), Some(new)) => endpoints.insert(at, Arc::new(new)),
            (Err(_), None) => continue,
        }
        changed = true;
    }
    (endpoints, changed)
}

/// Many updates, sorted by uid: one pass over both.
fn merge<'a>(
    before: &Vector<Arc<Endpoint>>,
    updates: impl Iterator<Item = (&'a Arc<str>, Option<Endpoint>)>,
) -> (Vector<Arc<Endpoint>>, bool) {
    let mut changed = false;
    let mut after = Vector::new();
    let mut old = before.iter().peekable();
    for (uid, update) in updates {
        while let Some(kept) = old.next_if(|endpoint| endpoint.workload.uid < *uid) {
            after.push_back(Arc::clone(kept));
        }
        let current = old.next_if(|endpoint| endpoint.workload.uid == *uid);
        match (current, update) {
            (Some(current), Some(new)) if same(current, &new) => after.push_back(Arc::clone(current)),
            (current, update) => {
                changed |= current.is_some() || update.is_some();
                after.extend(update.map(Arc::new));
            }
        }
    }
    after.extend(old.cloned());
    (after, changed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mesh::fixture::workload;
    use crate::mesh::workload::Health;

    fn endpoint(uid: u8, capacity: u32) -> Endpoint {
        let workload = Arc::new(Workload { capacity, ..workload(&format!("{uid:03}")) });
        Endpoint { workload, ports: BTreeMap::new(), status: Health::Healthy }
    }

    fn shown(endpoints: &Vector<Arc<Endpoint>>) -> Vec<(&str, u32)> {
        endpoints.iter().map(|it| (&*it.workload.uid, it.workload.capacity)).collect()
    }

    proptest! {
        /// Both ways to bring endpoints up to date do the same, which is what a map would do.
        #[test]
        fn patching_is_merging(
            before in prop::collection::btree_map(any::<u8>(), Just(1_u32), 0..200),
            updates in prop::collection::btree_map(any::<u8>(), prop::option::of(2_u32..4), 0..200),
        ) {
            let mut model = before.clone();
            let before: Vector<Arc<Endpoint>> = before.iter().map(|(uid, n)| Arc::new(endpoint(*uid, *n))).collect();
            let uids: Vec<(Arc<str>, Option<Endpoint>)> = updates
                .iter()
                .map(|(uid, update)| (format!("{uid:03}").into(), update.map(|n| endpoint(*uid, n))))
                .collect();
            let updates_again = || uids.iter().map(|(uid, update)| (uid, update.clone()));
            let mut changed = false;
            for (uid, update) in &updates {
                match update {
                    Some(n) => changed |= model.insert(*uid, *n) != Some(*n),
                    None => changed |= model.remove(uid).is_some(),
                }
            }
            let want: Vec<(String, u32)> = model.iter().map(|(uid, n)| (format!("{uid:03}"), *n)).collect();
            let want: Vec<(&str, u32)> = want.iter().map(|(uid, n)| (uid.as_str(), *n)).collect();
            let (patched, patch_changed) = patch(before.clone(), updates_again());
            let (merged, merge_changed) = merge(&before, updates_again());
            prop_assert_eq!(shown(&patched), want.clone());
            prop_assert_eq!(shown(&merged), want);
            prop_assert_eq!((patch_changed, merge_changed), (changed, changed));
        }
    }
}
