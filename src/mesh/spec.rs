//! A service as its source defines it, before the workloads that name it are known to be its endpoints.

use std::sync::Arc;

use crate::mesh::workload::{Health, PortMap};
use crate::mesh::{Service, ServiceKey};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceSpec {
    pub service: Arc<Service>,
    /// Explicit endpoints, sorted by workload uid, one for each workload. They count only while the workload exists, and
    /// yield to a workload that names the service itself.
    pub endpoints: Vec<ExplicitEndpoint>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExplicitEndpoint {
    pub workload_uid: Arc<str>,
    pub ports: PortMap,
    pub status: Health,
}

impl ServiceSpec {
    #[must_use]
    pub fn key(&self) -> &ServiceKey {
        &self.service.key
    }

    pub(super) fn explicit(&self, uid: &str) -> Option<&ExplicitEndpoint> {
        let found = self.endpoints.binary_search_by(|endpoint| (*endpoint.workload_uid).cmp(uid)).ok()?;
        self.endpoints.get(found)
    }
}
