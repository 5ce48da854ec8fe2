//! Verdicts and their reasons, by tables and properties.

use std::fmt::Write as _;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::mesh::policy::fixture::{Peer, any_peer, any_policy};
use crate::mesh::policy::{Policy, Scope};
use crate::mesh::{Change, Snapshot, SnapshotBuilder, Workload, snapshot_of};

/// In namespace `a`, with what it lists.
fn workload(lists: &[&str]) -> Arc<Workload> {
    let text = format!("workloads: [{{name: w, namespace: a, workloadIps: [], authorizationPolicies: {lists:?}}}]");
    Arc::clone(snapshot_of("test", &text).unwrap().workload_by_uid("file//a/w").unwrap())
}

fn decided(view: &PolicyView, peer: &Peer, on_missing: OnMissing) -> String {
    let Decision { verdict, dry_run } = authorize(view, &peer.subject(), on_missing);
    let mut shown = match &verdict {
        Verdict::Allowed { by: None } => "allowed".to_owned(),
        Verdict::Allowed { by: Some(policy) } => format!("allowed by: {policy}"),
        Verdict::Denied(denial) => denial.to_string(),
    };
    dry_run.iter().for_each(|it| write!(shown, "; {it}").unwrap());
    let permitted = Decision { verdict: verdict.clone(), dry_run }.permit().is_ok();
    assert_eq!(permitted, matches!(verdict, Verdict::Allowed { .. }));
    shown
}

/// `D name port`: a DENY that matches the port, `A` an ALLOW, `*` any port, `-` without rules; small letters are dry runs.
fn policies(written: &str) -> String {
    let mut text = "policies:\n".to_owned();
    for one in written.split(", ").filter(|one| !one.is_empty()) {
        let [kind, name, port] = one.split(' ').collect::<Vec<_>>()[..] else { panic!("{one}") };
        let action = if kind.eq_ignore_ascii_case("d") { "Deny" } else { "Allow" };
        let dry_run = kind.chars().all(char::is_lowercase);
        let rules = match port {
            "*" => "[[]]".to_owned(),
            "-" => "[]".to_owned(),
            port => format!("[[[{{destinationPorts: [{port}]}}]]]"),
        };
        writeln!(
            text,
            "- {{name: {name}, namespace: a, scope: Namespace, action: {action}, dryRun: {dry_run}, rules: {rules}}}"
        )
        .unwrap();
    }
    if text.ends_with(":\n") { "policies: []".to_owned() } else { text }
}

/// A connection to port 80.
#[test]
fn deny_then_allow_and_dry_runs_change_nothing() {
    const NONE: &str = "allow policies exist, but none allowed";
    let rows = [
        ("", "allowed"),
        ("D p 80", "explicitly denied by: a/p"),
        ("D p 81", "allowed"),
        ("D p -", "allowed"),
        ("D p *", "explicitly denied by: a/p"),
        ("D q 80, D p 80", "explicitly denied by: a/p"),
        ("A p 80", "allowed by: a/p"),
        ("A q 80, A p 80", "allowed by: a/p"),
        ("A p 81", NONE),
        ("A p -", NONE),
        ("A p *", "allowed by: a/p"),
        ("A p 81, A q 80", "allowed by: a/q"),
        ("A p 80, D q 80", "explicitly denied by: a/q"),
        ("A p 80, D q 81", "allowed by: a/p"),
        ("A p 81, D q 81", NONE),
        ("A p *, D q *", "explicitly denied by: a/q"),
        ("d p 80", "allowed; would be denied by: a/p"),
        ("d p 81", "allowed"),
        ("d q 80, d p 80", "allowed; would be denied by: a/p; would be denied by: a/q"),
        ("d p 80, D q 80", "explicitly denied by: a/q; would be denied by: a/p"),
        ("d p 80, A q 80", "allowed by: a/q; would be denied by: a/p"),
        ("a p 80", "allowed; would be allowed by: a/p"),
        ("a p 81", "allowed; would be denied: allow policies exist, but none allowed"),
        ("a p -", "allowed; would be denied: allow policies exist, but none allowed"),
        ("a p 81, a q 80", "allowed; would be allowed by: a/q"),
        ("a p 80, A q 81", "allow policies exist, but none allowed; would be allowed by: a/p"),
        ("a p 81, A q 80", "allowed by: a/q"),
        ("a p 81, A q 81", NONE),
        ("a p 80, D q 80", "explicitly denied by: a/q"),
        ("a p 80, d q 80", "allowed; would be denied by: a/q; would be allowed by: a/p"),
    ];
    assert_eq!(rows.len(), 30);
    let peer = Peer::of("spiffe://td/ns/a/sa/x 10.0.0.1 10.0.0.2 80");
    for (written, want) in rows {
        let snapshot = snapshot_of(written, &policies(written)).unwrap_or_else(|problems| panic!("{problems}"));
        let view = snapshot.policies_for(&workload(&[]));
        assert_eq!(decided(&view, &peer, OnMissing::Deny), want, "{written}");
    }
}

