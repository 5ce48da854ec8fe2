//! The state in the format it is read in, so that a dump is valid input. Serialized piece by piece: no second copy of
//! the state is made. What has its default is left out.

mod policy;

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use serde::ser::{SerializeMap as _, SerializeSeq as _};
use serde::{Serialize, Serializer};

use super::{leaf, service};
use crate::mesh::service::{HealthPolicy, LoadBalancer, MaxConnections, Service, Visibility};
use crate::mesh::workload::{ApplicationProtocol, GatewayAddress, Health, Locality, NetworkMode, PortMap, Protocol};
use crate::mesh::{ServiceSpec, Snapshot, Workload};

/// Serializes as a mesh file; resources are sorted by their keys.
#[derive(Debug, Clone)]
pub struct Document<'a> {
    snapshot: &'a Snapshot,
    about: BTreeMap<&'static str, serde_json::Value>,
}

impl Snapshot {
    /// To be written without building a tree first.
    #[must_use]
    pub fn document(&self) -> Document<'_> {
        Document { snapshot: self, about: BTreeMap::new() }
    }

    /// As a tree; for states of a size that people look at.
    #[must_use]
    pub fn to_document(&self) -> serde_json::Value {
        // Every key is text and every number finite, so serialization cannot fail.
        serde_json::to_value(self.document()).unwrap_or_default()
    }
}

impl Document<'_> {
    /// Says something about the state besides; the reader reads over `source`, `hash`, `appliedAt` and `rejected`.
    #[must_use]
    pub fn about(mut self, key: &'static str, value: impl Into<serde_json::Value>) -> Self {
        self.about.insert(key, value.into());
        self
    }
}

impl Serialize for Document<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut root = serializer.serialize_map(Some(self.about.len() + 4))?;
        root.serialize_entry("schemaVersion", &leaf::SCHEMA_VERSION)?;
        self.about.iter().try_for_each(|(key, value)| root.serialize_entry(key, value))?;
        root.serialize_entry("workloads", &Workloads(self.snapshot))?;
        root.serialize_entry("services", &Services(self.snapshot))?;
        root.serialize_entry("policies", &policy::Policies(self.snapshot))?;
        root.end()
    }
}

struct Workloads<'a>(&'a Snapshot);

impl Serialize for Workloads<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut sorted: Vec<&Workload> = self.0.workloads().map(AsRef::as_ref).collect();
        sorted.sort_unstable_by(|a, b| a.uid.cmp(&b.uid));
        let mut list = serializer.serialize_seq(Some(sorted.len()))?;
        sorted.into_iter().try_for_each(|workload| list.serialize_element(&WorkloadOut::new(workload)))?;
        list.end()
    }
}

struct Services<'a>(&'a Snapshot);

impl Serialize for Services<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut sorted: Vec<&ServiceSpec> = self.0.specs().map(AsRef::as_ref).collect();
        sorted.sort_unstable_by(|a, b| a.key().cmp(b.key()));
        let mut list = serializer.serialize_seq(Some(sorted.len()))?;
        sorted.into_iter().try_for_each(|spec| list.serialize_element(&ServiceOut::new(spec)))?;
        list.end()
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WorkloadOut<'a> {
    uid: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    namespace: &'a str,
    service_account: &'a str,
    trust_domain: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    network: &'a str,
    workload_ips: Vec<String>,
    #[serde(skip_serializing_if = "str::is_empty")]
    hostname: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    node: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    cluster_id: &'a str,
    protocol: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    network_mode: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    waypoint: Option<GatewayOut>,
    #[serde(skip_serializing_if = "Option::is_none")]
    network_gateway: Option<GatewayOut>,
    #[serde(skip_serializing_if = "is_false")]
    native_tunnel: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    application_tunnel: Option<TunnelOut>,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    locality: Option<LocalityOut<'a>>,
    capacity: u32,
    services: BTreeMap<String, &'a PortMap>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    authorization_policies: Vec<&'a str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    workload_name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    workload_type: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    canonical_name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    canonical_revision: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ServiceOut<'a> {
    name: &'a str,
    namespace: &'a str,
    hostname: &'a str,
    vips: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cidr_vips: Vec<CidrOut<'a>>,
    ports: &'a PortMap,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    endpoints: BTreeMap<&'a str, EndpointOut<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    subject_alt_names: Vec<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    waypoint: Option<GatewayOut>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    weighted_waypoints: Vec<WeightedOut>,
    #[serde(skip_serializing_if = "Option::is_none")]
    load_balancer: Option<LoadBalancerOut>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip_families: Option<&'static str>,
    #[serde(skip_serializing_if = "is_false")]
    canonical: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    visibility: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    proxy_protocol: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_connections: Option<MaxConnectionsOut>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct GatewayOut {
    destination: String,
    hbone_mtls_port: u16,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MaxConnectionsOut {
    #[serde(skip_serializing_if = "Option::is_none")]
    per_endpoint: Option<NonZeroU32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    per_service: Option<NonZeroU32>,
}

#[derive(Serialize)]
struct TunnelOut {
    protocol: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
}

#[derive(Serialize)]
struct LocalityOut<'a> {
    region: &'a str,
    zone: &'a str,
    subzone: &'a str,
}

