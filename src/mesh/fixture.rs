//! For tests: workloads and services with everything at its default, to be changed by struct update.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::mesh::Live;
use crate::mesh::service::{MaxConnections, Service, ServiceKey, Visibility};
use crate::mesh::spec::ServiceSpec;
use crate::mesh::workload::{Health, Locality, NetworkMode, Protocol, Workload};

pub(super) fn key(namespace: &str, hostname: &str) -> ServiceKey {
    ServiceKey { namespace: namespace.into(), hostname: hostname.into() }
}

pub(super) fn workload(uid: &str) -> Workload {
    Workload {
        uid: uid.into(),
        name: "".into(),
        namespace: "default".into(),
        service_account: "default".into(),
        trust_domain: "cluster.local".into(),
        network: "".into(),
        ips: Vec::new(),
        hostname: "".into(),
        node: "".into(),
        cluster_id: "".into(),
        protocol: Protocol::Tcp,
        network_mode: NetworkMode::Standard,
        waypoint: None,
        network_gateway: None,
        native_tunnel: false,
        application_tunnel: None,
        status: Health::Healthy,
        locality: Locality::default(),
        capacity: 1,
        services: Arc::default(),
        authorization_policies: Arc::default(),
        workload_name: "".into(),
        workload_type: "".into(),
        canonical_name: "".into(),
        canonical_revision: "".into(),
        labels: Arc::default(),
        live: Live::default(),
        identity: Arc::default(),
    }
}

pub(super) fn service(namespace: &str, hostname: &str) -> Service {
    Service {
        key: key(namespace, hostname),
        name: "".into(),
        vips: Vec::new(),
        cidr_vips: Vec::new(),
        ports: BTreeMap::from([(80, 8080)]),
        subject_alt_names: Vec::new(),
        waypoint: None,
        weighted_waypoints: Vec::new(),
        load_balancer: None,
        ip_families: None,
        canonical: false,
        visibility: Visibility::Public,
        proxy_protocol: None,
        max_connections: MaxConnections::default(),
        labels: Arc::default(),
    }
}

pub(super) fn spec(service: Service) -> Arc<ServiceSpec> {
    Arc::new(ServiceSpec { service: Arc::new(service), endpoints: Vec::new() })
}
