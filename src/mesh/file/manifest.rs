//! A Kubernetes manifest of kind `AuthorizationPolicy` among the mesh files: one YAML document.
//!
//! In: the document as `kubectl` takes and prints it. Out: the policy that istiod would make of it for ztunnel: each rule becomes the
//! alternatives of `from`, and those of `to`, and each condition of `when`.
//!
//! Fails closed: a field that needs more than addresses and identities (methods, hosts, tokens, labels) is refused by its name. istiod
//! drops such fields; what is left may then allow more, or deny more, than was written.
//! Read over: `status` and what Kubernetes itself says in `metadata`.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::names::Names;
use super::{leaf, policy};
use crate::config::yaml::{self, Checked, Cursor, Fields, Mismatch, Node, choice};
use crate::mesh::policy::{Action, Clause, Match, Policy, PolicyKey, Rule, Scope, ServiceAccount, StringMatch};

const KIND: &str = "AuthorizationPolicy";
const VERSIONS: [(&str, ()); 2] = [("security.istio.io/v1", ()), ("security.istio.io/v1beta1", ())];

/// Whose policies are for the whole mesh; Istio's default.
const ROOT_NAMESPACE: &str = "istio-system";
const DRY_RUN: &str = "istio.io/dry-run";

const METADATA: [&str; 14] = [
    "name",
    "namespace",
    "annotations",
    "labels",
    "creationTimestamp",
    "resourceVersion",
    "uid",
    "generation",
    "generateName",
    "managedFields",
    "ownerReferences",
    "finalizers",
    "deletionTimestamp",
    "selfLink",
];

const IP_BLOCKS: [&str; 2] = ["ipBlocks", "notIpBlocks"];
const PORTS: [&str; 2] = ["ports", "notPorts"];
const VALUES: [&str; 2] = ["values", "notValues"];

const SOURCE: [[&str; 2]; 4] = [policy::PRINCIPALS, policy::NAMESPACES, IP_BLOCKS, policy::SERVICE_ACCOUNTS];
const SOURCE_REFUSED: [&str; 4] = ["requestPrincipals", "notRequestPrincipals", "remoteIpBlocks", "notRemoteIpBlocks"];
const OPERATION_REFUSED: [&str; 6] = ["hosts", "notHosts", "methods", "notMethods", "paths", "notPaths"];

const NEEDS_HTTP: &str = "cannot be enforced here: it is about HTTP requests, and adit sees connections";
const NEEDS_LABELS: &str = "cannot be enforced here: workloads of mesh files have no labels";
const NEEDS_HTTP_HINT: &str = "remove it, or enforce this policy in a proxy that reads HTTP";

/// Whether the document means to be a manifest, ours or another.
pub(super) fn is_one(root: &Cursor<'_>) -> bool {
    root.get("kind").is_some() || root.get("apiVersion").is_some()
}

/// `None` when it is none of ours, or what it is for is not known; that is reported.
pub(super) fn read(root: &Cursor<'_>, names: &Names) -> Option<Policy> {
    root.get("kind").map_or(Some(()), |kind| kind.read(of_our_kind))?;
    let fields = root.fields(&["apiVersion", "kind", "metadata", "spec", "status"])?;
    fields.required("kind", of_our_kind);
    fields.required("apiVersion", choice(&VERSIONS));
    let (Some(metadata), Some(spec)) = (fields.get("metadata"), fields.get("spec")) else {
        ["metadata", "spec"].iter().filter(|key| fields.get(key).is_none()).for_each(|key| fields.report_missing(key));
        return None;
    };
    let (key, dry_run) = read_metadata(&metadata)?;
    let namespace = names.share(key.namespace());
    let (action, rules) = read_spec(&spec, &Context { names, namespace: &namespace })?;
    let scope = if *namespace == *ROOT_NAMESPACE { Scope::Global } else { Scope::Namespace };
    Some(Policy { key, scope, action, dry_run, rules })
}

fn of_our_kind(node: &Node) -> Checked<()> {
    match node.as_text() {
        Some(KIND) => Ok(()),
        Some("List") => {
            Err(Mismatch::new(node, KIND).hint("write each item as a document of its own, with --- between"))
        }
        _ => Err(Mismatch::new(node, KIND).hint("workloads and services are written in the format of mesh files")),
    }
}

fn read_metadata(metadata: &Cursor<'_>) -> Option<(PolicyKey, bool)> {
    let fields = leaf::present(metadata, "a map")?.fields(&METADATA)?;
    let namespace = fields.required("namespace", policy::segment);
    let name = fields.required("name", policy::segment);
    let annotations = fields.get("annotations");
    if let Some(annotations) = &annotations {
        // Reports what is there twice.
        annotations.entries()?.for_each(drop);
    }
    let dry_run = annotations.as_ref().and_then(|annotations| annotations.get(DRY_RUN)?.read(boolean));
    Some((PolicyKey::new(&namespace?, &name?), dry_run.unwrap_or_default()))
}

