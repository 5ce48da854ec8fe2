//! One entry of `policies`.
//!
//! Fails closed: what cannot be enforced as it is written is refused. So are an unknown key inside a match (it would leave a match that never
//! matches, and so a DENY that denies nobody), an empty text to compare with, a range or a port that is none, and an empty match in a DENY.

use std::sync::Arc;

use super::leaf;
use super::names::Names;
use crate::config::yaml::{self, Checked, Cursor, Fields, Mismatch, Node, boolean, choice};
use crate::mesh::policy::{Action, Clause, Group, Match, Policy, PolicyKey, Rule, Scope, ServiceAccount, StringMatch};

const KEYS: [&str; 6] = ["name", "namespace", "scope", "action", "dryRun", "rules"];

pub(super) const SCOPES: [(&str, Scope); 3] =
    [("Global", Scope::Global), ("Namespace", Scope::Namespace), ("WorkloadSelector", Scope::WorkloadSelector)];

pub(super) const ACTIONS: [(&str, Action); 2] = [("Allow", Action::Allow), ("Deny", Action::Deny)];

/// What must be one of the values, and what must not.
type Keys = [&'static str; 2];

pub(super) const NAMESPACES: Keys = ["namespaces", "notNamespaces"];
pub(super) const SERVICE_ACCOUNTS: Keys = ["serviceAccounts", "notServiceAccounts"];
pub(super) const PRINCIPALS: Keys = ["principals", "notPrincipals"];
const SOURCE_IPS: Keys = ["sourceIps", "notSourceIps"];
const DESTINATION_IPS: Keys = ["destinationIps", "notDestinationIps"];
const DESTINATION_PORTS: Keys = ["destinationPorts", "notDestinationPorts"];

const MATCHER: &str = "one of exact, prefix, suffix or presence, such as {exact: x} or !Exact x";
const KINDS: [(&str, Kind); 8] = [
    ("exact", StringMatch::Exact),
    ("Exact", StringMatch::Exact),
    ("prefix", StringMatch::Prefix),
    ("Prefix", StringMatch::Prefix),
    ("suffix", StringMatch::Suffix),
    ("Suffix", StringMatch::Suffix),
    (PRESENCE[0], |_| StringMatch::Presence),
    (PRESENCE[1], |_| StringMatch::Presence),
];
const PRESENCE: [&str; 2] = ["presence", "Presence"];

type Kind = fn(Arc<str>) -> StringMatch;

/// `None` when it is not a map. Whatever is wrong with a key is reported and stood in for, so that the rest is read too.
pub(super) fn read(cursor: &Cursor<'_>, names: &Names) -> Option<Policy> {
    let fields = cursor.fields(&KEYS)?;
    let namespace = fields.required("namespace", segment).unwrap_or_default();
    let name = fields.required("name", segment).unwrap_or_default();
    let scope = fields.required("scope", choice(&SCOPES)).unwrap_or(Scope::Global);
    let action = fields.required("action", choice(&ACTIONS)).unwrap_or(Action::Allow);
    let dry_run = fields.or("dryRun", boolean, false);
    let Some(rules) = fields.get("rules") else {
        fields.report_missing("rules");
        return None;
    };
    let rules = leaf::list(&rules, |rule| {
        let clauses = leaf::list(rule, |clause| {
            let matches = leaf::list(clause, |one| read_match(one, names, action))?;
            Some(Clause { matches })
        })?;
        Some(Rule { clauses })
    });
    Some(Policy { key: PolicyKey::new(&namespace, &name), scope, action, dry_run, rules: rules.unwrap_or_default() })
}

/// A part of a policy's key: with a slash two policies could have the same one.
pub(super) fn segment(node: &Node) -> Checked<String> {
    const EXPECTED: &str = "text that is not empty and has no slash";
    match yaml::text(node) {
        Ok(text) if text.is_empty() || text.contains('/') => Err(Mismatch::new(node, EXPECTED)),
        checked => checked,
    }
}

fn read_match(cursor: &Cursor<'_>, names: &Names, action: Action) -> Option<Match> {
    let lists = [NAMESPACES, SERVICE_ACCOUNTS, PRINCIPALS, SOURCE_IPS, DESTINATION_IPS, DESTINATION_PORTS];
    let fields = leaf::present(cursor, "a map")?.fields(lists.as_flattened())?;
    let text = |item: &Cursor<'_>| item.read(matcher(names));
    let range = |item: &Cursor<'_>| item.read(yaml::range);
    let it = Match {
        namespaces: group(&fields, NAMESPACES, text),
        service_accounts: group(&fields, SERVICE_ACCOUNTS, |item| service_account(item, names)),
        principals: group(&fields, PRINCIPALS, text),
        source_ips: group(&fields, SOURCE_IPS, range),
        destination_ips: group(&fields, DESTINATION_IPS, range),
        destination_ports: group(&fields, DESTINATION_PORTS, |item| item.read(leaf::port)),
    };
    if action == Action::Deny && says_nothing(cursor.node()) {
        let hint = "say what it should match; to deny everybody, leave the clauses of the rule out: rules: [[]]";
        cursor.report_message("an empty match never matches, so it would deny nobody", "", Some(hint.to_owned()));
    }
    Some(it)
}

fn says_nothing(node: &Node) -> bool {
    let is_empty = |(_, value): &(Node, Node)| matches!(value, Node::List(items) if items.is_empty());
    matches!(node, Node::Map(entries) if entries.iter().all(is_empty))
}

/// Both lists of a group; every wrong item is reported and left out.
pub(super) fn group<T>(fields: &Fields<'_>, [any, none]: Keys, read: impl Fn(&Cursor<'_>) -> Option<T>) -> Group<T> {
    let list = |key| fields.get(key).and_then(|list| leaf::list(&list, &read)).unwrap_or_default();
    Group { any: list(any), none: list(none) }
}

