//! Edits in any order lead to the same state, and lookups find what is in it.

use std::collections::BTreeMap;

use ipnet::IpNet;
use proptest::prelude::*;

use super::*;
use crate::mesh::fixture::{key, service, spec, workload};
use crate::mesh::policy::fixture::any_policy;
use crate::mesh::policy::{Policy, Scope};
use crate::mesh::service::{Service, Visibility};
use crate::mesh::spec::{ExplicitEndpoint, ServiceSpec};
use crate::mesh::workload::{Health, NetworkMode, Protocol};
use crate::mesh::{Change, SnapshotBuilder};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn build(changes: impl IntoIterator<Item = Change>) -> Snapshot {
    edit(&Snapshot::default(), changes)
}

fn edit(base: &Snapshot, changes: impl IntoIterator<Item = Change>) -> Snapshot {
    let mut builder = SnapshotBuilder::new(base);
    changes.into_iter().for_each(|change| builder.apply(change));
    builder.finish()
}

fn put(workload: Workload) -> Change {
    Change::PutWorkload(Arc::new(workload))
}

fn put_service(service: Service) -> Change {
    Change::PutService(spec(service))
}

fn uid(found: Option<&Arc<Workload>>) -> &str {
    found.map_or("", |workload| &workload.uid)
}

fn host(found: Option<&Arc<ServiceState>>) -> String {
    found.map_or_else(String::new, |state| state.service.key.to_string())
}

fn endpoints(state: &ServiceState) -> Vec<&str> {
    state.endpoints.iter().map(|endpoint| &*endpoint.workload.uid).collect()
}

#[test]
fn all_services_at_an_address_whoever_may_see_them() {
    let at = |name: &str, visibility, vips: &[&str], cidrs: &[&str]| {
        put_service(Service {
            visibility,
            vips: vips.iter().map(|vip| ("n".into(), ip(vip))).collect(),
            cidr_vips: cidrs.iter().map(|cidr| ("n".into(), net(cidr))).collect(),
            ..service(name, name)
        })
    };
    let snapshot = build([
        at("a", Visibility::Namespace, &["10.0.0.1"], &[]),
        at("b", Visibility::Public, &["10.0.0.1"], &[]),
        at("c", Visibility::Namespace, &[], &["10.0.0.0/24"]),
        at("d", Visibility::Public, &[], &["10.0.0.0/8", "::/0"]),
    ]);
    let found = |network: &str, address: &str| -> Vec<String> {
        snapshot.services_at(network, ip(address)).map(|state| state.service.key.namespace.to_string()).collect()
    };
    assert_eq!(found("n", "10.0.0.1"), ["a", "b", "c", "d"]);
    assert_eq!(found("n", "::ffff:10.0.0.2"), ["c", "d"]);
    assert_eq!(found("n", "10.9.0.1"), ["d"]);
    assert_eq!(found("n", "fd00::1"), ["d"]);
    assert_eq!(found("n", "192.0.2.1"), [""; 0]);
    assert_eq!(found("other", "10.0.0.1"), [""; 0]);
}

#[test]
fn the_services_of_a_workload_named_by_either_side() {
    let explicit =
        |uid: &str| ExplicitEndpoint { workload_uid: uid.into(), ports: BTreeMap::new(), status: Health::Healthy };
    let listing = |name: &str, uids: &[&str]| {
        let endpoints = uids.iter().map(|uid| explicit(uid)).collect();
        Change::PutService(Arc::new(ServiceSpec { service: Arc::new(service("s", name)), endpoints }))
    };
    let naming = |names: &[&str]| Arc::new(names.iter().map(|name| (key("s", name), BTreeMap::new())).collect());
    let snapshot = build([
        put(Workload { services: naming(&["a", "both", "undefined"]), ..workload("w") }),
        put(workload("other")),
        put_service(service("s", "a")),
        put_service(service("s", "unrelated")),
        listing("both", &["other", "w"]),
        listing("lists", &["other", "w", "nobody"]),
    ]);
    let services = |uid: &str| -> Vec<String> {
        let workload = snapshot.workload_by_uid(uid).expect("a workload");
        snapshot.services_of(workload).map(|state| state.service.key.to_string()).collect()
    };
    assert_eq!(services("w"), ["s/a", "s/both", "s/lists"]);
    assert_eq!(services("other"), ["s/both", "s/lists"]);
    for state in snapshot.services() {
        for uid in ["w", "other", "nobody", ""] {
            let found = state.endpoint(uid).map(|endpoint| &*endpoint.workload.uid);
            assert_eq!(found, endpoints(state).contains(&uid).then_some(uid));
        }
    }
}