/// An annotation's value is text.
fn boolean(node: &Node) -> Checked<bool> {
    match node {
        Node::Bool(value) => Ok(*value),
        _ => choice(&[("true", true), ("false", false)])(node),
    }
}

/// What the parts of the specification need to know.
struct Context<'a> {
    names: &'a Names,
    namespace: &'a Arc<str>,
}

fn read_spec(spec: &Cursor<'_>, context: &Context<'_>) -> Option<(Action, Vec<Rule>)> {
    let fields = leaf::present(spec, "a map, which may be {}")?.fields(&[
        "selector",
        "targetRef",
        "targetRefs",
        "rules",
        "action",
        "provider",
    ])?;
    if let Some(selector) = fields.get("selector").filter(selects) {
        let hint = "write it under policies: with scope WorkloadSelector, and its key under the workloads' authorizationPolicies";
        selector.report_message(NEEDS_LABELS, "", Some(hint.to_owned()));
    }
    for key in ["targetRef", "targetRefs"] {
        let hint = "a policy for a waypoint or gateway is enforced there";
        refuse(&fields, key, "cannot be enforced here: it is for another proxy", hint);
    }
    refuse(&fields, "provider", "cannot be enforced here: only ALLOW and DENY can", "remove it");
    let action = fields.or("action", read_action, Action::Allow);
    let rules = fields.get("rules").map(|rules| leaf::list(&rules, |rule| read_rule(rule, context)));
    Some((action, rules.flatten().unwrap_or_default()))
}

fn selects(selector: &Cursor<'_>) -> bool {
    let is_empty = |node: &Node| matches!(node, Node::Map(entries) if entries.is_empty());
    !is_empty(selector.node())
        && !matches!(selector.node(), Node::Map(entries)
            if matches!(entries.as_slice(), [(key, value)] if key.as_text() == Some("matchLabels") && is_empty(value)))
}

fn read_action(node: &Node) -> Checked<Action> {
    choice(&[("ALLOW", Action::Allow), ("DENY", Action::Deny)])(node).map_err(|mismatch| match node.as_text() {
        Some("AUDIT" | "CUSTOM") => mismatch.hint("only these two are enforced here"),
        _ => mismatch,
    })
}

fn refuse(fields: &Fields<'_>, key: &'static str, message: &'static str, hint: &str) {
    if let Some(value) = fields.get(key) {
        value.report_message(message, "", Some(hint.to_owned()));
    }
}

/// All of its clauses; without any, everything matches.
fn read_rule(rule: &Cursor<'_>, context: &Context<'_>) -> Option<Rule> {
    let fields = leaf::present(rule, "a map, which may be {}")?.fields(&["from", "to", "when"])?;
    let alternatives = |key, inner, read: fn(&Cursor<'_>, &Context<'_>) -> Option<Match>| {
        let list = fields.get(key)?;
        let list = filled(&list)?;
        let one = |item: &Cursor<'_>| {
            let fields = leaf::present(item, "a map")?.fields(&[inner])?;
            match fields.get(inner) {
                Some(inner) => read(&inner, context),
                None => {
                    fields.report_missing(inner);
                    None
                }
            }
        };
        Some(Clause { matches: list.iter().filter_map(one).collect() })
    };
    let from = alternatives("from", "source", read_source);
    let to = alternatives("to", "operation", read_operation);
    let when = fields.get("when").and_then(|when| {
        let conditions = filled(&when)?;
        let clause = |one: &Cursor<'_>| Some(Clause { matches: vec![read_condition(one, context)?] });
        Some(conditions.iter().filter_map(clause).collect::<Vec<_>>())
    });
    Some(Rule { clauses: from.into_iter().chain(to).chain(when.into_iter().flatten()).collect() })
}

/// The items of a list that must have some: an empty one is no condition, or one that nothing meets, and nobody can tell.
fn filled<'a>(list: &'a Cursor<'a>) -> Option<Vec<Cursor<'a>>> {
    let items: Vec<Cursor<'a>> = leaf::present(list, "a list")?.items()?.collect();
    if items.is_empty() {
        list.report_message("an empty list", "", Some("leave the key out if there is no condition".to_owned()));
        return None;
    }
    Some(items)
}