/// As a tag (`!Exact x`, `!Presence []`) or as a map (`exact: x`, `Exact: x`).
fn matcher(names: &Names) -> impl Fn(&Node) -> Checked<StringMatch> + Copy {
    |node| {
        let (kind, value) = match node {
            Node::Tagged(tagged) => (tagged.0.as_str(), &tagged.1),
            Node::Map(entries) => match entries.as_slice() {
                [(key, value)] => (key.as_text().unwrap_or_default(), value),
                _ => return Err(Mismatch::new(node, MATCHER)),
            },
            Node::Text(text) => return Err(Mismatch::new(node, MATCHER).hint(format!("write {{exact: {text:?}}}"))),
            _ => return Err(Mismatch::new(node, MATCHER)),
        };
        let Some((word, make)) = KINDS.iter().find(|(word, _)| *word == kind) else {
            let meant = yaml::did_you_mean(kind, KINDS.iter().map(|(word, _)| *word));
            let mismatch = Mismatch { found: format!("{kind:?}"), ..Mismatch::new(node, MATCHER) };
            return Err(match meant {
                Some(meant) => mismatch.hint(format!("did you mean \"{meant}\"?")),
                None => mismatch,
            });
        };
        if PRESENCE.contains(word) {
            let nothing = match value {
                Node::Null => matches!(node, Node::Tagged(_)),
                Node::List(items) => items.is_empty(),
                Node::Map(entries) => entries.is_empty(),
                _ => false,
            };
            let unit = make(Arc::default());
            return nothing.then_some(unit).ok_or_else(|| Mismatch::new(value, "[]").hint("presence has no value"));
        }
        let text = yaml::text(value)?;
        comparable(value, &text)?;
        Ok(make(names.share(&text)))
    }
}

/// Text that an identity or a namespace can be compared with.
pub(super) fn comparable(node: &Node, text: &str) -> Checked<()> {
    if text.is_empty() {
        return Err(Mismatch::new(node, "text that is not empty").hint("for anything at all, write {presence: []}"));
    }
    match text.split_once("spiffe://") {
        None => Ok(()),
        Some(("", rest)) if !rest.is_empty() => {
            Err(Mismatch::new(node, "a principal without spiffe://").hint(format!("write {rest:?}")))
        }
        Some(_) => Err(Mismatch::new(node, "a principal without spiffe://")),
    }
}

fn service_account(cursor: &Cursor<'_>, names: &Names) -> Option<ServiceAccount> {
    let fields = leaf::present(cursor, "a map")?.fields(&["namespace", "serviceAccount"])?;
    let namespace = fields.required("namespace", leaf::filled(names));
    let name = fields.required("serviceAccount", leaf::filled(names));
    Some(ServiceAccount { namespace: namespace?, name: name? })
}
