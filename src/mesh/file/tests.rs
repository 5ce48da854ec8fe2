//! The mesh format: what it means, and each wrong value with its place.

mod policies;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU32;

use proptest::prelude::*;

use super::*;
use crate::mesh::fixture;
use crate::mesh::policy::fixture::{any_policy, writable};
use crate::mesh::service::*;
use crate::mesh::spec::ExplicitEndpoint;
use crate::mesh::workload::*;
use crate::mesh::{Change, Live, Snapshot, SnapshotBuilder};

fn parsed(text: &str) -> FileContents {
    match parse(Path::new("mesh.yaml"), text.as_bytes(), &Names::default()) {
        Ok(contents) => contents,
        Err(problems) => panic!("{problems}"),
    }
}

fn refused(text: &str) -> Vec<String> {
    match parse(Path::new("mesh.yaml"), text.as_bytes(), &Names::default()) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.iter().map(ToString::to_string).collect(),
    }
}

fn workload(text: &str) -> Workload {
    Workload::clone(&parsed(&format!("workloads:\n- {text}\n")).workloads[0].1)
}

fn service(text: &str) -> ServiceSpec {
    ServiceSpec::clone(&parsed(&format!("services:\n- {text}\n")).services[0].1)
}

const FULL: &str = r#"
workloads:
- uid: cluster1//Pod/default/local
  name: local
  namespace: default
  serviceAccount: web
  trustDomain: example.org
  network: net1
  workloadIps: ["127.0.0.1", "::ffff:10.0.0.1", "10.0.0.1", "fd00::1"]
  hostname: local.example
  node: node-1
  clusterId: Kubernetes
  protocol: HBONE
  networkMode: HostNetwork
  waypoint: { destination: net1/10.0.0.9, hboneMtlsPort: 15008 }
  networkGateway: { destination: istio-system/gw.example, hboneMtlsPort: 15008 }
  nativeTunnel: true
  applicationTunnel: { protocol: PROXY, port: 15088 }
  status: Terminating
  locality: { region: r, zone: z, subzone: s }
  capacity: 3
  services:
    default/web.example: { 80: 8080, "443": 0 }
  authorizationPolicies: [default/deny]
  workloadName: local-deployment
  workloadType: deployment
  canonicalName: web
  canonicalRevision: "1.10"
services:
- name: web
  namespace: default
  hostname: web.example
  vips: [/10.1.0.1, "net1/::ffff:10.1.0.2", 10.1.0.3]
  cidrVips: [{ network: "", cidr: 10.2.3.4/8 }, { cidr: "::ffff:10.3.0.0/112" }]
  ports: { 80: 8080 }
  endpoints:
    some-key: { workloadUid: other, port: { 80: 81 }, status: Unhealthy }
    plain: {}
  subjectAltNames: [spiffe://example.org/ns/default/sa/web]
  waypoint: { destination: /10.0.0.9, hboneMtlsPort: 15008 }
  weightedWaypoints: [{ destination: { destination: a/b.example, hboneMtlsPort: 15008 }, weight: 9 }]
  loadBalancer: { routingPreferences: [Network, Region], mode: Failover, healthPolicy: AllowAll }
  ipFamilies: IPv4
  canonical: true
  visibility: Namespace
  proxyProtocol: v2
  maxConnections: { perEndpoint: 10, perService: 20 }
policies:
- name: deny
  namespace: default
  scope: WorkloadSelector
  action: Deny
  dryRun: true
  rules:
  - - - namespaces: [!Exact a, { prefix: b }, { Suffix: c }, !Presence []]
        notNamespaces: [!Exact d]
        serviceAccounts: [{ namespace: a, serviceAccount: b }]
        notServiceAccounts: [{ namespace: c, serviceAccount: d }]
        principals: [{ exact: td/ns/a/sa/b }]
        notPrincipals: [!Suffix /x]
        sourceIps: [10.0.0.0/8]
        notSourceIps: [10.1.0.0/16]
        destinationIps: ["fd00::/8"]
        notDestinationIps: ["fd00::1/128"]
        destinationPorts: [80]
        notDestinationPorts: [443]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: cart, namespace: default }
