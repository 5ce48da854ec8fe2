//! Names that repeat (namespaces, accounts, networks, service keys), and what pods of one service have in common, are
//! kept once and shared by `Arc`.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use crate::identity::SpiffeId;
use crate::mesh::ServiceKey;
use crate::mesh::workload::{Memberships, PortMap};

/// Lives as long as one thread of one load; what it handed out lives on.
#[derive(Debug, Default)]
pub(in crate::mesh) struct Names {
    known: RefCell<HashSet<Arc<str>>>,
    identities: RefCell<HashMap<Arc<str>, Arc<[SpiffeId]>>>,
    memberships: RefCell<HashSet<Memberships>>,
    lists: RefCell<HashSet<Arc<[Arc<str>]>>>,
}

impl Names {
    pub(super) fn share(&self, name: &str) -> Arc<str> {
        let mut known = self.known.borrow_mut();
        if let Some(shared) = known.get(name) {
            return Arc::clone(shared);
        }
        let shared: Arc<str> = name.into();
        known.insert(Arc::clone(&shared));
        shared
    }

    /// The identity that a principal is; none if it breaks SPIFFE's grammar.
    pub(super) fn identity(&self, principal: &Arc<str>) -> Arc<[SpiffeId]> {
        let mut identities = self.identities.borrow_mut();
        let known = identities.entry(Arc::clone(principal));
        Arc::clone(known.or_insert_with(|| principal.parse::<SpiffeId>().into_iter().collect()))
    }

    pub(super) fn memberships(&self, services: BTreeMap<ServiceKey, PortMap>) -> Memberships {
        let mut known = self.memberships.borrow_mut();
        if let Some(shared) = known.get(&services) {
            return Arc::clone(shared);
        }
        let shared = Arc::new(services);
        known.insert(Arc::clone(&shared));
        shared
    }

    pub(super) fn list(&self, names: Vec<Arc<str>>) -> Arc<[Arc<str>]> {
        let mut known = self.lists.borrow_mut();
        if let Some(shared) = known.get(&*names) {
            return Arc::clone(shared);
        }
        let shared: Arc<[Arc<str>]> = names.into();
        known.insert(Arc::clone(&shared));
        shared
    }

    pub(super) fn key(&self, namespace: &str, hostname: &str) -> ServiceKey {
        ServiceKey { namespace: self.share(namespace), hostname: self.share(hostname) }
    }
}