#[test]
fn an_address_prefers_pods_and_hbone_then_the_smallest_uid() {
    let on = |uid: &str, protocol| put(Workload { protocol, ips: vec![ip("10.0.0.1")], ..workload(uid) });
    let order = [
        on("c//Pod/hbone-b", Protocol::Hbone),
        on("c//Pod/hbone-a", Protocol::Hbone),
        on("c//Pod/plain", Protocol::Tcp),
        on("c/WorkloadEntry/hbone", Protocol::Hbone),
        on("c/WorkloadEntry/a", Protocol::Tcp),
        on("c/WorkloadEntry/b", Protocol::Tcp),
    ];
    let mut snapshot = build(order.into_iter().rev());
    for want in ["c//Pod/hbone-a", "c//Pod/hbone-b", "c//Pod/plain", "c/WorkloadEntry/hbone", "c/WorkloadEntry/a"] {
        assert_eq!(uid(snapshot.workload("", ip("10.0.0.1"))), want);
        assert_eq!(uid(snapshot.workload("", ip("::ffff:10.0.0.1"))), want);
        assert_eq!(uid(snapshot.workload("other", ip("10.0.0.1"))), "");
        snapshot = edit(&snapshot, [Change::RemoveWorkload(want.into())]);
    }
    assert_eq!(uid(snapshot.workload("", ip("10.0.0.1"))), "c/WorkloadEntry/b");
    snapshot = edit(&snapshot, [Change::RemoveWorkload("c/WorkloadEntry/b".into())]);
    assert_eq!(uid(snapshot.workload("", ip("10.0.0.1"))), "");
}

#[test]
fn a_workload_on_its_hosts_network_has_no_address_but_a_name() {
    let named = Workload {
        name: "a".into(),
        ips: vec![ip("10.0.0.1")],
        network_mode: NetworkMode::HostNetwork,
        ..workload("u")
    };
    let snapshot = build([put(named)]);
    assert_eq!(uid(snapshot.workload("", ip("10.0.0.1"))), "");
    let local = LocalWorkload { name: "a".into(), ..LocalWorkload::default() };
    assert_eq!(uid(snapshot.local_workload(&local, "node-1")), "u");
}

#[test]
fn the_local_workload_matches_name_namespace_account_and_node() {
    let on = |uid: &str, node: &str| put(Workload { name: "a".into(), node: node.into(), ..workload(uid) });
    let snapshot = build([on("1-anywhere", ""), on("2-here", "here"), on("3-there", "there")]);
    let local = |name: &str| LocalWorkload { name: name.into(), ..LocalWorkload::default() };
    for (node, want) in [("here", "2-here"), ("there", "3-there"), ("nowhere", "1-anywhere"), ("", "2-here")] {
        assert_eq!(uid(snapshot.local_workload(&local("a"), node)), want, "{node}");
    }
    assert_eq!(uid(snapshot.local_workload(&local(""), "here")), "");
    let other = LocalWorkload { service_account: "other".into(), ..local("a") };
    assert_eq!(uid(snapshot.local_workload(&other, "here")), "");
}