spec: { rules: [{ from: [{ source: { principals: ["*/sa/cart"] } }], to: [{ operation: { ports: ["80"] } }] }] }
"#;

#[test]
fn everything_that_can_be_said_is_understood() {
    let contents = parsed(FULL);
    let it = &contents.workloads[0].1;
    assert_eq!(it.ips, ["127.0.0.1", "10.0.0.1", "fd00::1"].map(|ip| ip.parse::<IpAddr>().unwrap()), "each once");
    assert_eq!(
        (it.protocol, it.network_mode, it.status),
        (Protocol::Hbone, NetworkMode::HostNetwork, Health::Terminating)
    );
    let ip: IpAddr = [10, 0, 0, 9].into();
    let by_address = GatewayDestination::Address { network: "net1".into(), ip };
    assert_eq!(it.waypoint, Some(GatewayAddress { destination: by_address, hbone_mtls_port: 15008 }));
    let by_name = GatewayDestination::Hostname(fixture::key("istio-system", "gw.example"));
    assert_eq!(it.network_gateway, Some(GatewayAddress { destination: by_name, hbone_mtls_port: 15008 }));
    let tunnel = ApplicationTunnel { protocol: ApplicationProtocol::Proxy, port: Some(15088) };
    assert_eq!(it.application_tunnel, Some(tunnel));
    assert_eq!(it.services[&fixture::key("default", "web.example")], BTreeMap::from([(80, 8080), (443, 0)]));
    let labels = &it.labels;
    assert_eq!((&*labels.name, &*labels.workload, &*labels.canonical_service), ("local", "local-deployment", "web"));
    assert_eq!((&*labels.cluster, &*labels.region, &*labels.canonical_revision), ("Kubernetes", "r", "1.10"));
    assert_eq!(&*labels.principal, "spiffe://example.org/ns/default/sa/web");

    let spec = &contents.services[0].1;
    let it = &spec.service;
    let vips: Vec<String> = it.vips.iter().map(|(network, ip)| format!("{network}/{ip}")).collect();
    assert_eq!(vips, ["/10.1.0.1", "net1/10.1.0.2", "/10.1.0.3"]);
    let cidrs: Vec<String> = it.cidr_vips.iter().map(|(_, net)| net.to_string()).collect();
    assert_eq!(cidrs, ["10.0.0.0/8", "10.3.0.0/16"]);
    let uids: Vec<&str> = spec.endpoints.iter().map(|endpoint| &*endpoint.workload_uid).collect();
    assert_eq!(uids, ["other", "plain"]);
    assert_eq!(it.load_balancer.as_ref().unwrap().mode, LoadBalancerMode::Failover);
    assert_eq!((it.ip_families, it.canonical, it.visibility), (Some(IpFamilies::Ipv4), true, Visibility::Namespace));
    assert_eq!((&*it.labels.hostname, &*it.labels.name, &*it.labels.namespace), ("web.example", "web", "default"));
}