/// A map of lists that must have some.
fn conditions<'a>(
    cursor: &'a Cursor<'a>,
    accepted: &[[&'static str; 2]],
    refused: &[&'static str],
) -> Option<Fields<'a>> {
    let known = [accepted.as_flattened(), refused].concat();
    let fields = leaf::present(cursor, "a map")?.fields(&known)?;
    refused.iter().for_each(|key| refuse(&fields, key, NEEDS_HTTP, NEEDS_HTTP_HINT));
    for key in accepted.as_flattened() {
        if let Some(list) = fields.get(key) {
            filled(&list)?;
        }
    }
    if matches!(cursor.node(), Node::Map(entries) if entries.is_empty()) {
        cursor.report_message("an empty map", "", Some("leave it out if there is no condition".to_owned()));
        return None;
    }
    Some(fields)
}

fn read_source(source: &Cursor<'_>, context: &Context<'_>) -> Option<Match> {
    let fields = conditions(source, &SOURCE, &SOURCE_REFUSED)?;
    let text = |item: &Cursor<'_>| item.read(pattern(context.names));
    Some(Match {
        namespaces: policy::group(&fields, policy::NAMESPACES, text),
        service_accounts: policy::group(&fields, policy::SERVICE_ACCOUNTS, |item| item.read(service_account(context))),
        principals: policy::group(&fields, policy::PRINCIPALS, text),
        source_ips: policy::group(&fields, IP_BLOCKS, |item| item.read(ip_block)),
        ..Match::default()
    })
}

fn read_operation(operation: &Cursor<'_>, _: &Context<'_>) -> Option<Match> {
    let fields = conditions(operation, &[PORTS], &OPERATION_REFUSED)?;
    let destination_ports = policy::group(&fields, PORTS, |item| item.read(leaf::port_key));
    Some(Match { destination_ports, ..Match::default() })
}

fn read_condition(condition: &Cursor<'_>, context: &Context<'_>) -> Option<Match> {
    let fields = leaf::present(condition, "a map")?.fields(&["key", "values", "notValues"])?;
    for key in VALUES {
        if let Some(list) = fields.get(key) {
            filled(&list)?;
        }
    }
    if VALUES.iter().all(|key| fields.get(key).is_none()) {
        fields.report_missing("values");
    }
    let key = fields.required("key", choice(&CONDITIONS))?;
    let text = |item: &Cursor<'_>| item.read(pattern(context.names));
    let mut it = Match::default();
    match key {
        Condition::SourceIp => it.source_ips = policy::group(&fields, VALUES, |item| item.read(ip_block)),
        Condition::SourceNamespace => it.namespaces = policy::group(&fields, VALUES, text),
        Condition::SourcePrincipal => it.principals = policy::group(&fields, VALUES, text),
        Condition::SourceServiceAccount => {
            it.service_accounts = policy::group(&fields, VALUES, |item| item.read(service_account(context)));
        }
        Condition::DestinationIp => it.destination_ips = policy::group(&fields, VALUES, |item| item.read(ip_block)),
        Condition::DestinationPort => {
            it.destination_ports = policy::group(&fields, VALUES, |item| item.read(leaf::port_key));
        }
    }
    Some(it)
}

/// What a condition of `when` is about.
#[derive(Debug, Clone, Copy)]
enum Condition {
    SourceIp,
    SourceNamespace,
    SourcePrincipal,
    SourceServiceAccount,
    DestinationIp,
    DestinationPort,
}

const CONDITIONS: [(&str, Condition); 6] = [
    ("source.ip", Condition::SourceIp),
    ("source.namespace", Condition::SourceNamespace),
    ("source.principal", Condition::SourcePrincipal),
    ("source.serviceAccount", Condition::SourceServiceAccount),
    ("destination.ip", Condition::DestinationIp),
    ("destination.port", Condition::DestinationPort),
];

/// Istio's: `*`, `text*`, `*text` or the text itself.
fn pattern(names: &Names) -> impl Fn(&Node) -> Checked<StringMatch> + Copy {
    |node| {
        let text = yaml::text(node)?;
        policy::comparable(node, &text).map_err(|mismatch| match text.as_str() {
            "" => Mismatch { hint: Some("for anything at all, write \"*\"".to_owned()), ..mismatch },
            _ => mismatch,
        })?;
        let (made, rest): (fn(Arc<str>) -> StringMatch, &str) = match (text.strip_suffix('*'), text.strip_prefix('*')) {
            (Some(""), _) => return Ok(StringMatch::Presence),
            (Some(prefix), _) => (StringMatch::Prefix, prefix),
            (None, Some(suffix)) => (StringMatch::Suffix, suffix),
            (None, None) => (StringMatch::Exact, &text),
        };
        if rest.contains('*') {
            return Err(Mismatch::new(node, "text with a * at its beginning or at its end, or without one"));
        }
        Ok(made(names.share(rest)))
    }
}

/// A range, or an address alone.
fn ip_block(node: &Node) -> Checked<IpNet> {
    match node.as_text().and_then(|text| text.parse::<IpAddr>().ok()) {
        Some(ip) => Ok(IpNet::from(ip.to_canonical())),
        None => yaml::range(node).map_err(|mismatch| Mismatch { expected: "an address or a range".into(), ..mismatch }),
    }
}

/// `namespace/account`, or an account of the policy's own namespace; no patterns.
fn service_account(context: &Context<'_>) -> impl Fn(&Node) -> Checked<ServiceAccount> + Copy {
    |node| {
        let text = yaml::text(node)?;
        let (namespace, name) = text.split_once('/').unwrap_or((context.namespace, &text));
        if namespace.is_empty() || name.is_empty() || name.contains('/') || text.contains('*') {
            return Err(Mismatch::new(node, "namespace/account or an account, without patterns"));
        }
        Ok(ServiceAccount { namespace: context.names.share(namespace), name: context.names.share(name) })
    }
}
