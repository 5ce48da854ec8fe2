//! Where a stream may go on to, by tables of the protocol.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::mesh::snapshot_of;

/// The own network is `net`; `server` is an application, `way` a waypoint with the client's own tunnel ended before it
/// ("sandwiched"), `proxy` and `port` workloads with an application tunnel.
const WORLD: &str = r#"
workloads:
- { uid: server, name: server, namespace: shop, network: net, workloadIps: [10.0.0.2, "fd00::2", 169.254.0.9], services: { shop/cart.shop: { 81: 9091, 83: 0 }, shop/both.shop: {} } }
- { uid: way, name: way, namespace: infra, network: net, hostname: way.example, workloadIps: [10.0.0.20, "fd00::20"], services: { infra/way.infra: {} } }
- { uid: proxy, name: proxy, namespace: infra, network: net, workloadIps: [10.0.0.30, "fd00::30"], services: {}, applicationTunnel: { protocol: PROXY, port: 15088 } }
- { uid: bare, name: bare, namespace: infra, network: net, workloadIps: [10.0.0.31], services: {}, applicationTunnel: { protocol: PROXY } }
- { uid: port, name: port, namespace: infra, network: net, workloadIps: [10.0.0.32], services: {}, applicationTunnel: { protocol: NONE, port: 9000 } }
- { uid: loop, name: loop, namespace: infra, network: net, workloadIps: [10.0.0.33], services: {}, applicationTunnel: { protocol: PROXY, port: 15001 } }
- { uid: by-ip, namespace: shop, network: net, workloadIps: [10.0.1.1], services: { shop/unattached.shop: {} }, waypoint: { destination: net/10.0.0.20, hboneMtlsPort: 15008 } }
- { uid: by-vip, namespace: shop, network: net, workloadIps: [10.0.1.2], services: {}, waypoint: { destination: net/10.1.0.20, hboneMtlsPort: 15008 } }
- { uid: by-host, namespace: shop, network: net, workloadIps: [10.0.1.3], services: {}, waypoint: { destination: infra/way.infra, hboneMtlsPort: 15008 } }
- { uid: by-workload-host, namespace: shop, network: net, workloadIps: [10.0.1.4], services: {}, waypoint: { destination: infra/way.example, hboneMtlsPort: 15008 } }
- { uid: by-other-ip, namespace: shop, network: net, workloadIps: [10.0.1.5], services: {}, waypoint: { destination: net/10.0.0.2, hboneMtlsPort: 15008 } }
- { uid: by-foreign-ip, namespace: shop, network: net, workloadIps: [10.0.1.6], services: {}, waypoint: { destination: far/10.0.0.20, hboneMtlsPort: 15008 } }
- { uid: by-unknown, namespace: shop, network: net, workloadIps: [10.0.1.7], services: {}, waypoint: { destination: infra/nobody, hboneMtlsPort: 15008 } }
- { uid: by-foreign-name, namespace: shop, network: net, workloadIps: [10.0.1.8], services: {}, waypoint: { destination: shop/way.example, hboneMtlsPort: 15008 } }
- { uid: by-other-spelling, namespace: shop, network: net, workloadIps: [10.0.1.11], services: {}, waypoint: { destination: infra/Way.Example., hboneMtlsPort: 15008 } }
- { uid: far, namespace: shop, network: far, workloadIps: [10.0.1.9], services: {}, waypoint: { destination: infra/way.infra, hboneMtlsPort: 15008 } }
- { uid: behind-service, namespace: shop, network: net, workloadIps: [10.0.1.10], services: { shop/attached.shop: {} } }
services:
- { name: cart, namespace: shop, hostname: cart.shop, vips: [net/10.1.0.2], ports: { 80: 8080, 81: 8081, 82: 0 } }
- { name: both, namespace: shop, hostname: both.shop, vips: [net/10.1.0.3], ports: { 80: 8080 } }
- name: listed
  namespace: shop
  hostname: listed.shop
  vips: []
  ports: { 90: 7070 }
  endpoints: { server: { workloadUid: server, port: { 91: 7071 }, status: Healthy } }