#[test]
fn a_virtual_address_is_resolved_for_the_client() {
    let exact = |namespace: &str, hostname: &str, canonical, visibility| {
        put_service(Service {
            vips: vec![("".into(), ip("10.1.0.1"))],
            canonical,
            visibility,
            ..service(namespace, hostname)
        })
    };
    let snapshot = build([
        exact("a", "z.a", true, Visibility::Public),
        exact("a", "b.a", false, Visibility::Public),
        exact("b", "own.b", false, Visibility::Namespace),
        exact("c", "c.c", true, Visibility::Namespace),
        put_service(Service { cidr_vips: vec![("".into(), net("10.1.0.0/16"))], ..service("d", "wide") }),
        put_service(Service { cidr_vips: vec![("".into(), net("10.1.0.0/24"))], ..service("e", "narrow") }),
        put_service(Service { cidr_vips: vec![("".into(), net("10.1.9.9/32"))], ..service("e", "single") }),
        put_service(Service { cidr_vips: vec![("".into(), net("::/0"))], ..service("e", "six") }),
        put_service(Service {
            cidr_vips: vec![("".into(), net("10.1.0.0/28"))],
            visibility: Visibility::Namespace,
            ..service("f", "hidden")
        }),
    ]);
    for (address, client, want) in [
        ("10.1.0.1", "x", "a/z.a"),
        ("10.1.0.1", "a", "a/z.a"),
        ("10.1.0.1", "b", "b/own.b"),
        ("10.1.0.1", "c", "c/c.c"),
        ("::ffff:10.1.0.1", "c", "c/c.c"),
        ("10.1.0.2", "x", "e/narrow"),
        ("10.1.0.2", "d", "d/wide"),
        ("10.1.0.2", "f", "f/hidden"),
        ("10.1.7.1", "x", "d/wide"),
        ("10.1.9.9", "d", "e/single"),
        ("10.2.0.1", "x", ""),
        ("2001:db8::1", "x", "e/six"),
    ] {
        assert_eq!(host(snapshot.service("", ip(address), client)), want, "{address} from {client}");
        assert_eq!(host(snapshot.service("other", ip(address), client)), "", "{address} in another network");
    }
    let hidden = build([exact("b", "own.b", false, Visibility::Namespace)]);
    assert_eq!(host(hidden.service("", ip("10.1.0.1"), "a")), "");
}

#[test]
fn a_host_name_has_no_case_and_no_trailing_dot() {
    let hidden = Service { visibility: Visibility::Namespace, ..service("b", "Web.example") };
    let snapshot = build([put_service(service("a", "web.Example.")), put_service(hidden)]);
    for (name, client, want) in [
        ("web.example", "x", "a/web.Example."),
        ("WEB.example.", "a", "a/web.Example."),
        ("web.example", "b", "b/Web.example"),
        ("web.example..", "x", ""),
        ("", "x", ""),
    ] {
        assert_eq!(host(snapshot.service_by_host(name, client)), want, "{name} from {client}");
    }
}

#[test]
fn endpoints_follow_workloads_and_services_whoever_comes_first() {
    let member = |uid: &str, status| {
        let services = BTreeMap::from([(key("a", "web"), BTreeMap::from([(80, 1)]))]);
        put(Workload { services: Arc::new(services), status, ..workload(uid) })
    };
    let explicit = |uid: &str| ExplicitEndpoint {
        workload_uid: uid.into(),
        ports: BTreeMap::from([(80, 2)]),
        status: Health::Unhealthy,
    };
    let with_explicit = Change::PutService(Arc::new(ServiceSpec {
        service: Arc::new(service("a", "web")),
        endpoints: vec![explicit("m2"), explicit("plain"), explicit("unknown")],
    }));
    let get = |snapshot: &Snapshot| Arc::clone(snapshot.service_by_key("a", "web").unwrap());

    let staged = build([member("m2", Health::Terminating), member("m1", Health::Healthy), put(workload("plain"))]);
    assert_eq!(staged.service_count(), 0);
    assert_eq!(staged.undefined_services().collect::<Vec<_>>(), [&key("a", "web")]);

    let defined = edit(&staged, [with_explicit]);
    assert_eq!(endpoints(&get(&defined)), ["m1", "m2", "plain"]);
    let statuses: Vec<Health> = get(&defined).endpoints.iter().map(|endpoint| endpoint.status).collect();
    assert_eq!(statuses, [Health::Healthy, Health::Terminating, Health::Unhealthy], "a workload's own word counts");
    assert_eq!(get(&defined).endpoints[2].ports, BTreeMap::from([(80, 2)]));
    assert_eq!(defined.undefined_services().count(), 0);
    assert_eq!(defined.undefined_workloads().count(), 1);

    // The workload stops naming the service: the explicit endpoint takes its place.
    let stopped = edit(&defined, [put(workload("m2"))]);
    assert_eq!(get(&stopped).endpoints[1].status, Health::Unhealthy);
    assert_eq!(endpoints(&get(&stopped)), ["m1", "m2", "plain"]);

    let later = edit(&stopped, [put(workload("unknown"))]);
    assert_eq!(endpoints(&get(&later)), ["m1", "m2", "plain", "unknown"]);

    let gone = edit(&later, [Change::RemoveService(key("a", "web"))]);
    assert_eq!(gone.service_count(), 0);
    let again = edit(&gone, [put_service(service("a", "web"))]);
    assert_eq!(endpoints(&get(&again)), ["m1"]);
    assert_eq!(again.undefined_workloads().count(), 0);
}