#[test]
fn what_is_not_said_has_defaults() {
    let it = workload("{name: a, namespace: ns, workloadIps: []}");
    assert_eq!((&*it.trust_domain, &*it.service_account, &*it.uid), ("cluster.local", "default", "file//ns/a"));
    assert_eq!((it.capacity, it.protocol, it.status), (1, Protocol::Tcp, Health::Healthy));
    assert_eq!((&*it.labels.workload, &*it.labels.principal), ("a", "spiffe://cluster.local/ns/ns/sa/default"));
    let it = workload(r#"{namespace: ns, trustDomain: "", serviceAccount: "", uid: "", workloadIps: [10.0.0.1]}"#);
    assert_eq!((&*it.trust_domain, &*it.service_account, &*it.uid), ("cluster.local", "default", "file//ns/10.0.0.1"));
    let it = service("{name: a, namespace: ns, hostname: h, vips: [], ports: {}}");
    assert_eq!(
        (it.service.visibility, it.service.canonical, it.service.load_balancer.clone()),
        (Visibility::Public, false, None)
    );
}

#[test]
fn names_that_repeat_are_shared() {
    let text = "workloads:\n".to_owned() + &"- {name: a, namespace: ns, workloadIps: [], network: n}\n".repeat(2);
    let contents = parsed(&text);
    let (a, b) = (&contents.workloads[0].1, &contents.workloads[1].1);
    for (a, b) in [(&a.namespace, &b.namespace), (&a.network, &b.network), (&a.labels.principal, &b.labels.principal)] {
        assert!(Arc::ptr_eq(a, b), "{a}");
    }
}

#[test]
fn several_documents_and_json_are_fine() {
    let one = "workloads: [{name: a, namespace: ns, workloadIps: []}]";
    let two =
        r#"{"workloads": [{"name": "b", "namespace": "ns", "workloadIps": ["::1"], "services": {"n/h": {"80": 1}}}]}"#;
    let contents = parsed(&format!("# first\n---\n{one}\n---\n# nothing\n---\n{two}\n"));
    let found: Vec<(&str, String)> =
        contents.workloads.iter().map(|(site, it)| (&*it.name, format!("{site:?}"))).collect();
    assert_eq!(
        found,
        [("a", "Site { document: 0, index: 0 }".to_owned()), ("b", "Site { document: 2, index: 0 }".to_owned()),]
    );
    assert_eq!(parsed(two).workloads.len(), 1);
    assert!(parsed("{}").workloads.is_empty());
}

#[test]
fn everything_that_is_wrong_is_said_at_once() {
    let text = "\
workloads:
- name: 5
  namespace:
  workloadIps: [10.0.0.1, banana]
  protocol: hbone
  capacity: -1
  serviceaccount: web
  services: { web: { 80: 1 }, ns/h: { 0: 1, 70000: x } }
- namespace: ns
  workloadIps:
  waypoint: { destination: nowhere, hboneMtlsPort: 0 }
- just text
-
services:
- name: a
  namespace: ns
  hostname: \"\"
  ports: [80]
  loadBalancer: { mode: standard, routingPreferences: [Regoin] }
  endpoints:
    u: { port: {} }
    v: { workloadUid: u }
policies:
- name: deny
extra: 1
";
    assert_eq!(
        refused(text),
        [
            "mesh.yaml:2:9: workloads[0].name: found 5, expected text\n  hint: put it in quotes: \"5\"",
            "mesh.yaml:3:12: workloads[0].namespace: found nothing, expected text that is not empty",
            "mesh.yaml:4:27: workloads[0].workloadIps[1]: found \"banana\", expected an IP address",
            "mesh.yaml:5:13: workloads[0].protocol: found \"hbone\", expected TCP or HBONE\n  hint: did you mean \"HBONE\"?",
            "mesh.yaml:6:13: workloads[0].capacity: found -1, expected a weight, 0 to 4294967295",
            "mesh.yaml:7:3: workloads[0].serviceaccount: unknown key\n  hint: did you mean \"serviceAccount\"?",
            "mesh.yaml:8:15: workloads[0].services.web: key: found \"web\", expected namespace/hostname",
            "mesh.yaml:8:39: workloads[0].services[\"ns/h\"].0: key: found 0, expected a port, 1 to 65535",
            "mesh.yaml:8:45: workloads[0].services[\"ns/h\"].70000: key: found 70000, expected a port, 1 to 65535",
            "mesh.yaml:8:52: workloads[0].services[\"ns/h\"].70000: found \"x\", expected a port, 0 to 65535 (0: named by the workload)",
            "mesh.yaml:10:14: workloads[1].workloadIps: found nothing, expected a list",
            "mesh.yaml:11:28: workloads[1].waypoint.destination: found \"nowhere\", expected network/address or namespace/hostname",
            "mesh.yaml:11:52: workloads[1].waypoint.hboneMtlsPort: found 0, expected a port, 1 to 65535",
            "mesh.yaml:12:3: workloads[2]: found \"just text\", expected a map",
            "mesh.yaml:13:2: workloads[3]: found nothing, expected a map",
            "mesh.yaml:15:3: services[0].vips: missing key",
            "mesh.yaml:17:13: services[0].hostname: found \"\", expected text that is not empty",
            "mesh.yaml:18:10: services[0].ports: found a list, expected a map",
            "mesh.yaml:19:25: services[0].loadBalancer.mode: found \"standard\", expected Standard, Strict, Failover or Passthrough\n  hint: did you mean \"Standard\"?",
            "mesh.yaml:19:56: services[0].loadBalancer.routingPreferences[0]: found \"Regoin\", expected Region, Zone, Subzone, Node, Cluster or Network\n  hint: did you mean \"Region\"?",
            "mesh.yaml:22:8: services[0].endpoints.v: a second endpoint of the same workload: found \"u\"",
            "mesh.yaml:24:3: policies[0].namespace: missing key",
            "mesh.yaml:24:3: policies[0].scope: missing key",
            "mesh.yaml:24:3: policies[0].action: missing key",
            "mesh.yaml:24:3: policies[0].rules: missing key",
            "mesh.yaml:25:1: extra: unknown key\n  hint: known keys here: workloads, services, policies, schemaVersion, source, hash, appliedAt, rejected",
        ]
    );
}

#[test]
fn a_file_that_says_nothing_or_is_no_text_is_refused() {
    let empty = "mesh.yaml: the file is empty\n  hint: for a state with nothing in it, write {}";
    for text in ["", "\n", "# only this\n", "---\n---\n", "null"] {
        assert_eq!(refused(text), [empty], "{text:?}");
    }
    assert_eq!(
        refused("workloads: [{namespace: a, workloadIps: [], name: }]"),
        ["mesh.yaml:1:49: workloads[0].name: found nothing, expected text\n  hint: leave the key out, or write \"\""]
    );
    assert_eq!(refused("workloads:\n"), ["mesh.yaml:1:10: workloads: found nothing, expected a list"]);
    let problems = parse(Path::new("m"), b"{}\n#\n# \xff", &Names::default()).unwrap_err();
    assert_eq!(problems.to_string(), "m:3:3: not UTF-8 text");
}

// ---- round trip ----

/// With all that `/mesh` says besides.
#[test]
fn what_the_admin_port_shows_is_input() {
    let before = snapshot(&parsed(FULL));
    let document = || {
        let rejected = serde_json::json!({"at": "now", "problems": [{"origin": "a.yaml"}]});
        before.document().about("source", vec!["a.yaml"]).about("hash", "00").about("rejected", rejected)
    };
    let json = serde_json::to_string(&document().about("appliedAt", serde_json::Value::Null)).unwrap();
    assert_eq!(snapshot(&parsed(&json)).to_document(), before.to_document());
    assert_eq!(
        refused(&json.replacen("schemaVersion\":1", "schemaVersion\":2", 1)),
        ["mesh.yaml:1:18: schemaVersion: found 2, expected 1"]
    );
}

fn any_name() -> impl Strategy<Value = Arc<str>> {
    prop_oneof![
        Just("".into()),
        "[a-z][a-z0-9.-]{0,6}".prop_map(Arc::from),
        prop_oneof![Just("true"), Just("1.10"), Just("~"), Just("- x: #"), Just("\u{e9}\"\n"), Just("0x10")]
            .prop_map(Arc::from)
    ]
}

fn filled_name() -> impl Strategy<Value = Arc<str>> {
    any_name().prop_filter("not empty", |name| !name.is_empty())
}

fn any_ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)]
        .prop_map(|ip| ip.to_canonical())
}

