//! What is told of a connection, as text.

use super::*;
use crate::mesh::snapshot_of;

const WORLD: &str = "
workloads:
- { uid: me, name: me, namespace: shop, serviceAccount: cart, workloadIps: [10.0.0.1], locality: { zone: a } }
- { uid: near, name: near, namespace: shop, serviceAccount: pay, workloadIps: [10.0.0.2], protocol: HBONE, locality: { zone: a }, services: { shop/pay.test: {} } }
- { uid: far, name: far, namespace: shop, serviceAccount: pay, workloadIps: [10.0.0.3], locality: { zone: b }, services: { shop/pay.test: {} }, authorizationPolicies: [shop/closed] }
- { uid: ill, name: ill, namespace: shop, workloadIps: [10.0.0.4], status: Unhealthy, services: { shop/pay.test: {} } }
- { uid: away, name: away, namespace: shop, workloadIps: [10.0.0.5], waypoint: { destination: /10.0.0.99, hboneMtlsPort: 15008 } }
services:
- name: pay
  namespace: shop
  hostname: pay.test
  vips: [/10.96.0.1]
  ports: { 80: 8080 }
  loadBalancer: { mode: Failover, routingPreferences: [Zone] }
";

/// A state with these policies. They have no reader yet where this is built without one, so they are put in directly.
fn world() -> Arc<Snapshot> {
    use crate::mesh::policy::{Action, Clause, Group, Match, Policy, PolicyKey, Rule, Scope, StringMatch};
    use crate::mesh::{Change, SnapshotBuilder};
    let base = snapshot_of("mesh.yaml", WORLD).unwrap_or_else(|problems| panic!("{problems}"));
    let mut builder = SnapshotBuilder::new(&base);
    let principal = |name: &str| Match {
        principals: Group { any: vec![StringMatch::Exact(name.into())], none: Vec::new() },
        ..Match::default()
    };
    let rule = |one: Match| Rule { clauses: vec![Clause { matches: vec![one] }] };
    let policy = |name: &str, scope, action, rules| {
        let key = PolicyKey::new("shop", name);
        Change::PutPolicy(Arc::new(Policy { key, scope, action, dry_run: false, rules }))
    };
    let cart = "cluster.local/ns/shop/sa/cart";
    builder.apply(policy("allow-cart", Scope::Namespace, Action::Allow, vec![rule(principal(cart))]));
    builder.apply(policy("closed", Scope::WorkloadSelector, Action::Deny, vec![Rule::default()]));
    Arc::new(builder.finish())
}

fn asked(from: &str, to: &str, identity: Option<&str>) -> Explanation {
    let mut settings = Settings::default();
    settings.workload.name = "me".into();
    settings.workload.namespace = "shop".into();
    settings.workload.service_account = "cart".into();
    let query = Query {
        from: from.parse().expect("an address"),
        to: to.parse().expect("an address"),
        identity: identity.map(|id| id.parse().expect("an id")),
        now_ms: None,
    };
    explain(&world(), &settings, &query)
}

#[test]
fn a_workload_that_has_only_a_name_is_asked_for_what_the_name_stands_for() {
    let named = "
workloads:
- { uid: me, name: me, namespace: shop, workloadIps: [10.0.0.1] }
- { uid: db, name: db, namespace: shop, serviceAccount: db, workloadIps: [], hostname: db.example, protocol: HBONE, services: { shop/db.test: {} } }
services:
- { name: db, namespace: shop, hostname: db.test, vips: [/10.96.0.2], ports: { 5432: 5433 } }
";
    let snapshot = snapshot_of("mesh.yaml", named).unwrap_or_else(|problems| panic!("{problems}"));
    let query = Query::from_query_string("from=10.0.0.1&to=10.96.0.2:5432", 0).expect("a query");
    let told = explain(&snapshot, &Settings::default(), &query);
    let way = told.endpoints[0].way.as_deref().expect("a way");
    assert_eq!(
        way,
        "tunnel to db.example:15008 (a name, looked up when it is needed), asked for the address that is found, port 5433, \
         if it proves to be spiffe://cluster.local/ns/shop/sa/db"
    );
}

