//! Rules by what they require, so that a connection is compared with the few rules that can match it, and not with all.
//!
//! A rule matches only if each of its clauses does, and a clause only if one of its matches does. So one clause is enough to find a
//! rule by: the rule is entered under one required value or another of each match of that clause. Of the clauses and groups that would do,
//! those are taken whose values the fewest rules share. A rule that requires nothing that can be looked up (only `not` lists) is always
//! a candidate; so are all rules where they are few, since a hash look-up costs as much as comparing with one.
//!
//! Invariant: the rules that match are among the candidates. Cost of a look-up: a few hash look-ups, one for each length
//! of prefix and range that occurs, and the candidates.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::{Clause, Facts, Match, Rule, ServiceAccount, StringMatch};

/// Numbers of rules, ascending.
pub(super) type Postings = Vec<u32>;

/// What a value that nearly everybody has costs, whatever the number of its rules.
const BROAD: u64 = 1 << 24;

/// So few rules are compared one by one.
const FEW: usize = 4;

#[derive(Debug, Default)]
pub(super) struct RuleIndex {
    /// Candidates of every connection: all rules, if they are few.
    always: Postings,
    by_value: Option<Box<ByValue>>,
}

/// Rules by one value that they require.
#[derive(Debug, Default)]
struct ByValue {
    namespaces: TextIndex,
    principals: TextIndex,
    /// By `ns/NAMESPACE/sa/ACCOUNT`.
    accounts: HashMap<Box<str>, Postings>,
    sources: RangeIndex,
    destinations: RangeIndex,
    ports: HashMap<u16, Postings>,
}

#[derive(Debug, Default)]
struct TextIndex {
    exact: HashMap<Arc<str>, Postings>,
    /// By length.
    prefixes: BTreeMap<usize, HashMap<Box<[u8]>, Postings>>,
    suffixes: BTreeMap<usize, HashMap<Box<[u8]>, Postings>>,
    presence: Postings,
}

/// (is IPv6, prefix length) -> first address.
#[derive(Debug, Default)]
struct RangeIndex(BTreeMap<(bool, u8), HashMap<IpAddr, Postings>>);

/// A value that a match requires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Atom<'a> {
    Namespace(&'a StringMatch),
    Principal(&'a StringMatch),
    Account(&'a ServiceAccount),
    Source(IpNet),
    Destination(IpNet),
    Port(u16),
}

/// How many rules require each value.
type Shared<'a> = HashMap<Atom<'a>, u64>;

impl RuleIndex {
    /// Rules are known by their place in `rules`.
    pub(super) fn new(rules: &[&Rule]) -> Self {
        if rules.len() <= FEW {
            return Self { always: (0..).zip(rules).map(|(number, _)| number).collect(), by_value: None };
        }
        let mut shared = Shared::new();
        let clauses = rules.iter().flat_map(|rule| &rule.clauses);
        for atom in clauses.flat_map(|clause| &clause.matches).flat_map(groups).flatten() {
            *shared.entry(atom).or_default() += 1;
        }
        let (mut always, mut by_value) = (Postings::new(), ByValue::default());
        for (number, rule) in (0..).zip(rules) {
            let clauses = rule.clauses.iter().filter_map(|clause| clause_atoms(clause, &shared));
            match clauses.min_by_key(|(cost, _)| *cost) {
                Some((_, atoms)) => atoms.into_iter().for_each(|atom| by_value.enter(atom, number)),
                None => always.push(number),
            }
        }
        Self { always, by_value: Some(Box::new(by_value)) }
    }

    /// Hands over lists that together have every rule that can match. A rule may be in several.
    pub(super) fn candidates<'a>(&'a self, facts: &Facts<'_>, mut visit: impl FnMut(&'a [u32])) {
        if let Some(by_value) = &self.by_value {
            by_value.candidates(facts, &mut visit);
        }
        visit(&self.always);
    }
}

impl ByValue {
    fn candidates<'a>(&'a self, facts: &Facts<'_>, visit: &mut impl FnMut(&'a [u32])) {
        self.namespaces.find(facts.namespace, visit);
        if let Some(principal) = facts.principal {
            self.principals.find(principal, visit);
        }
        if let Some(path) = facts.account_path.filter(|_| !self.accounts.is_empty()) {
            self.accounts.get(path).into_iter().for_each(|found| visit(found));
        }
        self.sources.find(facts.source, visit);
        self.destinations.find(facts.destination, visit);
        if !self.ports.is_empty() {
            self.ports.get(&facts.port).into_iter().for_each(|found| visit(found));
        }
    }

    fn enter(&mut self, atom: Atom<'_>, number: u32) {
        let postings = match atom {
            Atom::Namespace(text) => self.namespaces.entry(text),
            Atom::Principal(text) => self.principals.entry(text),
            Atom::Account(it) => self.accounts.entry(format!("ns/{}/sa/{}", it.namespace, it.name).into()).or_default(),
            Atom::Source(net) => self.sources.entry(net),
            Atom::Destination(net) => self.destinations.entry(net),
            Atom::Port(port) => self.ports.entry(port).or_default(),
        };
        if postings.last() != Some(&number) {
            postings.push(number);
        }
    }
}