- { name: way, namespace: infra, hostname: way.infra, vips: [net/10.1.0.20], ports: { 15008: 15008 } }
- { name: attached, namespace: shop, hostname: attached.shop, vips: [net/10.1.0.4], ports: { 80: 8080 }, waypoint: { destination: infra/way.infra, hboneMtlsPort: 15008 } }
- { name: attached-ip, namespace: shop, hostname: attached-ip.shop, vips: [net/10.1.0.5], ports: { 80: 8080 }, waypoint: { destination: net/10.0.0.20, hboneMtlsPort: 15008 } }
- { name: attached-vip, namespace: shop, hostname: attached-vip.shop, vips: [net/10.1.0.6], ports: { 80: 8080 }, waypoint: { destination: net/10.1.0.20, hboneMtlsPort: 15008 } }
- name: weighted
  namespace: shop
  hostname: weighted.shop
  vips: [net/10.1.0.7]
  ports: { 80: 8080 }
  weightedWaypoints:
  - { destination: { destination: shop/both.shop, hboneMtlsPort: 15008 }, weight: 90 }
  - { destination: { destination: infra/way.infra, hboneMtlsPort: 15008 }, weight: 10 }
- name: unweighted
  namespace: shop
  hostname: unweighted.shop
  vips: [net/10.1.0.8]
  ports: { 80: 8080 }
  weightedWaypoints: [{ destination: { destination: infra/way.infra, hboneMtlsPort: 15008 }, weight: 0 }]
- { name: hidden, namespace: shop, hostname: hidden.shop, visibility: Namespace, vips: [net/10.1.0.9], ports: { 80: 8080 }, waypoint: { destination: infra/way.infra, hboneMtlsPort: 15008 } }
- name: range
  namespace: shop
  hostname: range.shop
  vips: []
  cidrVips: [{ network: net, cidr: 10.2.0.0/16 }]
  ports: { 80: 8080 }
  waypoint: { destination: infra/way.infra, hboneMtlsPort: 15008 }
- { name: unattached, namespace: shop, hostname: unattached.shop, vips: [net/10.1.0.10], ports: { 80: 8080 } }
- { name: dual, namespace: shop, hostname: dual.shop, vips: [far/10.9.0.1, "net/fd01::1", net/10.1.0.11], ports: { 80: 8080 } }
- { name: six, namespace: shop, hostname: six.shop, vips: [far/10.9.0.2, "net/fd01::2"], ports: { 80: 8080 } }
- { name: none, namespace: shop, hostname: none.shop, vips: [], ports: { 80: 8080 } }
"#;

fn world() -> Arc<Snapshot> {
    static READ: LazyLock<Arc<Snapshot>> =
        LazyLock::new(|| snapshot_of("world", WORLD).unwrap_or_else(|problems| panic!("{problems}")));
    Arc::clone(&READ)
}

/// Doors at ztunnel's ports, on every address; metrics and readiness are not among them.
fn is_own(address: UpstreamAddr) -> bool {
    [15000, 15001, 15006, 15008, 15080].contains(&address.port())
}

fn ask(snapshot: &Snapshot, local: &str, arrival: &str, authority: &str) -> Result<NextHop, Refusal> {
    let question = Question {
        arrival: SocketAddr::new(arrival.parse().expect("an address"), 15008),
        authority: &authority.parse().expect("an authority"),
        local: snapshot.workload_by_uid(local).map(|workload| &**workload),
        network: "net",
        forwarded_host: None,
    };
    next_hop(snapshot, &question, is_own)
}

/// `address`, `address policy port`, with `-> target` for a PROXY header, or `status word`.
fn said(answer: &Result<NextHop, Refusal>) -> String {
    match answer {
        Ok(NextHop { address, policy_port, proxy_target: None, .. }) => format!("{address} {policy_port}"),
        Ok(NextHop { address, policy_port, proxy_target: Some(target), .. }) => {
            format!("{address} {policy_port} -> {target}")
        }
        Err(refusal) => format!("{} {}", refusal.status().as_u16(), refusal.word()),
    }
}

fn check(cases: &[(&str, &str, &str, &str)]) {
    let world = world();
    for (local, arrival, authority, want) in cases {
        assert_eq!(said(&ask(&world, local, arrival, authority)), *want, "{local} at {arrival}: {authority}");
    }
}