fn policy(namespace: &str, name: &str, scope: Scope) -> Change {
    let (action, rules) = (crate::mesh::policy::Action::Deny, Vec::new());
    let key = PolicyKey::new(namespace, name);
    Change::PutPolicy(Arc::new(Policy { key, scope, action, dry_run: false, rules }))
}

fn shown(view: &PolicyView) -> Vec<&str> {
    view.policies().iter().map(|it| it.key.as_str()).collect()
}

#[test]
fn another_scope_moves_a_policy_between_the_indexes() {
    let listing = Arc::new(Workload { authorization_policies: Arc::new(["a/p".into()]), ..workload("lists") });
    let other = Arc::new(Workload { namespace: "a".into(), ..workload("other") });
    let mut snapshot = build([Change::PutWorkload(Arc::clone(&listing)), Change::PutWorkload(Arc::clone(&other))]);
    for (scope, lists, others) in [
        (Scope::Global, vec!["a/p"], vec!["a/p"]),
        (Scope::Namespace, vec!["a/p"], vec!["a/p"]),
        (Scope::WorkloadSelector, vec!["a/p"], vec![]),
        (Scope::Global, vec!["a/p"], vec!["a/p"]),
        (Scope::WorkloadSelector, vec!["a/p"], vec![]),
    ] {
        snapshot = edit(&snapshot, [policy("a", "p", scope)]);
        assert_eq!(shown(&snapshot.policies_for(&listing)), lists, "{scope:?}");
        assert_eq!(shown(&snapshot.policies_for(&other)), others, "{scope:?}");
        let in_global = snapshot.policies_for(&workload("far")).policies().len();
        assert_eq!(in_global, usize::from(scope == Scope::Global), "{scope:?}");
    }
    snapshot = edit(&snapshot, [Change::RemovePolicy(PolicyKey::new("a", "p"))]);
    assert!(snapshot.policies_for(&other).is_empty());
    let missing: Vec<String> = snapshot.missing_policies().map(|(uid, key)| format!("{uid} {key}")).collect();
    assert_eq!(missing, ["lists a/p"]);
    assert_eq!(snapshot.policies_for(&listing).missing(), [PolicyKey::new("a", "p")]);
    snapshot = edit(&snapshot, [Change::RemoveWorkload("lists".into())]);
    assert_eq!(snapshot.policies.sizes(), [0; 5]);
}