/// The cheapest way to find a clause; `None` when there is no way.
fn clause_atoms<'a>(clause: &'a Clause, shared: &Shared<'a>) -> Option<(u64, Vec<Atom<'a>>)> {
    if clause.matches.is_empty() {
        return None;
    }
    let cost = |atoms: &[Atom<'a>]| atoms.iter().map(|atom| atom.cost(shared)).sum::<u64>();
    let mut all = (0, Vec::new());
    for one in clause.matches.iter().filter(|one| !one.is_empty()) {
        let ways = groups(one).into_iter().filter(|atoms| !atoms.is_empty());
        let (cost, atoms) = ways.map(|atoms| (cost(&atoms), atoms)).min_by_key(|(cost, _)| *cost)?;
        all.0 += cost;
        all.1.extend(atoms);
    }
    Some(all)
}

/// What a match requires, group by group.
fn groups(one: &Match) -> [Vec<Atom<'_>>; 6] {
    [
        one.service_accounts.any.iter().map(Atom::Account).collect(),
        one.principals.any.iter().map(Atom::Principal).collect(),
        one.namespaces.any.iter().map(Atom::Namespace).collect(),
        one.source_ips.any.iter().copied().map(Atom::Source).collect(),
        one.destination_ports.any.iter().copied().map(Atom::Port).collect(),
        one.destination_ips.any.iter().copied().map(Atom::Destination).collect(),
    ]
}

impl<'a> Atom<'a> {
    fn cost(self, shared: &Shared<'a>) -> u64 {
        let broad = match self {
            Self::Namespace(text) | Self::Principal(text) => match text {
                StringMatch::Exact(_) => false,
                StringMatch::Prefix(part) | StringMatch::Suffix(part) => part.is_empty(),
                StringMatch::Presence => true,
            },
            Self::Source(net) | Self::Destination(net) => net.prefix_len() == 0,
            Self::Account(_) | Self::Port(_) => false,
        };
        let rules = shared.get(&self).copied().unwrap_or_default();
        if broad { rules + BROAD } else { rules }
    }
}

impl TextIndex {
    fn entry(&mut self, text: &StringMatch) -> &mut Postings {
        match text {
            StringMatch::Exact(exact) => self.exact.entry(Arc::clone(exact)).or_default(),
            StringMatch::Prefix(prefix) => affix(&mut self.prefixes, prefix),
            StringMatch::Suffix(suffix) => affix(&mut self.suffixes, suffix),
            StringMatch::Presence => &mut self.presence,
        }
    }

    fn find<'a>(&'a self, text: &str, visit: &mut impl FnMut(&'a [u32])) {
        let bytes = text.as_bytes();
        if !self.exact.is_empty() {
            self.exact.get(text).into_iter().for_each(|found| visit(found));
        }
        for (length, prefixes) in self.prefixes.range(..=bytes.len()) {
            let prefix = bytes.get(..*length).unwrap_or_default();
            prefixes.get(prefix).into_iter().for_each(|found| visit(found));
        }
        for (length, suffixes) in self.suffixes.range(..=bytes.len()) {
            let suffix = bytes.get(bytes.len() - length..).unwrap_or_default();
            suffixes.get(suffix).into_iter().for_each(|found| visit(found));
        }
        if !text.is_empty() {
            visit(&self.presence);
        }
    }
}

fn affix<'a>(parts: &'a mut BTreeMap<usize, HashMap<Box<[u8]>, Postings>>, part: &str) -> &'a mut Postings {
    parts.entry(part.len()).or_default().entry(part.as_bytes().into()).or_default()
}

impl RangeIndex {
    fn entry(&mut self, net: IpNet) -> &mut Postings {
        let family = (net.addr().is_ipv6(), net.prefix_len());
        self.0.entry(family).or_default().entry(net.network()).or_default()
    }

    fn find<'a>(&'a self, ip: IpAddr, visit: &mut impl FnMut(&'a [u32])) {
        let v6 = ip.is_ipv6();
        for ((_, length), starts) in self.0.range((v6, 0)..=(v6, u8::MAX)) {
            let start = IpNet::new(ip, *length).ok().map(|net| net.network());
            start.and_then(|start| starts.get(&start)).into_iter().for_each(|found| visit(found));
        }
    }
}