#[test]
fn to_the_workload_itself() {
    check(&[
        ("server", "10.0.0.2", "10.0.0.2:8080", "10.0.0.2:8080 8080"),
        ("server", "10.0.0.2", "10.0.0.2:1", "10.0.0.2:1 1"),
        ("server", "fd00::2", "[fd00::2]:8080", "[fd00::2]:8080 8080"),
        ("server", "::ffff:10.0.0.2", "10.0.0.2:8080", "10.0.0.2:8080 8080"),
        ("server", "10.0.0.2", "[::ffff:10.0.0.2]:8080", "10.0.0.2:8080 8080"),
        ("server", "10.0.0.2", "10.0.0.3:8080", "400 ip_mismatch"),
        ("server", "10.0.0.2", "[fd00::2]:8080", "400 ip_mismatch"),
        ("server", "10.0.0.2", "10.1.0.2:80", "400 ip_mismatch"),
        ("server", "10.0.0.2", "198.51.100.7:80", "400 ip_mismatch"),
        ("nobody", "10.0.0.2", "10.0.0.2:8080", "503 unknown_local_workload"),
    ]);
}

#[test]
fn by_host_name() {
    check(&[
        ("server", "10.0.0.2", "cart.shop:80", "10.0.0.2:8080 8080"),
        ("server", "fd00::2", "Cart.Shop:80", "[fd00::2]:8080 8080"),
        ("server", "10.0.0.2", "cart.shop:81", "10.0.0.2:9091 9091"),
        ("server", "10.0.0.2", "cart.shop:82", "503 no_service_port"),
        ("server", "10.0.0.2", "cart.shop:83", "503 no_service_port"),
        ("server", "10.0.0.2", "cart.shop:84", "503 no_service_port"),
        ("server", "10.0.0.2", "listed.shop:91", "10.0.0.2:7071 7071"),
        ("server", "10.0.0.2", "nobody.shop:80", "503 unknown_hostname"),
        // Of another namespace that hides it.
        ("way", "10.0.0.20", "hidden.shop:80", "503 unknown_hostname"),
        ("server", "10.0.0.2", "hidden.shop:80", "10.0.0.2:8080 8080"),
        // Without the workload behind it, as a waypoint gets it.
        ("way", "10.0.0.20", "attached.shop:80", "10.0.0.20:8080 8080"),
        ("nobody", "10.0.0.2", "cart.shop:80", "503 unknown_local_workload"),
    ]);
}

#[test]
fn to_a_waypoint_without_a_tunnel() {
    let at = |authority| ("way", "10.0.0.20", authority);
    let cases = [
        (at("10.0.1.1:80"), "10.0.0.20:80 80"),
        (at("10.0.1.2:80"), "10.0.0.20:80 80"),
        (at("10.0.1.3:80"), "10.0.0.20:80 80"),
        (at("10.0.1.4:80"), "10.0.0.20:80 80"),
        (at("10.0.1.11:80"), "10.0.0.20:80 80"),
        (at("10.1.0.4:80"), "10.0.0.20:80 80"),
        (at("10.1.0.5:80"), "10.0.0.20:80 80"),
        (at("10.1.0.6:80"), "10.0.0.20:80 80"),
        // Its share of several waypoints, also at the moment when its weight becomes 0 or begins to be more.
        (at("10.1.0.7:80"), "10.0.0.20:80 80"),
        (at("10.1.0.8:80"), "10.0.0.20:80 80"),
        // A service that the waypoint's own namespace may not see.
        (at("10.1.0.9:80"), "10.0.0.20:80 80"),
        (at("10.2.3.4:80"), "10.0.0.20:80 80"),
        (("way", "fd00::20", "10.0.1.1:80"), "[fd00::20]:80 80"),
        (("way", "fd00::20", "10.1.0.4:80"), "[fd00::20]:80 80"),
        // Attached to another, to the same address of another network, to nothing known, to a name elsewhere.
        (at("10.0.1.5:80"), "400 ip_mismatch"),
        (at("10.0.1.6:80"), "400 ip_mismatch"),
        (at("10.0.1.7:80"), "400 ip_mismatch"),
        (at("10.0.1.8:80"), "400 ip_mismatch"),
        // Of another network than ours.
        (at("10.0.1.9:80"), "400 ip_mismatch"),
        // Only its service is attached; only a workload behind it is.
        (at("10.0.1.10:80"), "400 ip_mismatch"),
        (at("10.1.0.10:80"), "400 ip_mismatch"),
        (at("10.0.0.2:80"), "400 ip_mismatch"),
        // The application is no waypoint, though a weighted one names a service that it is behind.
        (("server", "10.0.0.2", "10.1.0.4:80"), "400 ip_mismatch"),
        (("server", "10.0.0.2", "10.1.0.7:80"), "10.0.0.2:80 80"),
    ];
    check(&cases.map(|((local, arrival, authority), want)| (local, arrival, authority, want)));
}