/// A worker looks at its connections again when its workload's policies are not the same; for no other reason.
#[test]
fn only_what_concerns_a_workload_changes_its_view() {
    let lists = |uid: &str, key: &str| Workload { authorization_policies: Arc::new([key.into()]), ..workload(uid) };
    let watched = Arc::new(lists("watched", "x/p"));
    let before = build([
        Change::PutWorkload(Arc::clone(&watched)),
        put(lists("twin", "x/p")),
        put(lists("other", "x/q")),
        policy("x", "p", Scope::WorkloadSelector),
        policy("x", "q", Scope::WorkloadSelector),
        policy("default", "d", Scope::Namespace),
        policy("root", "g", Scope::Global),
    ]);
    let view = before.policies_for(&watched);
    assert_eq!(shown(&view), ["default/d", "root/g", "x/p"]);
    let same = |changes: Vec<Change>| edit(&before, changes).policies_for(&watched).same_as(&view);
    for (what, want, changes) in [
        ("nothing", true, vec![]),
        ("a policy of another list", true, vec![policy("x", "q", Scope::WorkloadSelector)]),
        ("a policy of another namespace", true, vec![policy("b", "d", Scope::Namespace)]),
        ("another workload", true, vec![put(lists("other", "x/p"))]),
        ("the twin leaves", true, vec![Change::RemoveWorkload("twin".into())]),
        (
            "the workload itself, with the same list",
            true,
            vec![put(Workload { capacity: 7, ..lists("watched", "x/p") })],
        ),
        (
            "all who have the list leave and come",
            true,
            vec![
                Change::RemoveWorkload("twin".into()),
                Change::RemoveWorkload("watched".into()),
                put(lists("watched", "x/p")),
            ],
        ),
        ("its policy", false, vec![policy("x", "p", Scope::WorkloadSelector)]),
        ("its policy leaves", false, vec![Change::RemovePolicy(PolicyKey::new("x", "p"))]),
        ("one of its namespace", false, vec![policy("default", "e", Scope::Namespace)]),
        ("one of all", false, vec![Change::RemovePolicy(PolicyKey::new("root", "g"))]),
    ] {
        assert_eq!(same(changes), want, "{what}");
    }
}

/// A change costs the change: everything else is the same memory as before.
#[test]
fn one_change_among_many_shares_the_rest() {
    const SERVICES: usize = 1_000;
    const WORKLOADS: usize = 100_000;
    let hostname = |n: usize| format!("s{n}.example");
    let member = |n: usize, capacity: u32| Workload {
        ips: vec![IpAddr::from(u32::try_from(n).unwrap().to_be_bytes())],
        services: Arc::new(BTreeMap::from([(key("a", &hostname(n % SERVICES)), BTreeMap::new())])),
        capacity,
        ..workload(&format!("u{n:06}"))
    };
    let services = (0..SERVICES).map(|n| {
        put_service(Service {
            vips: vec![("".into(), IpAddr::from([11, 0, n.to_be_bytes()[6], n.to_be_bytes()[7]]))],
            ..service("a", &hostname(n))
        })
    });
    let before = build(services.chain((0..WORKLOADS).map(|n| put(member(n, 1)))));
    let after = edit(&before, [put(member(4_321, 7))]);

    assert_eq!(after.generation(), before.generation() + 1);
    let state = |snapshot: &Snapshot, n: usize| Arc::clone(snapshot.service_by_key("a", &hostname(n)).unwrap());
    for n in 0..SERVICES {
        assert_eq!(Arc::ptr_eq(&state(&before, n), &state(&after, n)), n != 321, "service {n}");
    }
    let (old, new) = (state(&before, 321), state(&after, 321));
    assert_eq!(new.endpoints.len(), WORKLOADS / SERVICES);
    let changed = old.endpoints.iter().zip(&new.endpoints).filter(|(old, new)| !Arc::ptr_eq(old, new)).count();
    assert_eq!(changed, 1, "the other endpoints are shared");
    let replaced = before.workloads().filter(|old| !Arc::ptr_eq(old, after.workload_by_uid(&old.uid).unwrap()));
    assert_eq!(replaced.count(), 1);
    assert!(before.tables.specs.ptr_eq(&after.tables.specs));
    assert!(before.index.shares_services_with(&after.index));

    let same = edit(&after, []);
    assert!(same.tables.workloads.ptr_eq(&after.tables.workloads));
    assert!(same.tables.services.ptr_eq(&after.tables.services));
}

// ---- any sequence of edits leads to what building from scratch leads to, and to what plain searching finds ----

const NAMESPACES: [&str; 3] = ["a", "b", "c"];
const NETWORKS: [&str; 2] = ["", "n"];
const ADDRESSES: [&str; 5] = ["10.0.0.1", "10.0.0.2", "10.0.1.1", "fd00::1", "fd00::2"];
const RANGES: [&str; 6] = ["10.0.0.0/24", "10.0.0.0/8", "10.0.0.1/32", "fd00::/64", "::/0", "0.0.0.0/0"];
const HOSTS: [&str; 4] = ["x.example", "X.example", "y.example", "z.example."];
const LISTS: [&[&str]; 5] = [&[], &["a/p"], &["a/p", "b/q"], &["b/q", "a/p", "b/q"], &["c/never", "b/r"]];
const UIDS: [&str; 6] = ["c//Pod/a", "c//Pod/b", "v1", "v2", "v3", "v4"];

