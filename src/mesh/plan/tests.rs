//! Who may be chosen, in which groups, and how often each is drawn.

use std::collections::BTreeSet;

use super::*;
use crate::mesh::snapshot_of;

/// A service of the endpoints `uid: keys`, with more keys of its own.
fn service(keys: &str, endpoints: &[(&str, &str)]) -> Arc<ServiceState> {
    let mut text = String::from("workloads:\n");
    for (uid, keys) in endpoints {
        text.push_str(&format!(
            "- {{ uid: {uid}, name: {uid}, namespace: ns, services: {{ ns/svc: {{}} }}, {keys} }}\n"
        ));
    }
    text.push_str(&format!("services:\n- {{ name: svc, namespace: ns, hostname: svc, vips: [], {keys} }}\n"));
    let snapshot = snapshot_of("mesh.yaml", &text).unwrap_or_else(|problems| panic!("{problems}\n{text}"));
    Arc::clone(snapshot.service_by_key("ns", "svc").expect("the service"))
}

fn names(candidates: &Candidates) -> Vec<&str> {
    candidates.members().iter().map(|member| &*member.endpoint.workload.uid).collect()
}

/// The groups that a source with these keys sees, best first, each without what was in those before.
fn tiers(state: &ServiceState, source: &str) -> Vec<BTreeSet<String>> {
    let text = format!("workloads: [{{ uid: me, name: me, namespace: ns, workloadIps: [10.9.9.9], {source} }}]");
    let snapshot = snapshot_of("mesh.yaml", &text).unwrap_or_else(|problems| panic!("{problems}"));
    let plan = Plan::new(state);
    let candidates = plan.candidates(80, Mode::Standard).expect("the port");
    let mut seen = BTreeSet::new();
    let mut tiers = Vec::new();
    for group in candidates.tiers(snapshot.workload_by_uid("me").map(|it| &**it)) {
        let members: BTreeSet<String> = (0..group.len())
            .filter_map(|place| Some(names(candidates).get(group.at(place)?)?.to_string()))
            .filter(|name| seen.insert(name.clone()))
            .collect();
        if !members.is_empty() {
            tiers.push(members);
        }
    }
    tiers
}

fn sets(names: &[&[&str]]) -> Vec<BTreeSet<String>> {
    names.iter().map(|tier| tier.iter().map(|name| (*name).to_owned()).collect()).collect()
}

#[test]
fn who_may_be_chosen() {
    const PORTS: &str = "ports: { 80: 8080 }";
    let lb = |policy| format!("{PORTS}, loadBalancer: {{ mode: Standard, healthPolicy: {policy} }}");
    let rows: &[(&str, &str, &str, bool)] = &[
        ("healthy", PORTS, "workloadIps: [10.0.0.1]", true),
        ("unhealthy", PORTS, "workloadIps: [10.0.0.1], status: Unhealthy", false),
        ("unhealthy, and that does not matter", &lb("AllowAll"), "workloadIps: [10.0.0.1], status: Unhealthy", true),
        ("only healthy ones", &lb("OnlyHealthy"), "workloadIps: [10.0.0.1], status: Unhealthy", false),
        ("terminating, whatever the policy", &lb("AllowAll"), "workloadIps: [10.0.0.1], status: Terminating", false),
        ("no weight", PORTS, "workloadIps: [10.0.0.1], capacity: 0", false),
        ("no address", PORTS, "workloadIps: []", false),
        ("a name", PORTS, "workloadIps: [], hostname: a.example", true),
        (
            "a gateway",
            PORTS,
            "workloadIps: [], network: far, networkGateway: { destination: /10.0.0.9, hboneMtlsPort: 15008 }",
            true,
        ),
        ("another family", &format!("{PORTS}, ipFamilies: IPv6"), "workloadIps: [10.0.0.1]", false),
        ("the family", &format!("{PORTS}, ipFamilies: IPv6"), "workloadIps: [10.0.0.1, \"2001:db8::1\"]", true),
        ("a named port", "ports: { 80: 0 }", "workloadIps: [10.0.0.1]", false),
    ];
    for (what, keys, workload, want) in rows {
        let state = service(keys, &[("a", workload)]);
        assert_eq!(
            names(Plan::new(&state).candidates(80, Mode::Standard).expect("the port")) == ["a"],
            *want,
            "{what}"
        );
    }
    assert_eq!(rows.len(), 12);
}

