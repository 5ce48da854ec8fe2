//! One entry of `services`.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;

use ipnet::IpNet;

use super::leaf;
use super::names::Names;
use crate::config::yaml::{Checked, Cursor, Fields, Mismatch, Node, boolean, choice, integer, range};
use crate::mesh::service::{
    HealthPolicy, IpFamilies, LoadBalancer, LoadBalancerMode, MaxConnections, ProxyProtocol, RoutingScope, Service,
    ServiceKey, Visibility,
};
use crate::mesh::spec::{ExplicitEndpoint, ServiceSpec};
use crate::mesh::workload::{GatewayAddress, Health};
use crate::telemetry::ServiceLabels;

const KEYS: [&str; 16] = [
    "name",
    "namespace",
    "hostname",
    "vips",
    "cidrVips",
    "ports",
    "endpoints",
    "subjectAltNames",
    "waypoint",
    "weightedWaypoints",
    "loadBalancer",
    "ipFamilies",
    "canonical",
    "visibility",
    "proxyProtocol",
    "maxConnections",
];

pub(super) const SCOPES: [(&str, RoutingScope); 6] = [
    ("Region", RoutingScope::Region),
    ("Zone", RoutingScope::Zone),
    ("Subzone", RoutingScope::Subzone),
    ("Node", RoutingScope::Node),
    ("Cluster", RoutingScope::Cluster),
    ("Network", RoutingScope::Network),
];

pub(super) const MODES: [(&str, LoadBalancerMode); 4] = [
    ("Standard", LoadBalancerMode::Standard),
    ("Strict", LoadBalancerMode::Strict),
    ("Failover", LoadBalancerMode::Failover),
    ("Passthrough", LoadBalancerMode::Passthrough),
];

pub(super) const HEALTH_POLICIES: [(&str, HealthPolicy); 2] =
    [("OnlyHealthy", HealthPolicy::OnlyHealthy), ("AllowAll", HealthPolicy::AllowAll)];

pub(super) const FAMILIES: [(&str, IpFamilies); 3] =
    [("Dual", IpFamilies::Dual), ("IPv4", IpFamilies::Ipv4), ("IPv6", IpFamilies::Ipv6)];

pub(super) const VISIBILITIES: [(&str, Visibility); 2] =
    [("Public", Visibility::Public), ("Namespace", Visibility::Namespace)];

pub(super) const PROXY_PROTOCOLS: [(&str, ProxyProtocol); 2] = [("v1", ProxyProtocol::V1), ("v2", ProxyProtocol::V2)];

/// `None` when it is not a map. Whatever is wrong with a key is reported and stood in for, so that the rest is read too.
pub(super) fn read(cursor: &Cursor<'_>, names: &Names) -> Option<ServiceSpec> {
    let fields = cursor.fields(&KEYS)?;
    let required_name = |key| fields.required(key, leaf::filled(names)).unwrap_or_default();
    let (name, namespace, hostname) = (required_name("name"), required_name("namespace"), required_name("hostname"));
    let vips = required(&fields, "vips", |list| leaf::list(list, |item| item.read(leaf::network_ip(names))));
    let ports = required(&fields, "ports", leaf::ports);
    let endpoints = fields.get("endpoints").and_then(|map| endpoints(&map, names));
    let cidr_vips = fields.get("cidrVips").and_then(|list| leaf::list(&list, |item| cidr_vip(item, names)));
    let weighted = fields.get("weightedWaypoints").and_then(|list| leaf::list(&list, |item| weighted(item, names)));
    let subject_alt_names =
        fields.get("subjectAltNames").and_then(|list| leaf::list(&list, |item| item.read(leaf::filled(names))));
    let service = Service {
        vips: vips.unwrap_or_default(),
        cidr_vips: cidr_vips.unwrap_or_default(),
        ports: ports.unwrap_or_default(),
        subject_alt_names: subject_alt_names.unwrap_or_default(),
        waypoint: fields.get("waypoint").and_then(|cursor| leaf::gateway(&cursor, names)),
        weighted_waypoints: weighted.unwrap_or_default(),
        load_balancer: fields.get("loadBalancer").and_then(|cursor| load_balancer(&cursor)),
        ip_families: fields.optional("ipFamilies", choice(&FAMILIES)),
        canonical: fields.or("canonical", boolean, false),
        visibility: fields.or("visibility", choice(&VISIBILITIES), Visibility::Public),
        proxy_protocol: fields.optional("proxyProtocol", choice(&PROXY_PROTOCOLS)),
        max_connections: fields.get("maxConnections").and_then(|it| max_connections(&it)).unwrap_or_default(),
        labels: Arc::new(ServiceLabels {
            hostname: Arc::clone(&hostname),
            name: Arc::clone(&name),
            namespace: Arc::clone(&namespace),
        }),
        key: ServiceKey { namespace, hostname },
        name,
    };
    Some(ServiceSpec { service: Arc::new(service), endpoints: endpoints.unwrap_or_default() })
}