#[test]
fn to_an_application_tunnel() {
    check(&[
        ("proxy", "10.0.0.30", "10.0.1.1:80", "127.0.0.1:15088 80 -> 10.0.1.1:80"),
        ("proxy", "10.0.0.30", "198.51.100.7:80", "127.0.0.1:15088 80 -> 198.51.100.7:80"),
        ("proxy", "fd00::30", "10.0.1.1:80", "[::1]:15088 80 -> 10.0.1.1:80"),
        ("proxy", "10.0.0.30", "[2001:db8::7]:80", "127.0.0.1:15088 80 -> [2001:db8::7]:80"),
        ("proxy", "10.0.0.30", "10.0.0.30:80", "127.0.0.1:15088 80 -> 10.0.0.30:80"),
        ("bare", "10.0.0.31", "10.0.1.1:80", "127.0.0.1:80 80 -> 10.0.1.1:80"),
        ("port", "10.0.0.32", "10.0.1.1:80", "10.0.0.32:9000 80"),
        // A name becomes an address of the service: of our network, IPv4 first.
        ("proxy", "10.0.0.30", "dual.shop:80", "127.0.0.1:15088 8080 -> 10.1.0.11:80"),
        ("proxy", "10.0.0.30", "six.shop:80", "127.0.0.1:15088 8080 -> [fd01::2]:80"),
        ("proxy", "10.0.0.30", "none.shop:80", "503 no_service_address"),
        ("proxy", "10.0.0.30", "nobody.shop:80", "503 unknown_hostname"),
        ("proxy", "10.0.0.30", "dual.shop:81", "503 no_service_port"),
        ("port", "10.0.0.32", "none.shop:80", "10.0.0.32:9000 8080"),
        // Our own doors, asked for or configured.
        ("proxy", "10.0.0.30", "10.0.1.1:15008", "503 loop_refused"),
        ("loop", "10.0.0.33", "10.0.1.1:80", "503 loop_refused"),
    ]);
}

#[test]
fn addresses_that_mean_something_else_here() {
    for local in [("server", "10.0.0.2"), ("proxy", "10.0.0.30"), ("way", "10.0.0.20")] {
        for asked in [
            "127.0.0.1",
            "127.9.9.9",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "0.0.0.0",
            "[::]",
            "[::ffff:0.0.0.0]",
            "169.254.169.254",
            "[fe80::1]",
            "224.0.0.1",
            "239.255.255.255",
            "255.255.255.255",
            "[ff02::1]",
        ] {
            let authority = format!("{asked}:80");
            check(&[(local.0, local.1, &authority, "400 forbidden_address")]);
        }
    }
    check(&[
        ("server", "127.0.0.1", "127.0.0.1:80", "400 forbidden_address"),
        ("server", "169.254.0.9", "169.254.0.9:80", "169.254.0.9:80 80"),
        ("server", "10.0.0.2", "169.254.0.9:80", "400 ip_mismatch"),
    ]);
}

#[test]
fn own_doors_are_refused_and_probes_are_not() {
    for (port, want) in [
        (15000, "503 loop_refused"),
        (15001, "503 loop_refused"),
        (15006, "503 loop_refused"),
        (15008, "503 loop_refused"),
        (15080, "503 loop_refused"),
        (15020, "10.0.0.2:15020 15020"),
        (15021, "10.0.0.2:15021 15021"),
    ] {
        check(&[("server", "10.0.0.2", &format!("10.0.0.2:{port}"), want)]);
    }
}

