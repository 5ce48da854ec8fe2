//! One entry of `workloads`.

use std::net::IpAddr;
use std::sync::Arc;

use super::leaf;
use super::names::Names;
use crate::config::yaml::{Cursor, Fields, boolean, choice, integer};
use crate::mesh::Live;
use crate::mesh::workload::{
    ApplicationProtocol, ApplicationTunnel, Health, Locality, NetworkMode, Protocol, Workload,
};
use crate::telemetry::PeerLabels;

const KEYS: [&str; 25] = [
    "uid",
    "name",
    "namespace",
    "serviceAccount",
    "trustDomain",
    "network",
    "workloadIps",
    "hostname",
    "node",
    "clusterId",
    "protocol",
    "networkMode",
    "waypoint",
    "networkGateway",
    "nativeTunnel",
    "applicationTunnel",
    "status",
    "locality",
    "capacity",
    "services",
    "authorizationPolicies",
    "workloadName",
    "workloadType",
    "canonicalName",
    "canonicalRevision",
];

/// What xDS says when nothing is said.
const TRUST_DOMAIN: &str = "cluster.local";
const SERVICE_ACCOUNT: &str = "default";

/// `None` when it is not a map. Whatever is wrong with a key is reported and stood in for, so that the rest is read too.
pub(super) fn read(cursor: &Cursor<'_>, names: &Names) -> Option<Workload> {
    let fields = cursor.fields(&KEYS)?;
    let text = |key| fields.optional(key, leaf::name(names)).unwrap_or_else(|| names.share(""));
    let or = |key, default| match fields.optional(key, leaf::name(names)) {
        Some(name) if !name.is_empty() => name,
        _ => names.share(default),
    };
    let namespace = fields.required("namespace", leaf::filled(names)).unwrap_or_default();
    let ips = addresses(&fields).unwrap_or_default();
    let name = text("name");
    let uid = match fields.optional("uid", leaf::name(names)) {
        Some(uid) if !uid.is_empty() => uid,
        _ => derived_uid(&namespace, &name, &ips).into(),
    };
    let services =
        fields.get("services").and_then(|services| leaf::map(&services, leaf::service_key(names), leaf::ports));
    let policies =
        fields.get("authorizationPolicies").and_then(|list| leaf::list(&list, |item| item.read(leaf::filled(names))));
    let gateway = |key| fields.get(key).and_then(|cursor| leaf::gateway(&cursor, names));
    Some(labelled(
        names,
        Workload {
            uid,
            name,
            namespace,
            service_account: or("serviceAccount", SERVICE_ACCOUNT),
            trust_domain: or("trustDomain", TRUST_DOMAIN),
            network: text("network"),
            ips,
            hostname: text("hostname"),
            node: text("node"),
            cluster_id: text("clusterId"),
            protocol: fields.or(
                "protocol",
                choice(&[("TCP", Protocol::Tcp), ("HBONE", Protocol::Hbone)]),
                Protocol::Tcp,
            ),
            network_mode: fields.or(
                "networkMode",
                choice(&[("Standard", NetworkMode::Standard), ("HostNetwork", NetworkMode::HostNetwork)]),
                NetworkMode::Standard,
            ),
            waypoint: gateway("waypoint"),
            network_gateway: gateway("networkGateway"),
            native_tunnel: fields.or("nativeTunnel", boolean, false),
            application_tunnel: fields.get("applicationTunnel").and_then(|cursor| application_tunnel(&cursor)),
            status: fields.or("status", choice(&leaf::STATUS), Health::Healthy),
            locality: fields.get("locality").and_then(|cursor| locality(&cursor, names)).unwrap_or_default(),
            capacity: fields.or("capacity", integer("a weight, 0 to 4294967295"), 1),
            services: services.map(|services| names.memberships(services)).unwrap_or_default(),
            authorization_policies: policies.map(|keys| names.list(keys)).unwrap_or_default(),
            workload_name: text("workloadName"),
            workload_type: text("workloadType"),
            canonical_name: text("canonicalName"),
            canonical_revision: text("canonicalRevision"),
            labels: Arc::default(),
            live: Live::default(),
            identity: Arc::default(),
        },
    ))
}

/// Canonical, each once, in the order of the file.
fn addresses(fields: &Fields<'_>) -> Option<Vec<IpAddr>> {
    let Some(list) = fields.get("workloadIps") else {
        fields.report_missing("workloadIps");
        return None;
    };
    let mut ips: Vec<IpAddr> = Vec::new();
    for ip in leaf::list(&list, |item| item.read(leaf::ip))? {
        if !ips.contains(&ip) {
            ips.push(ip);
        }
    }
    Some(ips)
}

/// By name, else by address: the same workload gets the same uid at every reload.
fn derived_uid(namespace: &str, name: &str, ips: &[IpAddr]) -> String {
    match ips {
        [ip, ..] if name.is_empty() => format!("file//{namespace}/{ip}"),
        _ => format!("file//{namespace}/{name}"),
    }
}

fn application_tunnel(cursor: &Cursor<'_>) -> Option<ApplicationTunnel> {
    let fields = leaf::present(cursor, "a map")?.fields(&["protocol", "port"])?;
    let protocols = [("NONE", ApplicationProtocol::None), ("PROXY", ApplicationProtocol::Proxy)];
    let port = fields.optional("port", leaf::port);
    Some(ApplicationTunnel { protocol: fields.required("protocol", choice(&protocols))?, port })
}

fn locality(cursor: &Cursor<'_>, names: &Names) -> Option<Locality> {
    let fields = leaf::present(cursor, "a map")?.fields(&["region", "zone", "subzone"])?;
    let part = |key| fields.optional(key, leaf::name(names)).unwrap_or_else(|| names.share(""));
    Some(Locality { region: part("region"), zone: part("zone"), subzone: part("subzone") })
}

fn labelled(names: &Names, mut workload: Workload) -> Workload {
    let Workload { trust_domain, namespace, service_account, .. } = &workload;
    let principal = names.share(&format!("spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}"));
    workload.identity = names.identity(&principal);
    let of_name = if workload.workload_name.is_empty() { &workload.name } else { &workload.workload_name };
    workload.labels = Arc::new(PeerLabels {
        name: Arc::clone(&workload.name),
        workload: Arc::clone(of_name),
        namespace: Arc::clone(&workload.namespace),
        canonical_service: Arc::clone(&workload.canonical_name),
        canonical_revision: Arc::clone(&workload.canonical_revision),
        cluster: Arc::clone(&workload.cluster_id),
        principal,
        region: Arc::clone(&workload.locality.region),
        zone: Arc::clone(&workload.locality.zone),
    });
    workload
}