fn any_key() -> impl Strategy<Value = ServiceKey> {
    (0..NAMESPACES.len(), 0..HOSTS.len()).prop_map(|(n, h)| key(NAMESPACES[n], HOSTS[h]))
}

fn any_workload() -> impl Strategy<Value = Arc<Workload>> {
    let place = (0..UIDS.len(), 0..NETWORKS.len(), prop::collection::vec(0..ADDRESSES.len(), 0..3));
    let services = prop::collection::btree_map(any_key(), Just(BTreeMap::from([(80_u16, 1_u16)])), 0..4);
    let names = (0..2_usize, 0..3_usize, prop::sample::select(&LISTS[..]));
    let kind = (any::<bool>(), any::<bool>(), 0..3_u8, names, 0..2_u32);
    (place, services, kind).prop_map(
        |((u, n, ips), services, (hbone, host, status, (name, namespace, lists), capacity))| {
            let mut ips: Vec<IpAddr> = ips.into_iter().map(|at| ip(ADDRESSES[at])).collect();
            ips.dedup();
            Arc::new(Workload {
                network: NETWORKS[n].into(),
                name: ["", "w"][name].into(),
                hostname: ["", "x.example", "X.example."][usize::from(status)].into(),
                namespace: NAMESPACES[namespace].into(),
                ips,
                services: Arc::new(services),
                authorization_policies: lists.iter().map(|key| (*key).into()).collect(),
                capacity,
                protocol: if hbone { Protocol::Hbone } else { Protocol::Tcp },
                network_mode: if host { NetworkMode::HostNetwork } else { NetworkMode::Standard },
                status: [Health::Healthy, Health::Unhealthy, Health::Terminating][usize::from(status)],
                ..workload(UIDS[u])
            })
        },
    )
}

fn any_spec() -> impl Strategy<Value = Arc<ServiceSpec>> {
    let vips = prop::collection::vec((0..NETWORKS.len(), 0..ADDRESSES.len()), 0..3);
    let cidrs = prop::collection::vec((0..NETWORKS.len(), 0..RANGES.len()), 0..3);
    let explicit = prop::collection::btree_set(0..UIDS.len(), 0..3);
    (any_key(), vips, cidrs, explicit, any::<bool>(), any::<bool>()).prop_map(
        |(key, vips, cidrs, explicit, canonical, public)| {
            let service = Service {
                vips: vips.into_iter().map(|(n, a)| (NETWORKS[n].into(), ip(ADDRESSES[a]))).collect(),
                cidr_vips: cidrs.into_iter().map(|(n, r)| (NETWORKS[n].into(), net(RANGES[r]))).collect(),
                canonical,
                visibility: if public { Visibility::Public } else { Visibility::Namespace },
                ..service(&key.namespace, &key.hostname)
            };
            let mut endpoints: Vec<ExplicitEndpoint> = explicit
                .into_iter()
                .map(|u| ExplicitEndpoint {
                    workload_uid: UIDS[u].into(),
                    ports: BTreeMap::from([(80, 2)]),
                    status: Health::Unhealthy,
                })
                .collect();
            endpoints.sort_by(|a, b| a.workload_uid.cmp(&b.workload_uid));
            Arc::new(ServiceSpec { service: Arc::new(service), endpoints })
        },
    )
}

fn any_change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => any_workload().prop_map(Change::PutWorkload),
        2 => (0..UIDS.len()).prop_map(|u| Change::RemoveWorkload(UIDS[u].into())),
        4 => any_spec().prop_map(Change::PutService),
        2 => any_key().prop_map(Change::RemoveService),
        4 => any_policy().prop_map(|policy| Change::PutPolicy(Arc::new(policy))),
        2 => any_policy().prop_map(|policy| Change::RemovePolicy(policy.key)),
    ]
}

