//! Each clause of the policy format, by tables and against the same rules spelled out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::fixture::{Peer, any_peer, any_policy};
use super::index::RuleIndex;
use super::members::{Ranges, Texts};
use super::*;
use crate::mesh::snapshot_of;

/// Of a policy that is written so.
fn policy(rules: &str) -> Arc<Policy> {
    let text = format!(
        "policies:\n- {{name: p, namespace: n, scope: Global, action: Allow, dryRun: false, rules: {rules}}}\n"
    );
    let snapshot = snapshot_of(rules, &text).unwrap_or_else(|problems| panic!("{problems}"));
    Arc::clone(snapshot.policy("n/p").expect("a policy"))
}

fn peers() -> [(&'static str, Peer); 5] {
    [
        ("x", "spiffe://td/ns/a/sa/x 10.0.0.1 10.1.0.1 80"),
        ("y", "spiffe://td/ns/b/sa/y 10.0.1.1 10.1.0.1 80"),
        ("none", "- ::ffff:10.0.0.1 10.1.0.1 80"),
        ("web", "spiffe://td/web 10.0.0.9 10.1.0.1 80"),
        ("six", "spiffe://td/ns/a/sa/x fd00::1 fd00::2 443"),
    ]
    .map(|(name, text)| (name, Peer::of(text)))
}

/// Who of them matches, word for word and compiled.
fn matching(policy: &Arc<Policy>) -> String {
    let compiled = Compiled::new(Arc::clone(policy));
    let set = PolicySet::new(vec![Arc::new(Compiled::new(Arc::clone(policy)))]);
    let peers = peers();
    let matched = peers.iter().filter(|(name, peer)| {
        let facts = Facts::of(&peer.subject());
        let matches = policy.matches(&facts);
        assert_eq!(compiled.rules.iter().any(|rule| rule.matches(&facts)), matches, "{name} compiled: {policy:?}");
        assert_eq!(set.first(policy.action, &facts).is_some(), matches, "{name} indexed: {policy:?}");
        matches
    });
    matched.map(|(name, _)| *name).collect::<Vec<_>>().join(" ")
}

fn assert_table<const ROWS: usize>(rows: [(&str, &str); ROWS], rules: impl Fn(&str) -> String) {
    for (written, want) in rows {
        assert_eq!(matching(&policy(&rules(written))), want, "{written}");
    }
}

/// Every attribute, wanted and unwanted, with and without an identity.
#[test]
fn each_list_of_a_match() {
    let rows = [
        ("namespaces: [{exact: a}]", "x six"),
        ("namespaces: [{exact: b}, {exact: a}]", "x y six"),
        ("namespaces: [{prefix: a}]", "x six"),
        ("namespaces: [{suffix: b}]", "y"),
        ("namespaces: [{presence: []}]", "x y six"),
        ("notNamespaces: [{exact: a}]", "y none web"),
        ("notNamespaces: [{exact: a}, {prefix: b}]", "none web"),
        ("notNamespaces: [{presence: []}]", "none web"),
        ("serviceAccounts: [{namespace: a, serviceAccount: x}]", "x six"),
        ("serviceAccounts: [{namespace: a, serviceAccount: y}]", ""),
        ("serviceAccounts: [{namespace: b, serviceAccount: y}, {namespace: a, serviceAccount: x}]", "x y six"),
        ("notServiceAccounts: [{namespace: a, serviceAccount: x}]", "y none web"),
        ("principals: [{exact: td/ns/a/sa/x}]", "x six"),
        ("principals: [{exact: other/ns/a/sa/x}]", ""),
        ("principals: [{exact: td/web}]", "web"),
        ("principals: [{prefix: td/}]", "x y web six"),
        ("principals: [{suffix: /sa/y}]", "y"),
        ("principals: [{presence: []}]", "x y web six"),
        ("notPrincipals: [{exact: td/ns/a/sa/x}]", "y none web"),
        ("notPrincipals: [{prefix: td/ns/}]", "none web"),
        ("notPrincipals: [{presence: []}]", "none"),
        ("sourceIps: [10.0.0.0/24]", "x none web"),
        ("sourceIps: [10.0.0.1/32]", "x none"),
        ("sourceIps: [0.0.0.0/0]", "x y none web"),
        ("sourceIps: [10.0.0.0/8, 'fd00::/64']", "x y none web six"),
        ("sourceIps: ['::/0']", "six"),
        ("notSourceIps: [10.0.0.0/24]", "y six"),
        ("notSourceIps: ['::/0']", "x y none web"),
        ("destinationIps: [10.1.0.0/16]", "x y none web"),
        ("destinationIps: [10.1.0.2/32, 'fd00::2/128']", "six"),
        ("notDestinationIps: [10.1.0.1/32]", "six"),
        ("destinationPorts: [80]", "x y none web"),
        ("destinationPorts: [443, 80]", "x y none web six"),
        ("notDestinationPorts: [80]", "six"),
        ("notDestinationPorts: [9999]", "x y none web six"),
        // Groups are joined by AND, and the two lists of a group.
        ("namespaces: [{exact: a}], destinationPorts: [80]", "x"),
        ("namespaces: [{exact: a}], notNamespaces: [{exact: a}]", ""),
        ("principals: [{presence: []}], notPrincipals: [{suffix: x}], sourceIps: [10.0.0.0/16]", "y web"),
        ("notNamespaces: [{exact: b}], notSourceIps: ['::/0'], destinationPorts: [80]", "x none web"),
        // An empty list says nothing.
        ("namespaces: [], destinationPorts: [443]", "six"),
        ("namespaces: [], notPrincipals: []", ""),
        ("", ""),
    ];
    assert_eq!(rows.len() * peers().len(), 210);
    assert_table(rows, |one| format!("[[[{{{one}}}]]]"));
}

#[test]
fn rules_clauses_and_matches_nest() {
    let rows = [
        ("[]", ""),
        ("[[]]", "x y none web six"),
        ("[[[]]]", "x y none web six"),
        ("[[[], []]]", "x y none web six"),
        ("[[[{}]]]", ""),
        ("[[[{}, {}]]]", ""),
        ("[[[], [{}]]]", ""),
        ("[[[{}]], []]", "x y none web six"),
        ("[[[{}, {destinationPorts: [443]}]]]", "six"),
        ("[[[{namespaces: [{exact: a}]}, {namespaces: [{exact: b}]}], [{destinationPorts: [80]}]]]", "x y"),
        ("[[[{namespaces: [{exact: a}]}], [{namespaces: [{exact: b}]}]]]", ""),
        ("[[[{namespaces: [{exact: b}]}]], [[{destinationPorts: [443]}]]]", "y six"),
    ];
    assert_eq!(rows.len() * peers().len(), 60);
    assert_table(rows, str::to_owned);
}

#[test]
fn text_is_compared_in_four_ways() {
    use StringMatch::{Exact, Prefix, Presence, Suffix};
    let rows: [(StringMatch, &str, bool); 14] = [
        (Exact("abc".into()), "abc", true),
        (Exact("abc".into()), "abcd", false),
        (Exact("abc".into()), "", false),
        (Prefix("abc".into()), "abcd", true),
        (Prefix("abc".into()), "ab", false),
        (Prefix("abc".into()), "", false),
        (Suffix("abc".into()), "0abc", true),
        (Suffix("abc".into()), "bc", false),
        (Suffix("abc".into()), "", false),
        (Presence, "a", true),
        (Presence, "", false),
        (Exact("".into()), "", true),
        (Prefix("".into()), "", true),
        (Suffix("".into()), "a", true),
    ];
    for (matcher, text, want) in rows {
        assert_eq!(matcher.matches(text), want, "{matcher:?} {text:?}");
        assert_eq!(Texts::of(std::slice::from_ref(&matcher)).has(text), want, "{matcher:?} {text:?}");
    }
}

#[test]
fn each_list_of_a_match_says_for_itself_whether_it_holds() {
    let policy = policy("[[[{namespaces: [{exact: a}], notNamespaces: [{exact: b}], destinationPorts: [80]}]]]");
    let peer = Peer::of("spiffe://td/ns/b/sa/y 10.0.0.1 10.0.0.2 80");
    let checks: Vec<Check> = policy.rules[0].clauses[0].matches[0].checks(&Facts::of(&peer.subject())).collect();
    let shown: Vec<(&str, bool)> = checks.iter().map(|check| (check.key, check.holds)).collect();
    assert_eq!(shown, [("namespaces", false), ("notNamespaces", false), ("destinationPorts", true)]);
}

#[test]
fn a_key_is_two_names_and_any_text_is_a_key() {
    for (text, namespace, name) in [("a/b", "a", "b"), ("a/b/c", "a", "b/c"), ("a", "", "a"), ("", "", "")] {
        let key = PolicyKey::from(Arc::<str>::from(text));
        assert_eq!((key.namespace(), key.name(), key.as_str()), (namespace, name, text));
    }
    assert_eq!(PolicyKey::new("a", "b").to_string(), "a/b");
}

/// What is evaluated of many policies that are about other things.
fn candidates(policies: &[Arc<Policy>], peer: &Peer) -> usize {
    let rules: Vec<&Rule> = policies.iter().flat_map(|policy| &policy.rules).collect();
    let mut count = 0;
    RuleIndex::new(&rules).candidates(&Facts::of(&peer.subject()), |numbers| count += numbers.len());
    count
}

/// One thing that tells each policy from the others, and one that they share.
fn told_apart_by(what: &str, n: u32) -> Match {
    let exact = |text: String| StringMatch::Exact(text.into());
    let mut it = Match::default();
    match what {
        "accounts" => {
            it.service_accounts.any = vec![ServiceAccount { namespace: format!("n{n}").into(), name: "a".into() }];
            it.destination_ports.any = vec![80];
        }
        "principals" => {
            it.principals.any = vec![exact(format!("td/ns/n{n}/sa/a")), exact(format!("td/ns/m{n}/sa/a"))];
            it.destination_ports.none = vec![1];
        }
        "prefixes" => {
            it.principals.any = vec![StringMatch::Prefix(format!("td/ns/n{n}/").into())];
            it.destination_ips.any = vec!["10.0.0.0/8".parse().unwrap()];
        }
        "suffixes" => {
            it.namespaces.any = vec![StringMatch::Suffix(format!("n{n}").into())];
            it.source_ips.any = vec!["0.0.0.0/0".parse().unwrap()];
        }
        "ranges" => {
            it.source_ips.any = vec![format!("10.{}.{}.0/24", n / 256, n % 256).parse().unwrap()];
            it.namespaces.any = vec![StringMatch::Presence];
        }
        _ => {
            it.destination_ports.any = vec![u16::try_from(n + 1).unwrap()];
            it.principals.any = vec![StringMatch::Presence];
        }
    }
    it
}

/// A decision does not look at what it cannot be about, whatever the policies tell each other apart by.
#[test]
fn ten_thousand_policies_are_not_compared_one_by_one() {
    for what in ["accounts", "principals", "prefixes", "suffixes", "ranges", "ports"] {
        let policy = |n: u32| {
            Arc::new(Policy {
                key: PolicyKey::new("n", &format!("p{n}")),
                scope: Scope::Namespace,
                action: Action::Allow,
                dry_run: false,
                rules: vec![Rule { clauses: vec![Clause { matches: vec![told_apart_by(what, n)] }] }],
            })
        };
        let policies: Vec<Arc<Policy>> = (0..10_000).map(policy).collect();
        let peer = Peer::of("spiffe://td/ns/n79/sa/a 10.0.79.1 10.0.0.2 80");
        assert_eq!(candidates(&policies, &peer), 1, "{what}");

        let set = PolicySet::new(policies.into_iter().map(|it| Arc::new(Compiled::new(it))).collect());
        let start = Instant::now();
        for _ in 0..1_000 {
            let found = set.first(Action::Allow, &Facts::of(&peer.subject()));
            assert_eq!(found.map(PolicyKey::as_str), Some("n/p79"), "{what}");
        }
        // Not a measurement: comparing with each would take a hundred times as long.
        assert!(start.elapsed() < Duration::from_secs(2), "{what}: {:?} for 1,000 decisions", start.elapsed());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// The index and the compiled lists find what evaluating each policy word for word finds. Few rules are not indexed: so
    /// there are sets of many, too.
    #[test]
    fn a_set_finds_what_its_policies_say(
        policies in prop_oneof![prop::collection::vec(any_policy(), 0..8), prop::collection::vec(any_policy(), 30..60)], peers in prop::collection::vec(any_peer(), 1..8)
    ) {
        let policies: BTreeMap<PolicyKey, Arc<Policy>> = (0..)
            .zip(policies)
            .map(|(n, it)| (PolicyKey::new(it.key.namespace(), &format!("{}-{n}", it.key.name())), it))
            .map(|(key, it)| (key.clone(), Arc::new(Policy { key, ..it })))
            .collect();
        let compiled = policies.values().rev().map(|it| Arc::new(Compiled::new(Arc::clone(it))));
        let set = PolicySet::new(compiled.collect());
        for peer in &peers {
            let facts = Facts::of(&peer.subject());
            for action in [Action::Allow, Action::Deny] {
                let of = |dry_run| policies.values().filter(move |it| (it.action, it.dry_run) == (action, dry_run));
                let matching = |dry_run| of(dry_run).filter(|it| it.matches(&facts)).map(|it| &it.key);
                prop_assert_eq!(set.first(action, &facts), matching(false).next());
                prop_assert_eq!(set.dry_run(action, &facts), matching(true).collect::<Vec<_>>());
                prop_assert_eq!([false, true].map(|dry| set.has(action, dry)), [false, true].map(|dry| of(dry).count() > 0));
            }
        }
    }

    /// Long lists are looked into as short ones are.
    #[test]
    fn a_list_of_texts_has_what_any_of_them_matches(
        list in prop::collection::vec(("[ab]{0,3}", 0..4_u8), 0..12), texts in prop::collection::vec("[ab]{0,5}", 1..12)
    ) {
        let list: Vec<StringMatch> = list.into_iter().map(|(text, kind)| match kind {
            0 => StringMatch::Exact(text.into()),
            1 => StringMatch::Prefix(text.into()),
            2 => StringMatch::Suffix(text.into()),
            _ => StringMatch::Presence,
        }).collect();
        let all = Texts::of(&list);
        for text in &texts {
            prop_assert_eq!(all.has(text), list.iter().any(|it| it.matches(text)), "{:?} {:?}", &list, text);
        }
    }

    #[test]
    fn a_list_of_ranges_has_what_any_of_them_contains(
        list in prop::collection::vec((any::<bool>(), 0..=32_u8, 0..64_u32), 0..12),
        ips in prop::collection::vec((any::<bool>(), 0..64_u32), 1..12)
    ) {
        let address = |v6: bool, n: u32| -> std::net::IpAddr {
            // The bits are spread, so that ranges nest.
            let bits = n.wrapping_mul(0x0410_4104);
            if v6 { std::net::Ipv6Addr::from_bits(u128::from(bits) << 96).into() } else { std::net::Ipv4Addr::from_bits(bits).into() }
        };
        let net = |(v6, length, n): &(bool, u8, u32)| IpNet::new(address(*v6, *n), *length).unwrap().trunc();
        let list: Vec<IpNet> = list.iter().map(net).collect();
        let all = Ranges::of(&list);
        for (v6, n) in ips {
            let ip = address(v6, n);
            prop_assert_eq!(all.has(ip), list.iter().any(|net| net.contains(&ip)), "{:?} {}", &list, ip);
        }
    }
}