#[test]
fn a_service_its_endpoints_and_their_policies() {
    let told = asked("10.0.0.1", "10.96.0.1:80", None);
    assert_eq!(told.doors, ["outbound"]);
    assert_eq!(told.lookup, "service shop/pay.test, port 80 to 8080");
    let rows: Vec<_> = told.endpoints.iter().map(|row| (&*row.workload, row.group, row.may_be_chosen())).collect();
    assert_eq!(rows, [("far", Some(2), true), ("ill", None, false), ("near", Some(1), true)]);
    let excluded = told.endpoints[1].excluded.as_deref();
    assert_eq!(excluded, Some("unhealthy, and the service takes only healthy ones"));
    assert_eq!(told.endpoints[0].way.as_deref(), Some("in the clear to 10.0.0.3:8080"));
    let near = told.endpoints[2].way.as_deref().expect("a way");
    assert_eq!(
        near,
        "tunnel to 10.0.0.2:15008, asked for 10.0.0.2:8080, if it proves to be spiffe://cluster.local/ns/shop/sa/pay"
    );
    let far = told.arrivals.iter().find(|arrival| &*arrival.workload == "far").expect("an arrival");
    assert_eq!((far.by, far.identity.as_deref(), far.allowed), ("plaintext", None, false));
    assert_eq!(far.decision, "policy_denied: explicitly denied by: shop/closed");
    let near = told.arrivals.iter().find(|arrival| &*arrival.workload == "near").expect("an arrival");
    assert_eq!((near.by, near.allowed), ("tunnel", true));
    assert_eq!(near.decision, "allowed by: shop/allow-cart");
    assert_eq!(near.policies.len(), 1);
    assert_eq!(near.policies[0].why, "rule 1 matches");
    assert!(!told.verdict.allowed && told.verdict.why.starts_with("it depends on the endpoint: 1 of 2"), "{told}");
}

#[test]
fn an_identity_that_is_not_allowed() {
    let told = asked("10.0.0.1", "10.0.0.2:8080", Some("spiffe://cluster.local/ns/other/sa/x"));
    assert_eq!(told.verdict.why, "policy_denied: allow policies exist, but none allowed");
    let policies = &told.arrivals[0].policies;
    assert_eq!((policies[0].matched, &*policies[0].why), (false, "rule 1, clause 1: principals"));
}

#[test]
fn what_cannot_be_reached_and_what_is_unknown() {
    let told = asked("10.0.0.1", "10.0.0.5:80", None);
    assert_eq!(told.refused.as_ref().map(|refused| refused.reason), Some("waypoint_unavailable"));
    assert!(!told.verdict.allowed);
    let told = asked("10.0.0.1", "10.96.0.1:81", None);
    assert_eq!(told.refused.map(|refused| refused.reason), Some("no_service_port"));
    let told = asked("192.0.2.1", "192.0.2.2:443", None);
    assert!(told.doors.is_empty() && told.verdict.allowed && told.lookup.contains("passed through"), "{told}");
    let told = asked("192.0.2.1", "10.0.0.1:80", None);
    assert_eq!((told.doors, told.verdict.allowed), (vec!["inbound"], false), "nobody is not cart");
}

#[test]
fn questions_travel_as_text() {
    for text in ["from=10.0.0.1&to=10.0.0.2:80", "from=::1&to=[2001:db8::1]:80&identity=spiffe://a/ns/b/sa/c"] {
        let query = Query::from_query_string(text, 7).expect("a question");
        assert_eq!((&*query.to_query_string(), query.now_ms), (text, Some(7)));
    }
    for (text, want) in [
        ("to=10.0.0.2:80", "from is missing"),
        ("from=x&to=10.0.0.2:80", "from: expected IP or IP:PORT"),
        ("from=10.0.0.1&to=10.0.0.2", "to: expected IP:PORT"),
        ("frm=1", "frm: expected from, to and identity"),
    ] {
        assert_eq!(Query::from_query_string(text, 0).map(|_| ()).unwrap_err(), want);
    }
    assert!(Query::from_query_string("from=10.0.0.1&to=10.0.0.2:1&identity=x", 0).is_err());
}