#[derive(Default)]
struct Model {
    workloads: BTreeMap<Arc<str>, Arc<Workload>>,
    specs: BTreeMap<ServiceKey, Arc<ServiceSpec>>,
    policies: BTreeMap<PolicyKey, Arc<Policy>>,
}

impl Model {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::PutWorkload(workload) => drop(self.workloads.insert(workload.uid.clone(), workload.clone())),
            Change::RemoveWorkload(uid) => drop(self.workloads.remove(uid)),
            Change::PutService(spec) => drop(self.specs.insert(spec.key().clone(), spec.clone())),
            Change::RemoveService(key) => drop(self.specs.remove(key)),
            Change::PutPolicy(policy) => drop(self.policies.insert(policy.key.clone(), policy.clone())),
            Change::RemovePolicy(key) => drop(self.policies.remove(key)),
        }
    }

    fn changes(&self) -> impl Iterator<Item = Change> {
        let workloads = self.workloads.values().cloned().map(Change::PutWorkload);
        let policies = self.policies.values().cloned().map(Change::PutPolicy);
        workloads.chain(self.specs.values().cloned().map(Change::PutService)).chain(policies)
    }

    /// The policies that concern a workload, and the keys that it lists for nothing.
    fn policies<'a>(&'a self, workload: &'a Workload) -> (Vec<&'a Arc<Policy>>, Vec<&'a str>) {
        let listed = |key: &str| workload.authorization_policies.iter().any(|it| **it == *key);
        let concerns = |it: &&Arc<Policy>| match it.scope {
            Scope::Global => true,
            Scope::Namespace => it.key.namespace() == &*workload.namespace || listed(it.key.as_str()),
            Scope::WorkloadSelector => listed(it.key.as_str()),
        };
        let lists = workload.authorization_policies.iter().map(|key| &**key);
        let missing: std::collections::BTreeSet<&str> = lists.filter(|key| !self.policies.contains_key(*key)).collect();
        (self.policies.values().filter(concerns).collect(), missing.into_iter().collect())
    }

    fn endpoints(&self, key: &ServiceKey) -> Vec<(Arc<str>, u16, Health)> {
        let of = |workload: &Arc<Workload>| {
            let own = workload.services.get(key).map(|ports| (ports[&80], workload.status));
            let explicit = || self.specs[key].endpoints.iter().find(|it| it.workload_uid == workload.uid);
            let (port, status) = own.or_else(|| explicit().map(|it| (it.ports[&80], it.status)))?;
            Some((workload.uid.clone(), port, status))
        };
        self.workloads.values().filter_map(of).collect()
    }

    fn workload(&self, network: &str, ip: IpAddr) -> &str {
        let here = self
            .workloads
            .values()
            .filter(|it| it.network_mode == NetworkMode::Standard && &*it.network == network && it.ips.contains(&ip));
        let rank = |it: &&Arc<Workload>| (!it.uid.contains("//Pod/"), it.protocol != Protocol::Hbone, it.uid.clone());
        here.min_by_key(rank).map_or("", |it| &it.uid)
    }

    fn service(&self, network: &str, ip: IpAddr, client: &str) -> String {
        let visible = || {
            self.specs
                .values()
                .map(|spec| &spec.service)
                .filter(|it| it.visibility == Visibility::Public || &*it.key.namespace == client)
        };
        let foreign = |it: &Service| &*it.key.namespace != client;
        let full = |range: &IpNet| range.prefix_len() == range.max_prefix_len();
        let exact = visible().filter(|it| {
            it.vips.iter().any(|(n, vip)| &**n == network && *vip == ip)
                || it.cidr_vips.iter().any(|(n, range)| &**n == network && full(range) && range.addr() == ip)
        });
        let best = exact.min_by_key(|it| (foreign(it), !it.canonical, it.key.clone()));
        let ranges = visible().flat_map(|it| {
            let inside = it.cidr_vips.iter().filter(|(n, range)| &**n == network && range.contains(&ip));
            inside.map(move |(_, range)| (it, range.prefix_len()))
        });
        let by_range =
            || ranges.min_by_key(|(it, length)| (foreign(it), u8::MAX - length, !it.canonical, it.key.clone()));
        best.or_else(|| by_range().map(|(it, _)| it)).map_or_else(String::new, |it| it.key.to_string())
    }
}

