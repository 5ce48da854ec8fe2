//! The policies that concern one workload: small, cheap to clone, compared by pointer. A connection, or a worker for the workload it
//! serves, keeps one instead of the snapshot; while it is the same, no decision can have changed.

use std::sync::Arc;

use super::{Listed, Policy, PolicyKey, PolicySet};

/// The default one has no policies.
#[derive(Debug, Clone, Default)]
pub struct PolicyView {
    pub(in crate::mesh) global: Option<Arc<PolicySet>>,
    pub(in crate::mesh) namespace: Option<Arc<PolicySet>>,
    pub(in crate::mesh) listed: Option<Arc<Listed>>,
}

impl PolicyView {
    /// Whether both are of the same sets; then they decide alike. Sets that were made anew are not the same.
    #[must_use]
    pub fn same_as(&self, other: &Self) -> bool {
        fn same<T>(a: Option<&Arc<T>>, b: Option<&Arc<T>>) -> bool {
            a.map(Arc::as_ptr) == b.map(Arc::as_ptr)
        }
        same(self.global.as_ref(), other.global.as_ref())
            && same(self.namespace.as_ref(), other.namespace.as_ref())
            && same(self.listed.as_ref(), other.listed.as_ref())
    }

    /// At most three. A policy may be in two of them: one of the namespace that is listed besides.
    pub fn sets(&self) -> impl Iterator<Item = &PolicySet> {
        let listed = self.listed.as_deref().map(|listed| &listed.set);
        self.global.as_deref().into_iter().chain(self.namespace.as_deref()).chain(listed)
    }

    /// Each once, by key.
    #[must_use]
    pub fn policies(&self) -> Vec<&Arc<Policy>> {
        let mut policies: Vec<&Arc<Policy>> = self.sets().flat_map(PolicySet::policies).collect();
        policies.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        policies.dedup_by(|a, b| a.key == b.key);
        policies
    }

    /// Policies that the workload lists and the state does not have, by key.
    #[must_use]
    pub fn missing(&self) -> &[PolicyKey] {
        self.listed.as_deref().map(Listed::missing).unwrap_or_default()
    }

    /// Whether nothing is there to be asked.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.global.is_none() && self.namespace.is_none() && self.listed.is_none()
    }
}

impl PartialEq for PolicyView {
    fn eq(&self, other: &Self) -> bool {
        self.same_as(other)
    }
}

impl Eq for PolicyView {}