fn any_key() -> impl Strategy<Value = ServiceKey> {
    ("[a-z]{1,3}", "[a-z.]{1,6}").prop_map(|(namespace, hostname)| fixture::key(&namespace, &hostname))
}

fn any_gateway() -> impl Strategy<Value = GatewayAddress> {
    let by_address =
        ("[a-z]{0,3}", any_ip()).prop_map(|(network, ip)| GatewayDestination::Address { network: network.into(), ip });
    let destination = prop_oneof![by_address, any_key().prop_map(GatewayDestination::Hostname)];
    (destination, 1..=u16::MAX)
        .prop_map(|(destination, hbone_mtls_port)| GatewayAddress { destination, hbone_mtls_port })
}

fn any_ports() -> impl Strategy<Value = PortMap> {
    prop::collection::btree_map(1..=u16::MAX, any::<u16>(), 0..3)
}

fn any_health() -> impl Strategy<Value = Health> {
    prop_oneof![Just(Health::Healthy), Just(Health::Unhealthy), Just(Health::Terminating)]
}

fn any_workload() -> impl Strategy<Value = Workload> {
    let names = (filled_name(), any_name(), filled_name(), filled_name(), filled_name(), any_name(), any_name());
    let more = (any_name(), any_name(), any_name(), any_name(), any_name(), any_name());
    let gateways = (prop::option::of(any_gateway()), prop::option::of(any_gateway()));
    let places =
        (prop::collection::btree_set(any_ip(), 0..3), prop::collection::btree_map(any_key(), any_ports(), 0..3));
    let tunnel = prop::option::of((any::<bool>(), prop::option::of(1..=u16::MAX)));
    let kinds = (any::<bool>(), any::<bool>(), any::<bool>(), any_health(), any::<u32>(), tunnel);
    (names, more, gateways, places, kinds).prop_map(|(names, more, gateways, (ips, services), kinds)| Workload {
        uid: names.0,
        name: names.1,
        namespace: names.2,
        service_account: names.3,
        trust_domain: names.4,
        network: names.5,
        ips: ips.into_iter().collect(),
        hostname: names.6,
        node: more.0.clone(),
        cluster_id: more.1.clone(),
        protocol: if kinds.0 { Protocol::Hbone } else { Protocol::Tcp },
        network_mode: if kinds.1 { NetworkMode::HostNetwork } else { NetworkMode::Standard },
        waypoint: gateways.0,
        network_gateway: gateways.1,
        native_tunnel: kinds.2,
        application_tunnel: kinds.5.map(|(proxy, port)| ApplicationTunnel {
            protocol: if proxy { ApplicationProtocol::Proxy } else { ApplicationProtocol::None },
            port,
        }),
        status: kinds.3,
        locality: Locality { region: more.2.clone(), zone: more.3, subzone: "".into() },
        capacity: kinds.4,
        services: Arc::new(services),
        authorization_policies: Arc::new(["ns/policy".into()]),
        workload_name: more.4,
        workload_type: more.2,
        canonical_name: more.1,
        canonical_revision: more.5,
        labels: Arc::default(),
        live: Live::default(),
        identity: Arc::default(),
    })
}