#[test]
fn a_link_local_arrival_keeps_its_scope() {
    let text = "workloads: [{ uid: w, namespace: n, workloadIps: [\"fe80::2\"], services: {} }]";
    let snapshot = snapshot_of("text", text).unwrap_or_else(|problems| panic!("{problems}"));
    let question = Question {
        arrival: "[fe80::2%3]:15008".parse().expect("an address"),
        authority: &"[fe80::2]:80".parse().expect("an authority"),
        local: snapshot.workload_by_uid("w").map(|workload| &**workload),
        network: "",
        forwarded_host: None,
    };
    assert_eq!(said(&next_hop(&snapshot, &question, is_own)), "[fe80::2%3]:80 80");
}

#[test]
fn the_service_that_traffic_is_counted_under() {
    let world = world();
    for (authority, forwarded_host, want) in [
        // Named, whatever is claimed.
        ("cart.shop:80", Some("both.shop"), "cart.shop"),
        // Claimed, and the workload is behind it; the port does not matter.
        ("10.0.0.2:8080", Some("cart.shop"), "cart.shop"),
        ("10.0.0.2:8080", Some("BOTH.shop"), "both.shop"),
        ("10.0.0.2:1", Some("listed.shop"), "listed.shop"),
        // Claimed and not: by port, of the services that the workload names first.
        ("10.0.0.2:8080", Some("attached.shop"), "both.shop"),
        ("10.0.0.2:8080", Some("nobody"), "both.shop"),
        ("10.0.0.2:8080", None, "both.shop"),
        ("10.0.0.2:9091", None, "cart.shop"),
        ("10.0.0.2:7070", None, "listed.shop"),
        ("10.0.0.2:7071", None, "listed.shop"),
        ("10.0.0.2:1", None, ""),
    ] {
        let question = Question {
            arrival: "10.0.0.2:15008".parse().expect("an address"),
            authority: &authority.parse().expect("an authority"),
            local: world.workload_by_uid("server").map(|workload| &**workload),
            network: "net",
            forwarded_host,
        };
        let service = next_hop(&world, &question, is_own).expect("a next hop").service;
        let hostname = service.map(|labels| Arc::clone(&labels.hostname)).unwrap_or_default();
        assert_eq!(&*hostname, want, "{authority} {forwarded_host:?}");
    }
}

#[test]
fn every_refusal_has_a_status_and_a_word() {
    let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
    for refusal in [
        Refusal::UnknownLocalWorkload,
        Refusal::ForbiddenAddress(ip),
        Refusal::IpMismatch { arrival: ip, asked: ip },
        Refusal::UnknownHostname,
        Refusal::NoServicePort(80),
        Refusal::NoServiceAddress,
        Refusal::OwnPort(80),
    ] {
        let answer = crate::hbone::request::refused(refusal.status(), refusal.word());
        let read = crate::hbone::request::read_answer(&answer).expect_err("refused");
        assert_eq!((read.status, read.reason.as_deref()), (refusal.status(), Some(refusal.word())));
    }
}

proptest! {
    /// Whatever is asked for: what is dialled is the arrival address, or loopback with a PROXY header, and no door.
    #[test]
    fn the_authority_never_chooses_the_address(
        local in proptest::sample::select(vec!["server", "way", "proxy", "bare", "port", "loop"]),
        ip in prop_oneof![
            any::<IpAddr>(),
            (0_u8..3, 0_u8..3, 0_u8..32).prop_map(|(a, b, c)| IpAddr::from([10, a, b, c])),
        ],
        name in proptest::option::of("(cart|attached|dual|six|none|hidden)\\.shop"),
        port in prop_oneof![1_u16.., 15000_u16..15100, 80_u16..84],
    ) {
        let world = world();
        let workload = world.workload_by_uid(local).expect("a workload");
        let arrival = workload.ips[0];
        let authority = match name {
            Some(name) => format!("{name}:{port}").parse().expect("an authority"),
            None => Authority::of_address((ip, port).into()),
        };
        let question = Question {
            arrival: (arrival, 15008).into(),
            authority: &authority,
            local: Some(workload),
            network: "net",
            forwarded_host: None,
        };
        if let Ok(next) = next_hop(&world, &question, is_own) {
            prop_assert_eq!(next.address.ip(), if next.proxy_target.is_some() { loopback(arrival) } else { arrival });
            prop_assert!(!is_own(next.address) && next.address.port() > 0 && next.policy_port > 0);
            if workload.application_tunnel.is_none() {
                prop_assert_eq!(next.policy_port, next.address.port());
            }
        }
    }
}
