//! Tables: what each destination of one mesh leads to, said in one line, from the destination to what is dialled, what the
//! far side is asked for and who may answer.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::LazyLock;

use proptest::prelude::*;

use super::endpoint::{Place, reachable};
use super::route::{Asking, Candidate, Leg, Route, candidate};
use super::*;
use crate::mesh::snapshot_of;
use crate::proxy::balance::Choice;
use crate::proxy::balance::draw::{Asking as Drawing, draw};

/// Our network is `near`; the client is `client` in namespace `shop`, at 10.0.0.1.
const WORLD: &str = include_str!("tests/world.yaml");

fn world() -> Arc<Snapshot> {
    static READ: LazyLock<Arc<Snapshot>> =
        LazyLock::new(|| snapshot_of("world.yaml", WORLD).unwrap_or_else(|problems| panic!("{problems}")));
    Arc::clone(&READ)
}

struct Ask<'a> {
    source: &'a str,
    namespace: &'a str,
    egress: Egress,
}

const ORDINARY: Ask<'static> = Ask { source: "client", namespace: "shop", egress: Egress::AllowAny };

fn target(snapshot: &Snapshot, ask: &Ask<'_>, dst: SocketAddr, seed: u64) -> Result<Target, ResolveError> {
    let question = Question {
        dst: OriginalDst::new(dst),
        network: "near",
        client_namespace: ask.namespace,
        source: snapshot.workload_by_uid(ask.source).map(AsRef::as_ref),
        egress: ask.egress,
    };
    resolve(snapshot, &question, &mut fastrand::Rng::with_seed(seed))
}

fn first(snapshot: &Snapshot, ask: &Ask<'_>, dst: SocketAddr, target: &Target, seed: u64) -> Result<Candidate, String> {
    let dst = OriginalDst::new(dst);
    let asking = Asking { snapshot, dst, network: "near", client_namespace: ask.namespace };
    let mut random = fastrand::Rng::with_seed(seed);
    let drawing =
        Drawing { source: None, tried: &[], limit: None, trial: std::time::Duration::from_secs(1), now_ms: 0 };
    candidate(&asking, target, |_, state, wanted| {
        let candidates = state.plan().candidates(wanted.port, wanted.mode)?;
        let endpoint = draw(candidates, &drawing, &mut random).ok()?.endpoint;
        let port = reachable(&state.service, &endpoint, wanted)?;
        Some(Choice { endpoint, port })
    })
    .map_err(|error| format!("{}: {error}", error.close_reason().as_str()))
}

fn place(place: &Place, port: u16) -> String {
    match place {
        Place::Address(ip) => SocketAddr::new(*ip, port).to_string(),
        Place::Hostname(name) => format!("{name}:{port}"),
        Place::Beyond => "beyond".to_owned(),
    }
}

/// `where CONNECT what by whom`.
fn leg(leg: &Leg) -> String {
    let asked = match &leg.asked {
        route::Asked::Itself(port) => place(&leg.place, *port),
        route::Asked::Exactly(authority) => authority.to_string(),
    };
    let by = accounts(&leg.allowed);
    format!("{} CONNECT {asked} by {by}", place(&leg.place, leg.port))
}

/// The service accounts, which is what differs here.
fn accounts(ids: &[crate::identity::SpiffeId]) -> String {
    let account = |id: &crate::identity::SpiffeId| id.as_str().rsplit('/').next().unwrap_or_default().to_owned();
    ids.iter().map(account).collect::<Vec<_>>().join("+")
}