fn any_service() -> impl Strategy<Value = ServiceSpec> {
    let vips = prop::collection::vec(("[a-z]{0,2}".prop_map(Arc::from), any_ip()), 0..3);
    let cidrs = prop::collection::vec(("[a-z]{0,2}".prop_map(Arc::from), any_ip(), 0..=32_u8), 0..3);
    let endpoint = (any_ports(), any_health());
    let endpoints = prop::collection::btree_map(filled_name(), endpoint, 0..3);
    let kinds = (0..3_usize, any::<bool>(), any::<bool>(), 0..4_usize, any::<bool>());
    let gateways = (prop::option::of(any_gateway()), prop::collection::vec((any_gateway(), any::<u32>()), 0..2));
    (any_key(), filled_name(), vips, cidrs, any_ports(), endpoints, kinds, gateways).prop_map(
        |(key, name, vips, cidrs, ports, endpoints, kinds, (waypoint, weighted_waypoints))| {
            let net = |ip, length| ipnet::IpNet::new(ip, length).unwrap().trunc();
            let load_balancer = service::MODES.get(kinds.3).map(|(_, mode)| LoadBalancer {
                routing_preferences: vec![RoutingScope::Network, RoutingScope::Node],
                mode: *mode,
                health_policy: if kinds.4 { HealthPolicy::AllowAll } else { HealthPolicy::OnlyHealthy },
            });
            let service = Service {
                key,
                name,
                vips,
                cidr_vips: cidrs.into_iter().map(|(network, ip, length)| (network, net(ip, length))).collect(),
                ports,
                subject_alt_names: vec!["spiffe://a/ns/b/sa/c".into()],
                waypoint,
                weighted_waypoints,
                load_balancer: load_balancer.filter(|_| kinds.1),
                ip_families: service::FAMILIES.get(kinds.0).map(|(_, families)| *families).filter(|_| kinds.2),
                canonical: kinds.1,
                visibility: if kinds.2 { Visibility::Public } else { Visibility::Namespace },
                proxy_protocol: service::PROXY_PROTOCOLS.get(kinds.0).map(|(_, version)| *version),
                max_connections: MaxConnections {
                    per_endpoint: NonZeroU32::new(u32::from(kinds.1)),
                    per_service: NonZeroU32::new(u32::try_from(kinds.0).unwrap_or_default()),
                },
                labels: Arc::default(),
            };
            let endpoint = |(workload_uid, (ports, status))| ExplicitEndpoint { workload_uid, ports, status };
            ServiceSpec { service: Arc::new(service), endpoints: endpoints.into_iter().map(endpoint).collect() }
        },
    )
}

