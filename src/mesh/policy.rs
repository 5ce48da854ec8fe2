//! Authorization policies: who may connect to a workload. As the files define them, and as connections are judged.
//!
//! ```text
//! file --> Policy --compile--> Compiled --PolicySet (rules by what they require)--> PolicyView of a workload
//! Subject --> Facts --> PolicyView's sets --> the first policies by key that match       (the data path's)
//! Subject --> Facts --> Policy::matches, Match::checks                                   (explain's, and the tests')
//! ```
//!
//! The nesting is ztunnel's: a policy matches if any of its rules does, a rule if all of its clauses do, a clause if any
//! of its matches does, a match if all of its groups hold. So a policy without rules matches nothing; a rule without clauses
//! and a clause without matches match everything; a match in which every list is empty matches nothing.
//!
//! Invariant: a [`PolicySet`] finds what evaluating each of its policies finds. Nothing here can fail.

mod compiled;
mod facts;
#[cfg(test)]
pub(crate) mod fixture;
mod index;
mod matching;
mod members;
mod set;
#[cfg(test)]
mod tests;
mod view;

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;

pub use facts::{Facts, Subject};
pub use matching::Check;
pub use set::PolicySet;
pub use view::PolicyView;

pub(super) use compiled::Compiled;
pub(super) use set::Listed;

/// `namespace/name`, ordered as text.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyKey(Arc<str>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    pub key: PolicyKey,
    pub scope: Scope,
    pub action: Action,
    /// Says what it would do, and does nothing.
    pub dry_run: bool,
    /// Any of them.
    pub rules: Vec<Rule>,
}

/// Which workloads a policy is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All.
    Global,
    /// Those of the policy's namespace.
    Namespace,
    /// Those that list its key.
    WorkloadSelector,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Allow,
    Deny,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rule {
    /// All of them.
    pub clauses: Vec<Clause>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Clause {
    /// Any of them.
    pub matches: Vec<Match>,
}

/// All groups that have something in them; nothing, if none has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Match {
    /// Of the peer's identity; "" without one.
    pub namespaces: Group<StringMatch>,
    /// Of the peer's identity, whatever its trust domain.
    pub service_accounts: Group<ServiceAccount>,
    /// The peer's identity without `spiffe://`.
    pub principals: Group<StringMatch>,
    /// The peer's address.
    pub source_ips: Group<IpNet>,
    pub destination_ips: Group<IpNet>,
    pub destination_ports: Group<u16>,
}

/// What must be, and what must not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group<T> {
    /// One of these, if there are any.
    pub any: Vec<T>,
    /// None of these.
    pub none: Vec<T>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum StringMatch {
    Exact(Arc<str>),
    Prefix(Arc<str>),
    Suffix(Arc<str>),
    /// Anything but the empty text.
    Presence,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceAccount {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl PolicyKey {
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self(format!("{namespace}/{name}").into())
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The text, to be kept without copying it.
    #[must_use]
    pub fn shared(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }

    #[must_use]
    pub fn namespace(&self) -> &str {
        self.0.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    /// All of it when there is no namespace: a workload may list any text.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.split_once('/').map_or(&self.0, |(_, name)| name)
    }
}

/// As a workload lists it.
impl From<Arc<str>> for PolicyKey {
    fn from(text: Arc<str>) -> Self {
        Self(text)
    }
}

impl Borrow<str> for PolicyKey {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PolicyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PolicyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Action {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "ALLOW",
            Self::Deny => "DENY",
        }
    }
}

impl<T> Group<T> {
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.any.is_empty() && self.none.is_empty()
    }
}

impl<T> Default for Group<T> {
    fn default() -> Self {
        Self { any: Vec::new(), none: Vec::new() }
    }
}

impl Match {
    /// Whether every list is empty, so that nothing matches.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.namespaces.is_empty()
            && self.service_accounts.is_empty()
            && self.principals.is_empty()
            && self.source_ips.is_empty()
            && self.destination_ips.is_empty()
            && self.destination_ports.is_empty()
    }
}
