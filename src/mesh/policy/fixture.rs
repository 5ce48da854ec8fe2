//! For tests: policies and subjects from few words, so that they meet often.

use std::net::IpAddr;

use ipnet::IpNet;
use proptest::prelude::*;

use super::{Action, Clause, Group, Match, Policy, PolicyKey, Rule, Scope, ServiceAccount, StringMatch, Subject};
use crate::identity::SpiffeId;

const NAMESPACES: [&str; 4] = ["", "a", "ab", "b"];
const ACCOUNTS: [&str; 2] = ["x", "y"];
const PRINCIPALS: [&str; 7] = ["", "td/ns/a/sa/x", "td/ns/ab/sa/y", "td/", "td/ns/a", "/sa/x", "x"];
const RANGES: [&str; 7] = ["0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/24", "10.0.0.1/32", "10.0.1.0/24", "::/0", "fd00::/64"];
const PORTS: [u16; 3] = [80, 443, 9999];
const IDENTITIES: [&str; 6] = [
    "",
    "spiffe://td/ns/a/sa/x",
    "spiffe://td/ns/ab/sa/y",
    "spiffe://other/ns/a/sa/x",
    "spiffe://td/ns/b/sa/x",
    "spiffe://td/web",
];
const ADDRESSES: [&str; 5] = ["10.0.0.1", "::ffff:10.0.0.2", "10.0.1.1", "fd00::1", "192.0.2.1"];
/// Of policies.
const NAMES: [&str; 6] = ["p", "q", "r", "s", "t", "u"];

/// What a [`Subject`] borrows from.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) identity: Option<SpiffeId>,
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) port: u16,
}

impl Peer {
    /// `identity source destination port`; `-` for none.
    pub(crate) fn of(text: &str) -> Self {
        match text.split_whitespace().collect::<Vec<_>>().as_slice() {
            [identity, source, destination, port] => Self {
                identity: identity.parse().ok(),
                source: source.parse().unwrap(),
                destination: destination.parse().unwrap(),
                port: port.parse().unwrap(),
            },
            _ => panic!("{text}"),
        }
    }

    pub(crate) fn subject(&self) -> Subject<'_> {
        let Self { identity, source, destination, port } = self;
        Subject { identity: identity.as_ref(), source: *source, destination: *destination, port: *port }
    }
}

pub(crate) fn any_peer() -> impl Strategy<Value = Peer> {
    let address = || prop::sample::select(&ADDRESSES[..]).prop_map(|text| text.parse().unwrap());
    let identity = prop::sample::select(&IDENTITIES[..]).prop_map(|text| text.parse::<SpiffeId>().ok());
    (identity, address(), address(), prop::sample::select(&PORTS[..]))
        .prop_map(|(identity, source, destination, port)| Peer { identity, source, destination, port })
}

/// Keys repeat: those of a list of policies may be the same.
pub(crate) fn any_policy() -> impl Strategy<Value = Policy> {
    let key = (prop::sample::select(vec!["a", "b"]), prop::sample::select(&NAMES[..]));
    let scopes = prop::sample::select(vec![Scope::Global, Scope::Namespace, Scope::WorkloadSelector]);
    let action = prop::sample::select(vec![Action::Allow, Action::Deny]);
    let clause = prop::collection::vec(any_match(), 0..3).prop_map(|matches| Clause { matches });
    let rule = prop::collection::vec(clause, 0..3).prop_map(|clauses| Rule { clauses });
    (key, scopes, action, any::<bool>(), prop::collection::vec(rule, 0..3)).prop_map(
        |((namespace, name), scope, action, dry_run, rules)| Policy {
            key: PolicyKey::new(namespace, name),
            scope,
            action,
            dry_run,
            rules,
        },
    )
}

fn any_match() -> impl Strategy<Value = Match> {
    let account = (prop::sample::select(&NAMESPACES[1..]), prop::sample::select(&ACCOUNTS[..]))
        .prop_map(|(namespace, name)| ServiceAccount { namespace: namespace.into(), name: name.into() });
    let range = || prop::sample::select(&RANGES[..]).prop_map(|text| text.parse::<IpNet>().unwrap());
    let groups = (
        group(any_text(&NAMESPACES)),
        group(account),
        group(any_text(&PRINCIPALS)),
        group(range()),
        group(range()),
        group(prop::sample::select(&PORTS[..])),
    );
    groups.prop_map(|(namespaces, service_accounts, principals, source_ips, destination_ips, destination_ports)| {
        Match { namespaces, service_accounts, principals, source_ips, destination_ips, destination_ports }
    })
}

/// Nearly always empty, since every group has to hold.
fn group<T: Clone + std::fmt::Debug>(item: impl Strategy<Value = T> + Clone) -> impl Strategy<Value = Group<T>> {
    let list = |item| prop_oneof![4 => Just(Vec::new()), 1 => prop::collection::vec(item, 1..4)];
    (list(item.clone()), list(item)).prop_map(|(any, none)| Group { any, none })
}

fn any_text(texts: &'static [&'static str]) -> impl Strategy<Value = StringMatch> + Clone {
    (prop::sample::select(texts), 0..4_u8).prop_map(|(text, kind)| match kind {
        0 => StringMatch::Exact(text.into()),
        1 => StringMatch::Prefix(text.into()),
        2 => StringMatch::Suffix(text.into()),
        _ => StringMatch::Presence,
    })
}

/// One that a file may say: without empty texts, and without empty matches in a DENY.
pub(crate) fn writable(mut policy: Policy) -> Policy {
    let filled = |it: &StringMatch| match it {
        StringMatch::Exact(text) | StringMatch::Prefix(text) | StringMatch::Suffix(text) => !text.is_empty(),
        StringMatch::Presence => true,
    };
    let matches = policy.rules.iter_mut().flat_map(|rule| &mut rule.clauses).flat_map(|clause| &mut clause.matches);
    let mut empty = false;
    for one in matches {
        let Match { namespaces, principals, .. } = one;
        for list in [&mut namespaces.any, &mut namespaces.none, &mut principals.any, &mut principals.none] {
            list.retain(filled);
        }
        empty |= one.is_empty();
    }
    if empty {
        policy.action = Action::Allow;
    }
    policy
}
