//! One policy, ready to be asked often: only the lists that are there, each with a quick way to look into it.
//!
//! Invariant: a compiled rule says what the rule says. What can never match is not here, what always holds neither.

use std::sync::Arc;

use super::members::{Accounts, Ports, Ranges, Texts};
use super::{Clause, Facts, Group, Match, Policy};

#[derive(Debug)]
pub(in crate::mesh) struct Compiled {
    pub(in crate::mesh) policy: Arc<Policy>,
    /// Those that can match.
    pub(super) rules: Box<[CompiledRule]>,
}

#[derive(Debug)]
pub(super) struct CompiledRule {
    /// Which of the policy's rules it is.
    pub(super) at: usize,
    /// All of them; each is any of some matches.
    clauses: Box<[Box<[CompiledMatch]>]>,
}

/// All of them.
type CompiledMatch = Box<[Test]>;

/// One list.
#[derive(Debug)]
struct Test {
    /// Whether the connection has to be in it, or must not be.
    wanted: bool,
    list: List,
}

#[derive(Debug)]
enum List {
    Namespaces(Texts),
    ServiceAccounts(Accounts),
    Principals(Texts),
    SourceIps(Ranges),
    DestinationIps(Ranges),
    DestinationPorts(Ports),
}

impl Compiled {
    pub(in crate::mesh) fn new(policy: Arc<Policy>) -> Self {
        let rule = |(at, rule): (usize, &super::Rule)| {
            let clauses = rule.clauses.iter().filter(|clause| !clause.matches.is_empty());
            let clauses: Option<Box<[_]>> = clauses.map(compiled_clause).collect();
            Some(CompiledRule { at, clauses: clauses? })
        };
        let rules = policy.rules.iter().enumerate().filter_map(rule).collect();
        Self { policy, rules }
    }
}

impl CompiledRule {
    pub(super) fn matches(&self, facts: &Facts<'_>) -> bool {
        let holds = |one: &CompiledMatch| one.iter().all(|test| test.list.has(facts) == test.wanted);
        self.clauses.iter().all(|clause| clause.iter().any(holds))
    }
}

/// `None` when nothing in it can match.
fn compiled_clause(clause: &Clause) -> Option<Box<[CompiledMatch]>> {
    let matches: Box<[_]> = clause.matches.iter().filter(|one| !one.is_empty()).map(compiled_match).collect();
    (!matches.is_empty()).then_some(matches)
}

/// What is cheapest and refuses most comes first.
fn compiled_match(one: &Match) -> CompiledMatch {
    let mut tests = Vec::new();
    push(&mut tests, &one.destination_ports, |list| List::DestinationPorts(Ports::of(list)));
    push(&mut tests, &one.service_accounts, |list| List::ServiceAccounts(Accounts::of(list)));
    push(&mut tests, &one.namespaces, |list| List::Namespaces(Texts::of(list)));
    push(&mut tests, &one.principals, |list| List::Principals(Texts::of(list)));
    push(&mut tests, &one.source_ips, |list| List::SourceIps(Ranges::of(list)));
    push(&mut tests, &one.destination_ips, |list| List::DestinationIps(Ranges::of(list)));
    tests.into()
}

fn push<T>(tests: &mut Vec<Test>, group: &Group<T>, list: impl Fn(&[T]) -> List) {
    if !group.any.is_empty() {
        tests.push(Test { wanted: true, list: list(&group.any) });
    }
    if !group.none.is_empty() {
        tests.push(Test { wanted: false, list: list(&group.none) });
    }
}

impl List {
    fn has(&self, facts: &Facts<'_>) -> bool {
        match self {
            Self::Namespaces(texts) => texts.has(facts.namespace),
            Self::ServiceAccounts(accounts) => facts.account.is_some_and(|account| accounts.has(account)),
            Self::Principals(texts) => facts.principal.is_some_and(|principal| texts.has(principal)),
            Self::SourceIps(ranges) => ranges.has(facts.source),
            Self::DestinationIps(ranges) => ranges.has(facts.destination),
            Self::DestinationPorts(ports) => ports.has(facts.port),
        }
    }
}
