//! The policies of a state, and who they are for: all workloads, those of a namespace, those that list them.
//!
//! In: policies and workloads as they enter and leave. Out: the [`PolicyView`] of a workload. Each scope, and each
//! distinct list of keys that some workload has, has one compiled set, shared by all who are concerned. Persistent maps.
//!
//! Invariant: what is here depends on the policies and the lists, not on the edits that led there; a set is made anew only if its policies
//! changed. Cost: a changed policy costs the sets that it is in, a changed workload the list it has. Nothing here can fail.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::OrdSet;

use crate::mesh::Workload;
use crate::mesh::map::HashMap;
use crate::mesh::policy::{Compiled, Listed, Policy, PolicyKey, PolicySet, PolicyView, Scope};

/// The keys that a workload lists, in its order.
type List = Arc<[Arc<str>]>;

#[derive(Debug, Clone, Default)]
pub(super) struct Policies {
    by_key: HashMap<PolicyKey, Arc<Compiled>>,
    /// Not there while empty, and so below.
    global: Option<Arc<PolicySet>>,
    namespaces: HashMap<Arc<str>, Arc<PolicySet>>,
    lists: HashMap<List, Entry>,
    /// Key -> the lists that have it.
    listers: HashMap<Arc<str>, OrdSet<List>>,
}

#[derive(Debug, Clone, Default)]
struct Entry {
    /// Workloads that have the list.
    users: usize,
    listed: Arc<Listed>,
}

/// What must be brought up to date.
#[derive(Debug, Default)]
pub(super) struct Touched {
    /// `None`: of all workloads.
    scopes: BTreeMap<Option<Arc<str>>, BTreeSet<PolicyKey>>,
    lists: BTreeSet<List>,
}

impl Policies {
    pub(super) fn get(&self, key: &str) -> Option<&Arc<Policy>> {
        self.by_key.get(key).map(|compiled| &compiled.policy)
    }

    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// In no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.by_key.values().map(|compiled| &compiled.policy)
    }

    pub(super) fn view(&self, workload: &Workload) -> PolicyView {
        let listed = match &*workload.authorization_policies {
            [] => None,
            keys => match self.lists.get(keys) {
                Some(entry) => Some(Arc::clone(&entry.listed)),
                // A workload that has left: nobody keeps its list up to date, and it must not go without.
                None => Some(self.listed(keys, None)),
            },
        };
        PolicyView { global: self.global.clone(), namespace: self.namespaces.get(&workload.namespace).cloned(), listed }
    }

    /// The listed keys that are not there, whoever lists them.
    pub(super) fn missing<'a>(&'a self, workload: &Workload) -> &'a [PolicyKey] {
        let entry = self.lists.get(&*workload.authorization_policies);
        entry.map(|entry| entry.listed.missing()).unwrap_or_default()
    }

    pub(super) fn put(&mut self, policy: Arc<Policy>, touched: &mut Touched) {
        self.remove(policy.key.as_str(), touched);
        self.touch(&policy, touched);
        self.by_key.insert(policy.key.clone(), Arc::new(Compiled::new(policy)));
    }

    pub(super) fn remove(&mut self, key: &str, touched: &mut Touched) {
        if let Some(old) = self.by_key.remove(key) {
            self.touch(&old.policy, touched);
        }
    }

    fn touch(&self, policy: &Policy, touched: &mut Touched) {
        let scope = match policy.scope {
            Scope::Global => Some(None),
            Scope::Namespace => Some(Some(policy.key.namespace().into())),
            Scope::WorkloadSelector => None,
        };
        if let Some(scope) = scope {
            touched.scopes.entry(scope).or_default().insert(policy.key.clone());
        }
        touched.lists.extend(self.listers.get(policy.key.as_str()).into_iter().flatten().cloned());
    }

    pub(super) fn put_workload(&mut self, workload: &Workload, touched: &mut Touched) {
        let keys = &workload.authorization_policies;
        if keys.is_empty() {
            return;
        }
        if let Some(entry) = self.lists.get_mut(&**keys) {
            entry.users += 1;
            return;
        }
        let list: List = Arc::clone(keys);
        for key in keys.iter() {
            self.listers.entry(Arc::clone(key)).or_default().insert(Arc::clone(&list));
        }
        self.lists.insert(Arc::clone(&list), Entry { users: 1, listed: Arc::default() });
        touched.lists.insert(list);
    }

    pub(super) fn remove_workload(&mut self, workload: &Workload, touched: &mut Touched) {
        let keys = &workload.authorization_policies;
        if let Some(entry) = self.lists.get_mut(&**keys) {
            entry.users = entry.users.saturating_sub(1);
            if entry.users == 0 {
                touched.lists.insert(Arc::clone(keys));
            }
        }
    }

    /// After the last edit.
    pub(super) fn refresh(&mut self, touched: Touched) {
        for (scope, keys) in touched.scopes {
            self.refresh_scope(scope, &keys);
        }
        for list in touched.lists {
            match self.lists.get(&list) {
                Some(entry) if entry.users > 0 => {
                    let listed = self.listed(&list, Some(&entry.listed));
                    let entry = Entry { users: entry.users, listed };
                    self.lists.insert(list, entry);
                }
                _ => self.forget(&list),
            }
        }
    }

    fn refresh_scope(&mut self, scope: Option<Arc<str>>, keys: &BTreeSet<PolicyKey>) {
        let old = match &scope {
            None => self.global.as_ref(),
            Some(namespace) => self.namespaces.get(namespace),
        };
        let wanted = if scope.is_none() { Scope::Global } else { Scope::Namespace };
        let kept = old.into_iter().flat_map(|set| set.compiled()).filter(|it| !keys.contains(&it.policy.key));
        let entered = keys.iter().filter_map(|key| self.by_key.get(key)).filter(|it| it.policy.scope == wanted);
        let policies: Vec<Arc<Compiled>> = kept.chain(entered).cloned().collect();
        let set = (!policies.is_empty()).then(|| Arc::new(PolicySet::new(policies)));
        match (scope, set) {
            (None, set) => self.global = set,
            (Some(namespace), Some(set)) => drop(self.namespaces.insert(namespace, set)),
            (Some(namespace), None) => drop(self.namespaces.remove(&namespace)),
        }
    }

    /// What the keys mean now; `old` itself if that is the same.
    fn listed(&self, keys: &[Arc<str>], old: Option<&Arc<Listed>>) -> Arc<Listed> {
        let sorted: BTreeSet<&Arc<str>> = keys.iter().collect();
        let (mut policies, mut missing) = (Vec::new(), Vec::new());
        for key in sorted {
            match self.by_key.get(&**key) {
                Some(compiled) => policies.push(Arc::clone(compiled)),
                None => missing.push(PolicyKey::from(Arc::clone(key))),
            }
        }
        match old.filter(|old| old.is_of(&policies, &missing)) {
            Some(old) => Arc::clone(old),
            None => Arc::new(Listed::new(policies, missing)),
        }
    }

    fn forget(&mut self, list: &List) {
        if self.lists.remove(list).is_none() {
            return;
        }
        for key in list.iter() {
            let emptied = self.listers.get_mut(key).is_some_and(|lists| {
                lists.remove(list);
                lists.is_empty()
            });
            if emptied {
                self.listers.remove(key);
            }
        }
    }

    /// Keys in each map: nothing may be left behind.
    #[cfg(test)]
    pub(super) fn sizes(&self) -> [usize; 5] {
        let listed = self.listers.values().map(OrdSet::len).sum();
        [self.by_key.len(), self.namespaces.len(), self.lists.len(), self.listers.len(), listed]
    }
}