#[test]
fn a_listed_policy_that_is_missing_denies_unless_it_is_to_be_ignored() {
    const MISSING: &str = "the policy b/gone, which the workload lists, does not exist";
    let rows = [
        ("", &["b/gone"][..], OnMissing::Deny, MISSING),
        ("", &["b/gone"][..], OnMissing::Ignore, "allowed"),
        ("A p 80", &["b/gone"][..], OnMissing::Deny, MISSING),
        ("A p 80", &["b/gone"][..], OnMissing::Ignore, "allowed by: a/p"),
        ("A p 81", &["b/gone"][..], OnMissing::Ignore, "allow policies exist, but none allowed"),
        ("D p 80", &["b/gone"][..], OnMissing::Deny, "explicitly denied by: a/p"),
        (
            "d p 80",
            &["b/gone", "a/p"][..],
            OnMissing::Deny,
            "the policy b/gone, which the workload lists, does not exist; would be denied by: a/p",
        ),
        ("A p 80", &["c/gone", "a/p", "b/gone"][..], OnMissing::Deny, MISSING),
        ("A p 80", &["a/p", "a/p"][..], OnMissing::Deny, "allowed by: a/p"),
    ];
    assert_eq!(rows.len(), 9);
    let peer = Peer::of("- 10.0.0.1 10.0.0.2 80");
    for (written, lists, on_missing, want) in rows {
        let snapshot = snapshot_of(written, &policies(written)).unwrap();
        let view = snapshot.policies_for(&workload(lists));
        assert_eq!(decided(&view, &peer, on_missing), want, "{written} {lists:?}");
    }
}

#[test]
fn a_denial_names_its_policy() {
    let key = PolicyKey::new("a", "p");
    assert_eq!(Denial::Explicit(key.clone()).policy(), Some(&key));
    assert_eq!(Denial::MissingPolicy(key.clone()).policy(), Some(&key));
    assert_eq!(Denial::NotAllowed.policy(), None);
}

fn snapshot(policies: impl IntoIterator<Item = Policy>, workload: &Arc<Workload>) -> Snapshot {
    let mut builder = SnapshotBuilder::new(&Snapshot::default());
    builder.apply(Change::PutWorkload(Arc::clone(workload)));
    policies.into_iter().for_each(|policy| builder.apply(Change::PutPolicy(Arc::new(policy))));
    builder.finish()
}

