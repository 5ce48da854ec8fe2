//! A workload: something with an address that sends or receives connections. Immutable, shared by `Arc`.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::identity::SpiffeId;
use crate::mesh::{Live, ServiceKey};
use crate::telemetry::PeerLabels;

/// Service port -> target port. A target of 0 is a named port that each endpoint maps itself.
pub type PortMap = BTreeMap<u16, u16>;

/// Service -> the endpoint's own ports.
pub type Memberships = Arc<BTreeMap<ServiceKey, PortMap>>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    pub uid: Arc<str>,
    pub name: Arc<str>,
    pub namespace: Arc<str>,
    pub service_account: Arc<str>,
    pub trust_domain: Arc<str>,
    pub network: Arc<str>,
    /// Canonical addresses; may be empty when there is a `hostname` or a `network_gateway`.
    pub ips: Vec<IpAddr>,
    pub hostname: Arc<str>,
    pub node: Arc<str>,
    pub cluster_id: Arc<str>,
    pub protocol: Protocol,
    pub network_mode: NetworkMode,
    pub waypoint: Option<GatewayAddress>,
    pub network_gateway: Option<GatewayAddress>,
    pub native_tunnel: bool,
    pub application_tunnel: Option<ApplicationTunnel>,
    pub status: Health,
    pub locality: Locality,
    /// Load-balancing weight; 0 gets no traffic.
    pub capacity: u32,
    /// Which services this workload is an endpoint of, with its own port mapping for each. All pods of a service say the
    /// same here, so it is one map for all of them.
    pub services: Memberships,
    /// Keys (`namespace/name`) of the policies that select this workload.
    pub authorization_policies: Arc<[Arc<str>]>,
    pub workload_name: Arc<str>,
    pub workload_type: Arc<str>,
    pub canonical_name: Arc<str>,
    pub canonical_revision: Arc<str>,
    /// Computed when the workload enters the state.
    pub labels: Arc<PeerLabels>,
    /// The same for every version of the workload.
    pub live: Live,
    /// Its one identity, as the peer of a tunnel; none if its names do not make one. Computed likewise.
    pub identity: Arc<[SpiffeId]>,
}

/// What a workload accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    #[default]
    Tcp,
    Hbone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NetworkMode {
    #[default]
    Standard,
    /// Shares the node's address; not found by address.
    HostNetwork,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Health {
    #[default]
    Healthy,
    Unhealthy,
    /// Gets no new connections.
    Terminating,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Locality {
    pub region: Arc<str>,
    pub zone: Arc<str>,
    pub subzone: Arc<str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApplicationTunnel {
    pub protocol: ApplicationProtocol,
    pub port: Option<u16>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApplicationProtocol {
    None,
    Proxy,
}

/// How to reach a waypoint or an east-west gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayAddress {
    pub destination: GatewayDestination,
    pub hbone_mtls_port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GatewayDestination {
    Address { network: Arc<str>, ip: IpAddr },
    Hostname(ServiceKey),
}

/// As it is written in a file.
impl fmt::Display for GatewayDestination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address { network, ip } => write!(f, "{network}/{ip}"),
            Self::Hostname(key) => key.fmt(f),
        }
    }
}