/// The whole answer, with the labels of the destination and the service.
fn said(ask: &Ask<'_>, dst: &str) -> String {
    let (snapshot, dst) = (world(), dst.parse().expect("an address"));
    let found = match target(&snapshot, ask, dst, 1) {
        Ok(found) => found,
        Err(error) => return format!("{}: {error}", error.close_reason().as_str()),
    };
    let Candidate { workload, route } = match first(&snapshot, ask, dst, &found, 1) {
        Ok(candidate) => candidate,
        Err(error) => return error,
    };
    let way = match route {
        Route::Address(address) => format!("tcp {address}"),
        Route::Plain { place: at, port } => format!("tcp {}", place(&at, port)),
        Route::Tunnel(it) => format!("hbone {}", leg(&it)),
        Route::Waypoint(it) => format!("waypoint {}", leg(&it)),
        Route::Gateway { outer, inner } => format!("gateway {}, inside {}", leg(&outer), accounts(&inner)),
    };
    let workload = workload.map_or("-".to_owned(), |workload| workload.uid.to_string());
    let service = found.labels().1.map_or("-".to_owned(), |labels| labels.name.to_string());
    format!("{way} ({workload}, {service})")
}

fn check(ask: &Ask<'_>, rows: &[(&str, &str)]) {
    for (dst, want) in rows {
        assert_eq!(said(ask, dst), *want, "{dst}");
    }
}

/// The decision procedure, clause by clause.
const DECISIONS: [(&str, &str); 34] = [
    // Nothing known: passed through.
    ("198.51.100.7:443", "tcp 198.51.100.7:443 (-, -)"),
    // A workload, as it accepts connections; that the client has a waypoint changes nothing.
    ("10.0.0.2:8080", "tcp 10.0.0.2:8080 (plain, -)"),
    ("10.0.0.3:8080", "hbone 10.0.0.3:15008 CONNECT 10.0.0.3:8080 by safe (safe, -)"),
    ("[fd00::3]:8080", "hbone [fd00::3]:15008 CONNECT [fd00::3]:8080 by safe (safe, -)"),
    // On its host's network: the address is the host's, and nobody's here.
    ("10.0.0.9:8080", "tcp 10.0.0.9:8080 (-, -)"),
    // A workload's waypoint: by address, by a service's address, by a service's name, by a workload's name.
    ("10.0.1.1:80", "waypoint 10.0.0.20:15008 CONNECT 10.0.1.1:80 by way (way, -)"),
    ("10.0.1.2:80", "waypoint 10.0.0.20:15008 CONNECT 10.0.1.2:80 by way+named (way, -)"),
    ("10.0.1.3:80", "waypoint 10.0.0.20:15008 CONNECT 10.0.1.3:80 by way+named (way, -)"),
    ("10.0.1.4:80", "waypoint 10.0.0.20:15009 CONNECT 10.0.1.4:80 by way (way, -)"),
    // IPv6 to a waypoint that is referred to by IPv4, and by name.
    ("[fd00:1::1]:80", "waypoint 10.0.0.20:15008 CONNECT [fd00:1::1]:80 by way (way, -)"),
    ("[fd00:1::3]:80", "waypoint [fd00::20]:15008 CONNECT [fd00:1::3]:80 by way+named (way, -)"),
    // It leads nowhere, or to nothing that could be used: not around it.
    ("10.0.1.5:80", "waypoint_unavailable: unknown waypoint infra/nobody"),
    ("10.0.1.6:80", "waypoint_unavailable: unknown waypoint far/10.0.0.20"),
    ("10.0.1.7:80", "waypoint_unavailable: no healthy upstream for waypoint infra/idle.infra"),
    ("10.0.1.8:80", "waypoint_unavailable: unknown waypoint infra/through.infra"),
    // In another network: there is no service by whose name it could be asked for there.
    ("10.0.1.9:80", "gateway_unavailable: no service for target address: far-way is in network \"far\""),
    // A service without a waypoint: an endpoint, at its own port.
    ("10.1.0.1:80", "tcp 10.0.0.2:8080 (plain, direct)"),
    ("10.1.0.2:80", "hbone 10.0.0.3:15008 CONNECT 10.0.0.3:8080 by safe+alias (safe, secure)"),
    // The workload's own waypoint is for who addresses the workload.
    ("10.1.0.3:80", "tcp 10.0.1.1:8080 (by-ip, attached)"),
    ("10.1.0.1:81", "no_service_port: the service at 10.1.0.1:81 has no such port"),
    ("10.1.0.4:80", "no_healthy_upstream: no healthy upstream"),
    // A service's waypoint: the original destination, and the service's name in the labels.
    ("10.1.0.5:80", "waypoint 10.0.0.20:15008 CONNECT 10.1.0.5:80 by way+named (way, guarded)"),
    ("10.1.0.5:9999", "waypoint 10.0.0.20:15008 CONNECT 10.1.0.5:9999 by way+named (way, guarded)"),
    ("10.1.0.6:80", "waypoint_unavailable: unknown waypoint infra/nobody"),
    // Weights of nothing: the single one.
    ("10.1.0.7:80", "waypoint 10.0.0.20:15008 CONNECT 10.1.0.7:80 by way (way, weightless)"),
    // Passed through: the original destination, or the workload that has it, or the waypoint all the same.
    ("10.1.0.8:80", "tcp 10.1.0.8:80 (-, through)"),
    ("10.2.0.1:80", "tcp 10.2.0.1:80 (-, range)"),
    ("10.2.0.5:80", "hbone 10.2.0.5:15008 CONNECT 10.2.0.5:80 by inside (inside, range)"),
    ("10.2.0.6:80", "waypoint 10.0.0.20:15008 CONNECT 10.2.0.6:80 by way (way, range)"),
    ("10.1.0.9:80", "waypoint 10.0.0.20:15008 CONNECT 10.1.0.9:80 by way+named (way, through-guarded)"),
    // A service before the workload of the same address, and its waypoint from the same answer.
    ("10.0.0.8:80", "tcp 10.0.0.2:8080 (plain, shared)"),
    // Where a waypoint's application has a port for tunnelled traffic, its service need not list any.
    ("10.1.0.10:80", "waypoint 10.0.0.30:15008 CONNECT 10.1.0.10:80 by proxy (proxy, portless)"),
    // Known by a name only.
    ("10.1.0.11:80", "tcp named.example:8080 (by-name, named)"),
    ("10.1.0.12:80", "hbone safe.example:15008 CONNECT safe.example:8443 by by-name-safe (by-name-safe, named-safe)"),
];