#[test]
fn ports_that_only_some_serve() {
    let text = "
workloads:
- { uid: a, name: a, namespace: ns, workloadIps: [10.0.0.1], services: { ns/svc: { 81: 9081 } } }
- { uid: b, name: b, namespace: ns, workloadIps: [10.0.0.2], services: { ns/svc: {} } }
- { uid: c, name: c, namespace: ns, workloadIps: [10.0.0.3], services: { ns/svc: {} }, applicationTunnel: { protocol: PROXY, port: 15088 } }
services: [{ name: svc, namespace: ns, hostname: svc, vips: [], ports: { 80: 8080, 81: 0, 82: 8082 } }]
";
    let snapshot = snapshot_of("mesh.yaml", text).expect("a mesh");
    let state = snapshot.service_by_key("ns", "svc").expect("the service");
    let plan = Plan::new(state);
    let of = |port, mode| plan.candidates(port, mode).map(|candidates| names(candidates));
    let standard = [80, 81, 83].map(|port| of(port, Mode::Standard));
    assert_eq!(standard, [Some(vec!["a", "b", "c"]), Some(vec!["a"]), None]);
    let waypoint = [80, 81, 83].map(|port| of(port, Mode::Waypoint));
    assert_eq!(waypoint, [Some(vec!["a", "b", "c"]), Some(vec!["a", "c"]), Some(vec!["c"])]);
    let shared = |port| plan.candidates(port, Mode::Standard).expect("a port");
    assert!(Arc::ptr_eq(shared(80), shared(82)), "the same for both");
    let target =
        |uid: &str, port, mode| target_port(&state.service, state.endpoint(uid).expect("an endpoint"), port, mode);
    for (uid, port, standard, waypoint) in [
        ("a", 80, Some(8080), Some(8080)),
        ("a", 81, Some(9081), Some(9081)),
        ("b", 81, None, None),
        ("c", 81, None, Some(81)),
        ("c", 7, None, Some(7)),
        ("b", 7, None, None),
    ] {
        let targets = (target(uid, port, Mode::Standard), target(uid, port, Mode::Waypoint));
        assert_eq!(targets, (standard, waypoint), "{uid} {port}");
    }
}

/// Endpoint `nrz` is in network n, region r, zone z.
const EVERYWHERE: [(&str, &str); 8] = [
    ("nrz", "workloadIps: [10.0.0.1], network: n, locality: { region: r, zone: z, subzone: '' }"),
    ("nr_", "workloadIps: [10.0.0.2], network: n, locality: { region: r, zone: y, subzone: '' }"),
    ("n_z", "workloadIps: [10.0.0.3], network: n, locality: { region: q, zone: z, subzone: '' }"),
    ("n__", "workloadIps: [10.0.0.4], network: n, locality: { region: q, zone: y, subzone: '' }"),
    ("_rz", "workloadIps: [10.0.0.5], network: m, locality: { region: r, zone: z, subzone: '' }"),
    ("_r_", "workloadIps: [10.0.0.6], network: m, locality: { region: r, zone: y, subzone: '' }"),
    ("__z", "workloadIps: [10.0.0.7], network: m, locality: { region: q, zone: z, subzone: '' }"),
    ("___", "workloadIps: [10.0.0.8], network: m, locality: { region: q, zone: y, subzone: '' }"),
];