/// The decision word for word, by evaluating every policy that concerns the workload.
fn slow(policies: &[Policy], workload: &Workload, peer: &Peer, on_missing: OnMissing) -> Decision {
    let subject = peer.subject();
    let facts = Facts::of(&subject);
    let listed = |key: &PolicyKey| workload.authorization_policies.iter().any(|it| **it == *key.as_str());
    let concerns = |it: &&Policy| match it.scope {
        Scope::Global => true,
        Scope::Namespace => it.key.namespace() == &*workload.namespace || listed(&it.key),
        Scope::WorkloadSelector => listed(&it.key),
    };
    let mut concerned: Vec<&Policy> = policies.iter().filter(concerns).collect();
    concerned.sort_by(|a, b| a.key.cmp(&b.key));
    let of = |action, dry| concerned.iter().filter(move |it| (it.action, it.dry_run) == (action, dry));
    let matching = |action, dry| of(action, dry).filter(|it| it.matches(&facts)).map(|it| it.key.clone());
    let mut dry_run: Vec<DryRun> = Vec::new();
    let noted = |action| matching(action, true).map(move |policy| DryRun::Matched { policy, action });
    dry_run.extend(noted(Action::Deny));
    if let Some(policy) = matching(Action::Deny, false).next() {
        return Decision { verdict: Verdict::Denied(Denial::Explicit(policy)), dry_run };
    }
    let mut missing: Vec<&Arc<str>> = workload.authorization_policies.iter().collect();
    missing.retain(|key| policies.iter().all(|it| it.key.as_str() != &***key));
    missing.sort();
    if let (OnMissing::Deny, Some(key)) = (on_missing, missing.first()) {
        let denial = Denial::MissingPolicy(PolicyKey::from(Arc::clone(key)));
        return Decision { verdict: Verdict::Denied(denial), dry_run };
    }
    let enforced = of(Action::Allow, false).count() > 0;
    dry_run.extend(noted(Action::Allow));
    if !enforced && of(Action::Allow, true).count() > 0 && matching(Action::Allow, true).next().is_none() {
        dry_run.push(DryRun::NotAllowed);
    }
    let verdict = match matching(Action::Allow, false).next() {
        _ if !enforced => Verdict::Allowed { by: None },
        Some(policy) => Verdict::Allowed { by: Some(policy) },
        None => Verdict::Denied(Denial::NotAllowed),
    };
    Decision { verdict, dry_run }
}

/// One of each key.
fn any_policies(most: usize) -> impl Strategy<Value = Vec<Policy>> {
    prop::collection::vec(any_policy(), 0..most).prop_map(|mut policies| {
        policies.sort_by(|a, b| a.key.cmp(&b.key));
        policies.dedup_by(|a, b| a.key == b.key);
        policies
    })
}

fn any_workload() -> impl Strategy<Value = Arc<Workload>> {
    let keys = vec!["a/p", "a/q", "b/p", "b/r", "b/t", "c/gone"];
    prop::collection::vec(prop::sample::select(keys), 0..4).prop_map(|lists| workload(&lists))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn the_decision_is_what_all_policies_together_say(
        policies in any_policies(8), shuffled in any::<bool>(), workload in any_workload(),
        peers in prop::collection::vec(any_peer(), 1..6), ignore in any::<bool>(),
    ) {
        let on_missing = if ignore { OnMissing::Ignore } else { OnMissing::Deny };
        let mut order = policies.clone();
        if shuffled { order.reverse(); }
        let view = snapshot(order, &workload).policies_for(&workload);
        for peer in &peers {
            let want = slow(&policies, &workload, peer, on_missing);
            prop_assert_eq!(authorize(&view, &peer.subject(), on_missing), want);
        }
    }

    /// What a DENY refuses no ALLOW can open, and what a new ALLOW refuses it may only narrow where there was none.
    #[test]
    fn another_allow_opens_nothing_that_is_denied(
        policies in any_policies(8), added in any_policy(), workload in any_workload(), peer in any_peer(),
    ) {
        let before = authorize(&snapshot(policies.clone(), &workload).policies_for(&workload), &peer.subject(), OnMissing::Ignore);
        let added = Policy { key: PolicyKey::new("a", "z"), action: Action::Allow, dry_run: false, ..added };
        let more = policies.into_iter().chain([added]);
        let after = authorize(&snapshot(more, &workload).policies_for(&workload), &peer.subject(), OnMissing::Ignore);
        if let Verdict::Denied(Denial::Explicit(_)) = &before.verdict {
            prop_assert_eq!(&after.verdict, &before.verdict);
        }
        if let Verdict::Allowed { by: Some(_) } = &before.verdict {
            prop_assert!(after.permit().is_ok());
        }
    }

    /// A dry run never changes the verdict.
    #[test]
    fn a_dry_run_changes_no_verdict(policies in any_policies(8), workload in any_workload(), peer in any_peer()) {
        let enforced: Vec<Policy> = policies.iter().filter(|it| !it.dry_run).cloned().collect();
        let verdict = |policies: Vec<Policy>| {
            authorize(&snapshot(policies, &workload).policies_for(&workload), &peer.subject(), OnMissing::Ignore).verdict
        };
        prop_assert_eq!(verdict(policies), verdict(enforced));
    }
}