#[derive(Serialize)]
struct CidrOut<'a> {
    network: &'a str,
    cidr: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EndpointOut<'a> {
    workload_uid: &'a str,
    port: &'a PortMap,
    status: &'static str,
}

#[derive(Serialize)]
struct WeightedOut {
    destination: GatewayOut,
    weight: u32,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LoadBalancerOut {
    routing_preferences: Vec<&'static str>,
    mode: &'static str,
    health_policy: &'static str,
}

impl<'a> WorkloadOut<'a> {
    fn new(it: &'a Workload) -> Self {
        Self {
            uid: &it.uid,
            name: &it.name,
            namespace: &it.namespace,
            service_account: &it.service_account,
            trust_domain: &it.trust_domain,
            network: &it.network,
            workload_ips: it.ips.iter().map(ToString::to_string).collect(),
            hostname: &it.hostname,
            node: &it.node,
            cluster_id: &it.cluster_id,
            protocol: match it.protocol {
                Protocol::Tcp => "TCP",
                Protocol::Hbone => "HBONE",
            },
            network_mode: (it.network_mode == NetworkMode::HostNetwork).then_some("HostNetwork"),
            waypoint: it.waypoint.as_ref().map(GatewayOut::new),
            network_gateway: it.network_gateway.as_ref().map(GatewayOut::new),
            native_tunnel: it.native_tunnel,
            application_tunnel: it.application_tunnel.map(|tunnel| TunnelOut {
                protocol: match tunnel.protocol {
                    ApplicationProtocol::None => "NONE",
                    ApplicationProtocol::Proxy => "PROXY",
                },
                port: tunnel.port,
            }),
            status: status(it.status),
            locality: LocalityOut::new(&it.locality),
            capacity: it.capacity,
            services: it.services.iter().map(|(key, ports)| (key.to_string(), ports)).collect(),
            authorization_policies: it.authorization_policies.iter().map(AsRef::as_ref).collect(),
            workload_name: &it.workload_name,
            workload_type: &it.workload_type,
            canonical_name: &it.canonical_name,
            canonical_revision: &it.canonical_revision,
        }
    }
}

impl<'a> ServiceOut<'a> {
    fn new(spec: &'a ServiceSpec) -> Self {
        let it: &Service = &spec.service;
        let endpoint = |it: &'a crate::mesh::ExplicitEndpoint| EndpointOut {
            workload_uid: &it.workload_uid,
            port: &it.ports,
            status: status(it.status),
        };
        let weighted = |(gateway, weight): &(GatewayAddress, u32)| WeightedOut {
            destination: GatewayOut::new(gateway),
            weight: *weight,
        };
        Self {
            name: &it.name,
            namespace: &it.key.namespace,
            hostname: &it.key.hostname,
            vips: it.vips.iter().map(|(network, ip)| format!("{network}/{ip}")).collect(),
            cidr_vips: it.cidr_vips.iter().map(|(network, net)| CidrOut { network, cidr: net.to_string() }).collect(),
            ports: &it.ports,
            endpoints: spec.endpoints.iter().map(|it| (&*it.workload_uid, endpoint(it))).collect(),
            subject_alt_names: it.subject_alt_names.iter().map(AsRef::as_ref).collect(),
            waypoint: it.waypoint.as_ref().map(GatewayOut::new),
            weighted_waypoints: it.weighted_waypoints.iter().map(weighted).collect(),
            load_balancer: it.load_balancer.as_ref().map(LoadBalancerOut::new),
            ip_families: it.ip_families.map(|families| word(&service::FAMILIES, families)),
            canonical: it.canonical,
            visibility: (it.visibility != Visibility::Public).then(|| word(&service::VISIBILITIES, it.visibility)),
            proxy_protocol: it.proxy_protocol.map(|version| word(&service::PROXY_PROTOCOLS, version)),
            max_connections: MaxConnectionsOut::new(it.max_connections),
        }
    }
}

impl MaxConnectionsOut {
    fn new(it: MaxConnections) -> Option<Self> {
        let MaxConnections { per_endpoint, per_service } = it;
        (it != MaxConnections::default()).then_some(Self { per_endpoint, per_service })
    }
}

impl GatewayOut {
    fn new(it: &GatewayAddress) -> Self {
        Self { destination: it.destination.to_string(), hbone_mtls_port: it.hbone_mtls_port }
    }
}

impl<'a> LocalityOut<'a> {
    fn new(it: &'a Locality) -> Option<Self> {
        (*it != Locality::default()).then_some(Self { region: &it.region, zone: &it.zone, subzone: &it.subzone })
    }
}

impl LoadBalancerOut {
    fn new(it: &LoadBalancer) -> Self {
        let health_policy: HealthPolicy = it.health_policy;
        Self {
            routing_preferences: it.routing_preferences.iter().map(|scope| word(&service::SCOPES, *scope)).collect(),
            mode: word(&service::MODES, it.mode),
            health_policy: word(&service::HEALTH_POLICIES, health_policy),
        }
    }
}

fn status(health: Health) -> &'static str {
    word(&leaf::STATUS, health)
}

/// The tables that the reader uses, read the other way round.
fn word<T: Copy + PartialEq>(table: &[(&'static str, T)], value: T) -> &'static str {
    table.iter().find(|(_, each)| *each == value).map_or("", |(word, _)| word)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
const fn is_false(value: &bool) -> bool {
    !*value
}