fn required<T>(fields: &Fields<'_>, key: &'static str, read: impl Fn(&Cursor<'_>) -> Option<T>) -> Option<T> {
    match fields.get(key) {
        Some(cursor) => read(&cursor),
        None => {
            fields.report_missing(key);
            None
        }
    }
}

/// Keyed by workload uid; sorted by it.
fn endpoints(cursor: &Cursor<'_>, names: &Names) -> Option<Vec<ExplicitEndpoint>> {
    let mut by_uid = BTreeMap::new();
    for (key, value) in leaf::present(cursor, "a map")?.entries()? {
        let key = leaf::filled(names)(key).map_err(|mismatch| value.report_as_key(mismatch)).ok();
        let Some(fields) = leaf::present(&value, "a map").and_then(|it| it.fields(&["workloadUid", "port", "status"]))
        else {
            continue;
        };
        let uid = fields.optional("workloadUid", leaf::filled(names)).or(key);
        let ports = fields.get("port").and_then(|ports| leaf::ports(&ports)).unwrap_or_default();
        let status = fields.or("status", choice(&leaf::STATUS), Health::Healthy);
        let Some(workload_uid) = uid else { continue };
        let endpoint = ExplicitEndpoint { workload_uid: Arc::clone(&workload_uid), ports, status };
        if by_uid.insert(Arc::clone(&workload_uid), endpoint).is_some() {
            value.report_message("a second endpoint of the same workload", format!("{workload_uid:?}"), None);
        }
    }
    Some(by_uid.into_values().collect())
}

fn cidr_vip(cursor: &Cursor<'_>, names: &Names) -> Option<(Arc<str>, IpNet)> {
    let fields = leaf::present(cursor, "a map")?.fields(&["network", "cidr"])?;
    let network = fields.optional("network", leaf::name(names)).unwrap_or_else(|| names.share(""));
    Some((network, fields.required("cidr", range)?))
}

fn weighted(cursor: &Cursor<'_>, names: &Names) -> Option<(GatewayAddress, u32)> {
    let fields = leaf::present(cursor, "a map")?.fields(&["destination", "weight"])?;
    let weight = fields.required("weight", integer("a weight, 0 to 4294967295"));
    let destination = required(&fields, "destination", |cursor| leaf::gateway(cursor, names));
    Some((destination?, weight?))
}

fn max_connections(cursor: &Cursor<'_>) -> Option<MaxConnections> {
    let fields = leaf::present(cursor, "a map")?.fields(&["perEndpoint", "perService"])?;
    let limit = |key| fields.optional(key, at_least_one);
    Some(MaxConnections { per_endpoint: limit("perEndpoint"), per_service: limit("perService") })
}

fn at_least_one(node: &Node) -> Checked<NonZeroU32> {
    const EXPECTED: &str = "a number of connections, at least 1";
    NonZeroU32::new(integer(EXPECTED)(node)?).ok_or_else(|| Mismatch::new(node, EXPECTED))
}

fn load_balancer(cursor: &Cursor<'_>) -> Option<LoadBalancer> {
    let fields = leaf::present(cursor, "a map")?.fields(&["routingPreferences", "mode", "healthPolicy"])?;
    let preferences =
        fields.get("routingPreferences").and_then(|list| leaf::list(&list, |item| item.read(choice(&SCOPES))));
    Some(LoadBalancer {
        routing_preferences: preferences.unwrap_or_default(),
        health_policy: fields.or("healthPolicy", choice(&HEALTH_POLICIES), HealthPolicy::OnlyHealthy),
        mode: fields.required("mode", choice(&MODES))?,
    })
}