/// Other networks.
const NETWORKS: [(&str, &str); 10] = [
    // By the gateway's address; whom the service does not name is who the state says is there.
    ("10.1.1.1:80", "gateway 192.0.2.1:15008 CONNECT abroad.shop:80 by gateway, inside remote (remote, abroad)"),
    // By a name, whose service maps the port; whom the service names is who may be behind it, and nobody else.
    (
        "10.1.1.2:80",
        "gateway 192.0.2.1:15008 CONNECT named-abroad.shop:80 by gateway+east, inside alias (remote-2, named-abroad)",
    ),
    // Without any address of its own.
    ("10.1.1.3:80", "gateway 192.0.2.1:15008 CONNECT hidden.shop:80 by gateway, inside remote (bare, hidden)"),
    ("10.1.1.4:80", "gateway_unavailable: lost is in network \"far\" and has no network gateway"),
    ("10.1.1.5:80", "gateway_unavailable: unknown network gateway far/192.0.2.9"),
    ("10.1.1.6:80", "gateway_unavailable: no healthy upstream for network gateway infra/idle.infra"),
    // A waypoint there: the service by its name, the waypoint's names inside.
    (
        "10.1.1.7:80",
        "gateway 192.0.2.1:15008 CONNECT way-abroad.shop:80 by gateway, inside far-way (far-way, way-abroad)",
    ),
    (
        "10.1.1.8:80",
        "gateway 192.0.2.1:15008 CONNECT way-named.shop:80 by gateway, inside east-way (far-way, way-named)",
    ),
    // The gateway itself is named by a host name, to be looked up.
    (
        "10.1.1.9:80",
        "gateway gw.example:15008 CONNECT resolved.shop:80 by gateway-2, inside remote (remote-6, resolved)",
    ),
    // Whose names are none: nobody may be there.
    ("10.1.1.10:80", "gateway 192.0.2.1:15008 CONNECT misnamed.shop:80 by gateway, inside  (remote-7, misnamed)"),
];