#[test]
fn groups_by_locality() {
    let me = "network: n, locality: { region: r, zone: z, subzone: '' }";
    let all: &[&str] = &["nrz", "nr_", "n_z", "n__", "_rz", "_r_", "__z", "___"];
    let rows: &[(&str, &str, &[&[&str]])] = &[
        ("Standard", "[Region, Zone]", &[all]),
        ("Failover", "[]", &[all]),
        ("Failover", "[Region, Zone]", &[&["nrz", "_rz"], &["nr_", "_r_"], &["n_z", "n__", "__z", "___"]]),
        // A zone is not compared where the region differs.
        ("Failover", "[Zone, Region]", &[&["nrz", "_rz"], &["n_z", "__z"], &["nr_", "n__", "_r_", "___"]]),
        (
            "Failover",
            "[Network, Region, Zone]",
            &[&["nrz"], &["nr_"], &["n_z", "n__"], &["_rz"], &["_r_"], &["__z", "___"]],
        ),
        ("Failover", "[Network]", &[&["nrz", "nr_", "n_z", "n__"], &["_rz", "_r_", "__z", "___"]]),
        // The network is special only in the first place.
        ("Failover", "[Region, Network]", &[&["nrz", "nr_"], &["_rz", "_r_"], &["n_z", "n__", "__z", "___"]]),
        ("Strict", "[Region, Zone]", &[&["nrz", "_rz"]]),
        ("Strict", "[Network, Region, Zone]", &[&["nrz"]]),
        ("Strict", "[]", &[all]),
    ];
    for (mode, preferences, want) in rows {
        let keys = format!("ports: {{ 80: 80 }}, loadBalancer: {{ mode: {mode}, routingPreferences: {preferences} }}");
        assert_eq!(tiers(&service(&keys, &EVERYWHERE), me), sets(want), "{mode} {preferences}");
    }
    assert_eq!(rows.len(), 10);
}

#[test]
fn a_source_that_is_elsewhere_or_nowhere() {
    let keys =
        |mode| format!("ports: {{ 80: 80 }}, loadBalancer: {{ mode: {mode}, routingPreferences: [Region, Zone] }}");
    let (failover, strict) = (service(&keys("Failover"), &EVERYWHERE), service(&keys("Strict"), &EVERYWHERE));
    let far = "locality: { region: far, zone: z, subzone: '' }";
    assert_eq!((tiers(&failover, far).len(), tiers(&strict, far)), (1, vec![]));
    let region_only = "locality: { region: r, zone: other, subzone: '' }";
    assert_eq!((tiers(&failover, region_only).len(), tiers(&strict, region_only)), (2, vec![]));
    let (failover, strict) = (Plan::new(&failover), Plan::new(&strict));
    let count = |plan: &Plan| {
        plan.candidates(80, Mode::Standard).expect("the port").tiers(None).map(Group::len).collect::<Vec<_>>()
    };
    assert_eq!((count(&failover), count(&strict)), (vec![8], vec![]));
}

#[test]
fn each_is_drawn_by_its_weight() {
    let weights = [1, 0, 2, 5, 12];
    let workloads: Vec<(String, String)> = weights
        .iter()
        .enumerate()
        .map(|(at, weight)| (format!("w{at}"), format!("workloadIps: [10.0.0.{at}], capacity: {weight}")))
        .collect();
    let workloads: Vec<(&str, &str)> = workloads.iter().map(|(uid, keys)| (&**uid, &**keys)).collect();
    let state = service("ports: { 80: 80 }", &workloads);
    let plan = Plan::new(&state);
    let candidates = plan.candidates(80, Mode::Standard).expect("the port");
    let group = candidates.tiers(None).next().expect("all");
    let mut random = fastrand::Rng::with_seed(7);
    let mut counts = BTreeMap::new();
    for _ in 0..20_000 {
        let drawn = group.draw(&mut random).expect("somebody");
        *counts.entry(names(candidates)[drawn]).or_insert(0_u32) += 1;
    }
    // Within a tenth of the thousand that a weight of one stands for.
    for (uid, want) in [("w0", 1000), ("w2", 2000), ("w3", 5000), ("w4", 12_000)] {
        assert!(counts[uid].abs_diff(want) < 100 + want / 20, "{uid}: {counts:?}");
    }
    assert_eq!(counts.len(), 4, "nobody without a weight");
    assert_eq!(Group::default().draw(&mut random), None);
}