fn snapshot(contents: &FileContents) -> Snapshot {
    let mut builder = SnapshotBuilder::new(&Snapshot::default());
    contents.workloads.iter().for_each(|(_, it)| builder.apply(Change::PutWorkload(Arc::clone(it))));
    contents.services.iter().for_each(|(_, it)| builder.apply(Change::PutService(Arc::clone(it))));
    contents.policies.iter().for_each(|(_, it)| builder.apply(Change::PutPolicy(Arc::clone(it))));
    builder.finish()
}

proptest! {
    /// The dump of a state, read again, is that state; as JSON and as YAML.
    #[test]
    fn a_dump_is_input(
        workload in any_workload(), spec in any_service(), policy in any_policy().prop_map(writable)
    ) {
        let site = Site::new(0, 0);
        let before = FileContents {
            workloads: vec![(site, Arc::new(workload))],
            services: vec![(site, Arc::new(spec))],
            policies: vec![(site, Arc::new(policy))],
        };
        let json = snapshot(&before).to_document();
        for text in [json.to_string(), serde_yaml::to_string(&json).unwrap()] {
            let after = parsed(&text);
            let (old, new) = (&before.workloads[0].1, &after.workloads[0].1);
            let (labels, identity) = (Arc::clone(&new.labels), Arc::clone(&new.identity));
            prop_assert_eq!(&Workload { labels, identity, ..Workload::clone(old) }, &**new);
            let (old, new) = (&before.services[0].1, &after.services[0].1);
            let labels = Arc::clone(&new.service.labels);
            prop_assert_eq!(&Service { labels, ..Service::clone(&old.service) }, &*new.service);
            prop_assert_eq!(&old.endpoints, &new.endpoints);
            prop_assert_eq!(&before.policies[0].1, &after.policies[0].1);
            prop_assert_eq!(snapshot(&after).to_document(), json.clone());
        }
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        drop(parse(Path::new("m"), &bytes, &Names::default()));
    }

    /// Small damage anywhere in a good file.
    #[test]
    fn no_damage_panics(at in 0..FULL.len(), cut in 0..40_usize, put in prop::collection::vec(any::<u8>(), 0..4)) {
        let mut bytes = FULL.as_bytes().to_vec();
        let end = (at + cut).min(bytes.len());
        bytes.splice(at..end, put);
        drop(parse(Path::new("m"), &bytes, &Names::default()));
    }
}