/// Which port and which address of an endpoint.
const ENDPOINTS: [(&str, &str); 12] = [
    // The endpoint's own port before the service's.
    ("10.1.2.1:80", "tcp 10.0.0.40:9090 (ports, ports)"),
    ("10.1.2.1:81", "tcp 10.0.0.40:8081 (ports, ports)"),
    // A named port is the endpoint's to say.
    ("10.1.2.1:82", "tcp 10.0.0.40:9092 (ports, ports)"),
    ("10.1.2.1:83", "no_healthy_upstream: no healthy upstream"),
    // The family of the destination first, if the workload has it and the service allows it.
    ("10.1.2.2:80", "tcp 10.0.0.41:8080 (dual, both)"),
    ("[fd01::2]:80", "tcp [fd00::41]:8080 (dual, both)"),
    ("10.1.2.3:80", "tcp [fd00::41]:8080 (dual, six)"),
    ("[fd01::4]:80", "tcp 10.0.0.41:8080 (dual, four)"),
    ("[fd01::5]:80", "tcp 10.0.0.2:8080 (plain, four-only)"),
    // No address that is allowed.
    ("10.1.2.6:80", "no_healthy_upstream: no healthy upstream"),
    // The address that was asked for, if the endpoint has it.
    ("10.0.0.42:80", "tcp 10.0.0.42:8080 (second, own)"),
    // By uid, where the address is the host's.
    ("10.1.2.7:80", "tcp 10.0.0.9:8080 (host, hosted)"),
];

#[test]
fn every_destination_goes_its_way() {
    check(&ORDINARY, &DECISIONS);
    assert_eq!(DECISIONS.len(), 34);
}

#[test]
fn another_network_is_reached_through_its_gateway_only() {
    check(&ORDINARY, &NETWORKS);
    assert_eq!(NETWORKS.len(), 10);
}

#[test]
fn an_endpoint_is_dialled_where_it_listens() {
    check(&ORDINARY, &ENDPOINTS);
    assert_eq!(ENDPOINTS.len(), 12);
}

#[test]
fn who_asks_makes_a_difference() {
    let closed = Ask { egress: Egress::RegistryOnly, ..ORDINARY };
    check(
        &closed,
        &[
            (
                "198.51.100.7:443",
                "unknown_destination: the state does not know 198.51.100.7:443 and egress is registryOnly",
            ),
            ("10.0.0.2:8080", "tcp 10.0.0.2:8080 (plain, -)"),
            ("10.1.0.8:80", "tcp 10.1.0.8:80 (-, through)"),
        ],
    );
    // The waypoint itself, which has done its part; whatever way it is referred to.
    let waypoint = Ask { source: "way", namespace: "infra", ..ORDINARY };
    check(
        &waypoint,
        &[
            ("10.0.1.1:80", "tcp 10.0.1.1:80 (by-ip, -)"),
            ("10.0.1.2:80", "tcp 10.0.1.2:80 (by-vip, -)"),
            ("10.0.1.3:80", "tcp 10.0.1.3:80 (by-host, -)"),
            ("10.0.1.4:80", "tcp 10.0.1.4:80 (by-workload-host, -)"),
            ("10.2.0.6:80", "tcp 10.2.0.6:80 (inside-guarded, range)"),
            // Another one's.
            ("10.0.1.10:80", "waypoint 10.0.0.30:15008 CONNECT 10.0.1.10:80 by proxy (proxy, -)"),
            // Of services always: their endpoints are addressed as workloads.
            ("10.1.0.5:80", "waypoint 10.0.0.20:15008 CONNECT 10.1.0.5:80 by way+named (way, guarded)"),
        ],
    );
    // A service that only its own namespace sees, at an address where others see nothing.
    let rows = [("shop", "tcp 10.0.0.2:8080 (plain, private)"), ("infra", "tcp 10.1.0.20:80 (-, -)")];
    for (namespace, want) in rows {
        check(&Ask { namespace, ..ORDINARY }, &[("10.1.0.20:80", want)]);
    }
}

