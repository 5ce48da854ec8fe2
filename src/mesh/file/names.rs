//! Names that repeat (namespaces, accounts, networks, service keys) are kept once per load and shared by `Arc`.

use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::Arc;

use crate::mesh::ServiceKey;

/// Lives as long as one load; what it handed out lives on.
#[derive(Debug, Default)]
pub(in crate::mesh) struct Names {
    known: RefCell<HashSet<Arc<str>>>,
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

    pub(super) fn key(&self, namespace: &str, hostname: &str) -> ServiceKey {
        ServiceKey { namespace: self.share(namespace), hostname: self.share(hostname) }
    }
}