fn check(snapshot: &Snapshot, model: &Model) -> Result<(), TestCaseError> {
    prop_assert_eq!(snapshot.workload_count(), model.workloads.len());
    prop_assert_eq!(snapshot.service_count(), model.specs.len());
    for (uid, workload) in &model.workloads {
        prop_assert!(Arc::ptr_eq(snapshot.workload_by_uid(uid).unwrap(), workload));
    }
    for (key, spec) in &model.specs {
        let state = snapshot.service_by_key(&key.namespace, &key.hostname).unwrap();
        prop_assert!(Arc::ptr_eq(&state.service, &spec.service));
        let got: Vec<_> =
            state.endpoints.iter().map(|it| (it.workload.uid.clone(), it.ports[&80], it.status)).collect();
        prop_assert_eq!(got, model.endpoints(key));
        for endpoint in &state.endpoints {
            prop_assert!(Arc::ptr_eq(&endpoint.workload, &model.workloads[&endpoint.workload.uid]), "stale workload");
        }
    }
    prop_assert_eq!(snapshot.policy_count(), model.policies.len());
    let mut dangling = 0;
    for workload in model.workloads.values() {
        let view = snapshot.policies_for(workload);
        let (policies, missing) = model.policies(workload);
        prop_assert_eq!(view.policies(), policies);
        prop_assert_eq!(view.missing().iter().map(PolicyKey::as_str).collect::<Vec<_>>(), missing.clone());
        prop_assert!(view.same_as(&snapshot.policies_for(workload)), "kept, not made anew");
        // One that the state does not have is told the same.
        let stranger =
            Workload { authorization_policies: Arc::new(["b/s".into(), "c/none".into()]), ..Workload::clone(workload) };
        let view = snapshot.policies_for(&stranger);
        prop_assert_eq!(view.policies(), model.policies(&stranger).0);
        dangling += missing.len();
    }
    prop_assert_eq!(snapshot.missing_policies().count(), dangling);
    for network in NETWORKS {
        for address in ADDRESSES.map(ip) {
            prop_assert_eq!(uid(snapshot.workload(network, address)), model.workload(network, address));
            for client in NAMESPACES {
                let found = host(snapshot.service(network, address, client));
                prop_assert_eq!(found, model.service(network, address, client), "{} {}", address, client);
            }
        }
    }
    Ok(())
}

/// Everything that can be asked, so that two snapshots can be compared.
fn observe(snapshot: &Snapshot) -> String {
    let mut seen = Vec::new();
    for host_name in HOSTS {
        for client in NAMESPACES {
            seen.push(host(snapshot.service_by_host(host_name, client)));
        }
    }
    for namespace in NAMESPACES {
        for host_name in HOSTS {
            let found = snapshot.workload_by_hostname(namespace, host_name);
            assert!(found.is_none_or(|it| it.namespace == namespace.into() && !it.hostname.is_empty()));
            seen.push(uid(found).to_owned());
        }
        let local = LocalWorkload { name: "w".into(), namespace: namespace.into(), ..LocalWorkload::default() };
        seen.push(uid(snapshot.local_workload(&local, "")).to_owned());
    }
    let mut undefined: Vec<String> = snapshot.undefined_services().map(ToString::to_string).collect();
    undefined.extend(snapshot.undefined_workloads().map(|(key, uid)| format!("{key} {uid}")));
    undefined.sort();
    format!("{seen:?} {undefined:?} {:?} {:?}", snapshot.index.sizes(), snapshot.policies.sizes())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn edits_lead_to_the_same_state_as_building_anew(
        batches in prop::collection::vec(prop::collection::vec(any_change(), 0..8), 1..8)
    ) {
        let (mut snapshot, mut model) = (Snapshot::default(), Model::default());
        for batch in batches {
            batch.iter().for_each(|change| model.apply(change));
            snapshot = edit(&snapshot, batch);
            check(&snapshot, &model)?;
        }
        let scratch = build(model.changes());
        check(&scratch, &model)?;
        prop_assert_eq!(observe(&snapshot), observe(&scratch));
    }
}
