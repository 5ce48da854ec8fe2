//! Evaluating one policy word for word, as it is defined: what the fast way must agree with, and what a person is shown.

use ipnet::IpNet;

use super::{Clause, Facts, Group, Match, Policy, Rule, ServiceAccount, StringMatch};

/// One list of a match, and whether the connection satisfies it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Check {
    /// The key of the list in a file, such as `notPrincipals`.
    pub key: &'static str,
    pub holds: bool,
}

impl Policy {
    #[must_use]
    pub fn matches(&self, facts: &Facts<'_>) -> bool {
        self.rules.iter().any(|rule| rule.matches(facts))
    }
}

impl Rule {
    #[must_use]
    pub fn matches(&self, facts: &Facts<'_>) -> bool {
        self.clauses.iter().all(|clause| clause.matches(facts))
    }
}

impl Clause {
    #[must_use]
    pub fn matches(&self, facts: &Facts<'_>) -> bool {
        self.matches.is_empty() || self.matches.iter().any(|one| one.matches(facts))
    }
}

impl Match {
    #[must_use]
    pub fn matches(&self, facts: &Facts<'_>) -> bool {
        !self.is_empty() && self.checks(facts).all(|check| check.holds)
    }

    /// The lists that are not empty, in the order of the format.
    pub fn checks(&self, facts: &Facts<'_>) -> impl Iterator<Item = Check> {
        let namespace = |it: &StringMatch| it.matches(facts.namespace);
        let principal = |it: &StringMatch| facts.principal.is_some_and(|principal| it.matches(principal));
        let account = |it: &ServiceAccount| facts.account == Some((&*it.namespace, &*it.name));
        let source = |it: &IpNet| it.contains(&facts.source);
        let destination = |it: &IpNet| it.contains(&facts.destination);
        let port = |it: &u16| *it == facts.port;
        [
            self.namespaces.checks(["namespaces", "notNamespaces"], namespace),
            self.service_accounts.checks(["serviceAccounts", "notServiceAccounts"], account),
            self.principals.checks(["principals", "notPrincipals"], principal),
            self.source_ips.checks(["sourceIps", "notSourceIps"], source),
            self.destination_ips.checks(["destinationIps", "notDestinationIps"], destination),
            self.destination_ports.checks(["destinationPorts", "notDestinationPorts"], port),
        ]
        .into_iter()
        .flatten()
        .flatten()
    }
}

impl<T> Group<T> {
    fn checks(&self, keys: [&'static str; 2], is: impl Fn(&T) -> bool) -> [Option<Check>; 2] {
        let [any, none] = keys;
        let wanted = Check { key: any, holds: self.any.iter().any(&is) };
        let unwanted = Check { key: none, holds: !self.none.iter().any(&is) };
        [(!self.any.is_empty()).then_some(wanted), (!self.none.is_empty()).then_some(unwanted)]
    }
}

impl StringMatch {
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => **exact == *text,
            Self::Prefix(prefix) => text.starts_with(&**prefix),
            Self::Suffix(suffix) => text.ends_with(&**suffix),
            Self::Presence => !text.is_empty(),
        }
    }
}
