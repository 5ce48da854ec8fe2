//! Policies in the local format, wherever they were read from.

use ipnet::IpNet;
use serde::ser::{SerializeMap as _, SerializeSeq as _};
use serde::{Serialize, Serializer};

use super::{is_false, word};
use crate::mesh::Snapshot;
use crate::mesh::file::policy;
use crate::mesh::policy::{Clause, Match, Policy, Rule, ServiceAccount, StringMatch};

pub(super) struct Policies<'a>(pub(super) &'a Snapshot);

impl Serialize for Policies<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut sorted: Vec<&Policy> = self.0.policies().map(AsRef::as_ref).collect();
        sorted.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        let mut list = serializer.serialize_seq(Some(sorted.len()))?;
        sorted.into_iter().try_for_each(|policy| list.serialize_element(&PolicyOut::new(policy)))?;
        list.end()
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PolicyOut<'a> {
    name: &'a str,
    namespace: &'a str,
    scope: &'static str,
    action: &'static str,
    #[serde(skip_serializing_if = "is_false")]
    dry_run: bool,
    rules: Vec<Vec<Vec<MatchOut<'a>>>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MatchOut<'a> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    namespaces: Vec<StringOut<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_namespaces: Vec<StringOut<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    service_accounts: Vec<AccountOut<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_service_accounts: Vec<AccountOut<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    principals: Vec<StringOut<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_principals: Vec<StringOut<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    source_ips: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_source_ips: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    destination_ips: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_destination_ips: Vec<String>,
    #[serde(skip_serializing_if = "<[u16]>::is_empty")]
    destination_ports: &'a [u16],
    #[serde(skip_serializing_if = "<[u16]>::is_empty")]
    not_destination_ports: &'a [u16],
}

struct StringOut<'a>(&'a StringMatch);

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AccountOut<'a> {
    namespace: &'a str,
    service_account: &'a str,
}

impl<'a> PolicyOut<'a> {
    fn new(it: &'a Policy) -> Self {
        let clause = |clause: &'a Clause| clause.matches.iter().map(MatchOut::new).collect();
        let rule = |rule: &'a Rule| rule.clauses.iter().map(clause).collect();
        Self {
            name: it.key.name(),
            namespace: it.key.namespace(),
            scope: word(&policy::SCOPES, it.scope),
            action: word(&policy::ACTIONS, it.action),
            dry_run: it.dry_run,
            rules: it.rules.iter().map(rule).collect(),
        }
    }
}

impl<'a> MatchOut<'a> {
    fn new(it: &'a Match) -> Self {
        let texts = |list: &'a [StringMatch]| list.iter().map(StringOut).collect();
        let accounts = |list: &'a [ServiceAccount]| list.iter().map(AccountOut::new).collect();
        let ranges = |list: &'a [IpNet]| list.iter().map(ToString::to_string).collect();
        Self {
            namespaces: texts(&it.namespaces.any),
            not_namespaces: texts(&it.namespaces.none),
            service_accounts: accounts(&it.service_accounts.any),
            not_service_accounts: accounts(&it.service_accounts.none),
            principals: texts(&it.principals.any),
            not_principals: texts(&it.principals.none),
            source_ips: ranges(&it.source_ips.any),
            not_source_ips: ranges(&it.source_ips.none),
            destination_ips: ranges(&it.destination_ips.any),
            not_destination_ips: ranges(&it.destination_ips.none),
            destination_ports: &it.destination_ports.any,
            not_destination_ports: &it.destination_ports.none,
        }
    }
}

impl<'a> AccountOut<'a> {
    fn new(it: &'a ServiceAccount) -> Self {
        Self { namespace: &it.namespace, service_account: &it.name }
    }
}

/// As ztunnel's dump has it: `{"Exact": "x"}`, `{"Presence": []}`.
impl Serialize for StringOut<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1))?;
        match self.0 {
            StringMatch::Exact(text) => map.serialize_entry("Exact", text)?,
            StringMatch::Prefix(text) => map.serialize_entry("Prefix", text)?,
            StringMatch::Suffix(text) => map.serialize_entry("Suffix", text)?,
            StringMatch::Presence => map.serialize_entry("Presence", &[(); 0])?,
        }
        map.end()
    }
}
