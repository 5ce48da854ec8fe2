//! A service: a name and virtual addresses in front of endpoints. Immutable, shared by `Arc`.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, OnceLock};

use imbl::Vector;
use ipnet::IpNet;

use crate::mesh::workload::{GatewayAddress, Health, PortMap, Workload};
use crate::mesh::{Live, Plan};
use crate::telemetry::ServiceLabels;

/// `namespace/hostname`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    pub namespace: Arc<str>,
    pub hostname: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    pub key: ServiceKey,
    pub name: Arc<str>,
    /// (network, canonical address).
    pub vips: Vec<(Arc<str>, IpAddr)>,
    /// (network, range).
    pub cidr_vips: Vec<(Arc<str>, IpNet)>,
    pub ports: PortMap,
    pub subject_alt_names: Vec<Arc<str>>,
    pub waypoint: Option<GatewayAddress>,
    /// (waypoint, weight).
    pub weighted_waypoints: Vec<(GatewayAddress, u32)>,
    pub load_balancer: Option<LoadBalancer>,
    pub ip_families: Option<IpFamilies>,
    pub canonical: bool,
    pub visibility: Visibility,
    /// The header that its endpoints expect before all else; not in ztunnel's format.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// Not in ztunnel's format either.
    pub max_connections: MaxConnections,
    /// Computed when the service enters the state.
    pub labels: Arc<ServiceLabels>,
}

/// A service together with its endpoints, as the data path reads it.
#[derive(Debug, Clone)]
pub struct ServiceState {
    pub service: Arc<Service>,
    /// Sorted by workload uid; persistent, so a change to one endpoint shares the rest.
    pub endpoints: Vector<Arc<Endpoint>>,
    /// Connections to all endpoints together; the same for every version of the service.
    pub live: Live,
    plan: OnceLock<Arc<Plan>>,
}

impl ServiceState {
    /// The next version of what was `before`. Who has been drawn from will be again, so its plan is made here and now;
    /// for all others when they are needed.
    #[must_use]
    pub fn new(service: Arc<Service>, endpoints: Vector<Arc<Endpoint>>, before: Option<&Self>) -> Self {
        let live = before.map(|before| before.live.clone()).unwrap_or_default();
        let state = Self { service, endpoints, live, plan: OnceLock::new() };
        if before.is_some_and(|before| before.plan.get().is_some()) {
            let _made = state.plan();
        }
        state
    }

    /// Who may be chosen.
    #[must_use]
    pub fn plan(&self) -> &Arc<Plan> {
        self.plan.get_or_init(|| Arc::new(Plan::new(self)))
    }

    /// The endpoint that is the workload of that uid.
    #[must_use]
    pub fn endpoint(&self, uid: &str) -> Option<&Arc<Endpoint>> {
        let at = self.endpoints.binary_search_by(|endpoint| (*endpoint.workload.uid).cmp(uid)).ok()?;
        self.endpoints.get(at)
    }
}

/// One workload behind a service.
#[derive(Debug, Clone)]
pub struct Endpoint {
    pub workload: Arc<Workload>,
    /// The endpoint's own mapping of service ports; looked at before the service's.
    pub ports: PortMap,
    pub status: Health,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadBalancer {
    pub routing_preferences: Vec<RoutingScope>,
    pub mode: LoadBalancerMode,
    pub health_policy: HealthPolicy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoutingScope {
    Region,
    Zone,
    Subzone,
    Node,
    Cluster,
    Network,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadBalancerMode {
    Standard,
    Strict,
    Failover,
    /// No choice of an endpoint: the original destination is dialled.
    Passthrough,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HealthPolicy {
    #[default]
    OnlyHealthy,
    AllowAll,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IpFamilies {
    Dual,
    Ipv4,
    Ipv6,
}

/// A version of the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyProtocol {
    V1,
    V2,
}

/// Limits of this service; where it says nothing, the settings do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MaxConnections {
    /// To one endpoint, whichever service it was reached by.
    pub per_endpoint: Option<NonZeroU32>,
    /// To all its endpoints together.
    pub per_service: Option<NonZeroU32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Visibility {
    #[default]
    Public,
    Namespace,
}
