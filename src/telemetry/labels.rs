//! Label values that are computed once, when a workload or service enters the state, and then only shared: the access
//! log and the traffic metrics of every connection point at them. Empty means unknown.

use std::sync::{Arc, LazyLock};

/// What metrics and logs say of a workload on either side of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct PeerLabels {
    /// Pod or instance name (access log `*.workload`).
    pub name: Arc<str>,
    /// Deployment or the like (metric `*_workload`).
    pub workload: Arc<str>,
    pub namespace: Arc<str>,
    pub canonical_service: Arc<str>,
    pub canonical_revision: Arc<str>,
    pub cluster: Arc<str>,
    /// The configured identity, `spiffe://trust-domain/ns/namespace/sa/account`.
    pub principal: Arc<str>,
    pub region: Arc<str>,
    pub zone: Arc<str>,
}

/// What metrics and logs say of the service that was addressed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct ServiceLabels {
    pub hostname: Arc<str>,
    pub name: Arc<str>,
    pub namespace: Arc<str>,
}

static UNKNOWN_PEER: LazyLock<Arc<PeerLabels>> = LazyLock::new(Arc::default);
static UNKNOWN_SERVICE: LazyLock<Arc<ServiceLabels>> = LazyLock::new(Arc::default);

impl PeerLabels {
    /// The one shared set of empty labels.
    #[must_use]
    pub fn unknown() -> Arc<Self> {
        Arc::clone(&UNKNOWN_PEER)
    }

    #[must_use]
    pub fn is_known(&self) -> bool {
        *self != **UNKNOWN_PEER
    }

    /// Whether they may be what a peer says of itself: that never has a name, and a workload of the state mostly does.
    #[must_use]
    pub fn is_claimed(&self) -> bool {
        self.name.is_empty() && self.is_known()
    }
}

impl ServiceLabels {
    /// The one shared set of empty labels.
    #[must_use]
    pub fn unknown() -> Arc<Self> {
        Arc::clone(&UNKNOWN_SERVICE)
    }
}