/// Counts over many draws.
fn drawn(dst: &str) -> std::collections::BTreeMap<String, u32> {
    let (snapshot, dst) = (world(), dst.parse().expect("an address"));
    let mut random = fastrand::Rng::with_seed(7);
    let mut counts = std::collections::BTreeMap::new();
    for _ in 0..10_000 {
        let found = target(&snapshot, &ORDINARY, dst, random.u64(..)).expect("a target");
        let Target::Waypoint { hop, .. } = found else { panic!("{found:?}") };
        *counts.entry(hop.name.to_string()).or_default() += 1;
    }
    counts
}

#[test]
fn weighted_waypoints_get_their_shares() {
    let counts = drawn("10.1.0.13:80");
    assert_eq!(counts.keys().collect::<Vec<_>>(), ["infra/way.infra", "near/10.0.0.30"], "a weight of 0 gets nothing");
    assert_eq!(counts.values().sum::<u32>(), 10_000);
    let most = counts["infra/way.infra"];
    assert!((7_200..7_800).contains(&most), "{most} of 10,000 for a weight of 75 in 100");
    assert_eq!(drawn("10.1.0.7:80").keys().collect::<Vec<_>>(), ["near/10.0.0.20"], "no weights at all");
}

fn addresses(snapshot: &Snapshot) -> BTreeSet<IpAddr> {
    snapshot.workloads().flat_map(|workload| workload.ips.iter().copied()).collect()
}

fn dialled(route: &Route) -> &Place {
    match route {
        Route::Address(_) => unreachable!("looked at before"),
        Route::Plain { place, .. } => place,
        Route::Tunnel(leg) | Route::Waypoint(leg) | Route::Gateway { outer: leg, .. } => &leg.place,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    /// Whatever is asked for by whomever: what is dialled is where it was going, or where a workload of the state is; and
    /// what is asked of a far side is where it was going, or an endpoint, or the service's name.
    #[test]
    fn no_endpoint_is_invented(
        ip in prop_oneof![
            (0_u8..3, 0_u8..3, 0_u8..45).prop_map(|(a, b, c)| IpAddr::from([10, a, b, c])),
            (0_u16..2, 0_u16..0x45).prop_map(|(a, b)| IpAddr::from([0xfd00 + a, 0, 0, 0, 0, 0, 0, b])),
            any::<IpAddr>(),
        ],
        port in prop_oneof![Just(80_u16), 1_u16..],
        source in prop::sample::select(vec!["client", "way", "nobody"]),
        namespace in prop::sample::select(vec!["shop", "infra"]),
        seed in any::<u64>(),
    ) {
        let (snapshot, dst) = (world(), SocketAddr::new(ip, port));
        let ask = Ask { source, namespace, egress: Egress::AllowAny };
        let Ok(found) = target(&snapshot, &ask, dst, seed) else { return Ok(()) };
        let Ok(Candidate { workload, route }) = first(&snapshot, &ask, dst, &found, seed) else { return Ok(()) };
        let canonical = crate::net::address::canonical(dst);
        if let Route::Address(address) = &route {
            prop_assert_eq!(address.socket_addr(), canonical);
            return Ok(());
        }
        prop_assert!(workload.is_some(), "only what is passed through leads to nobody");
        match dialled(&route) {
            Place::Address(ip) => prop_assert!(addresses(&snapshot).contains(ip), "{ip}"),
            Place::Hostname(name) => prop_assert!(snapshot.workloads().any(|it| it.hostname == *name)),
            Place::Beyond => prop_assert!(false, "nothing can be dialled there"),
        }
        match &route {
            Route::Waypoint(leg) => prop_assert_eq!(leg.asked.clone(), route::Asked::Exactly(
                crate::hbone::request::Authority::of_address(canonical)
            )),
            Route::Gateway { outer, .. } => {
                let host = snapshot.service("near", ip, namespace).expect("a service").service.key.hostname.clone();
                prop_assert_eq!(outer.authority(UpstreamAddr::new(dst)).to_string(), format!("{host}:{port}"));
            }
            Route::Address(_) | Route::Plain { .. } | Route::Tunnel(_) => {}
        }
    }
}
