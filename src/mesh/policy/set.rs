//! Some policies, indexed: those of the whole mesh, of a namespace, or those that a workload lists. Made once on the
//! control side, shared by everybody concerned, asked for each connection.

use std::sync::Arc;

use super::index::RuleIndex;
use super::{Action, Compiled, Facts, Policy, PolicyKey, Rule};

#[derive(Debug, Default)]
pub struct PolicySet {
    /// By key.
    policies: Box<[Arc<Compiled>]>,
    deny: Option<Box<Kind>>,
    allow: Option<Box<Kind>>,
    dry_deny: Option<Box<Kind>>,
    dry_allow: Option<Box<Kind>>,
}

/// The policies that a list of keys means.
#[derive(Debug, Default)]
pub(in crate::mesh) struct Listed {
    pub(super) set: PolicySet,
    /// Those that the state does not have, by key.
    pub(super) missing: Box<[PolicyKey]>,
}

/// The policies of one action that are enforced, or are not; not there without any, but those without a rule count.
#[derive(Debug, Default)]
struct Kind {
    /// Ordered by policy; the index means places in here.
    rules: Box<[RuleRef]>,
    index: RuleIndex,
}

/// Places in the set and in the policy.
#[derive(Debug, Clone, Copy)]
struct RuleRef {
    policy: u32,
    rule: u32,
}

impl PolicySet {
    /// `policies` in any order; one of each key.
    pub(in crate::mesh) fn new(mut policies: Vec<Arc<Compiled>>) -> Self {
        policies.sort_unstable_by(|a, b| a.policy.key.cmp(&b.policy.key));
        let kind = |action, dry_run| Kind::new(&policies, action, dry_run);
        let [deny, allow] = [Action::Deny, Action::Allow].map(|action| kind(action, false));
        let [dry_deny, dry_allow] = [Action::Deny, Action::Allow].map(|action| kind(action, true));
        Self { deny, allow, dry_deny, dry_allow, policies: policies.into() }
    }

    pub(in crate::mesh) fn compiled(&self) -> &[Arc<Compiled>] {
        &self.policies
    }

    /// By key.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.iter().map(|compiled| &compiled.policy)
    }

    /// The first enforced policy by key that matches.
    #[must_use]
    pub fn first(&self, action: Action, facts: &Facts<'_>) -> Option<&PolicyKey> {
        let kind = self.kind(action, false)?;
        let mut best: Option<u32> = None;
        kind.index.candidates(facts, |numbers| {
            let better = numbers.iter().take_while(|number| best.is_none_or(|best| **number < best));
            best = better.copied().find(|number| self.matches(kind, *number, facts)).or(best);
        });
        Some(&self.policy(kind, best?)?.policy.key)
    }

    /// The policies that are not enforced and match, by key.
    #[must_use]
    pub fn dry_run(&self, action: Action, facts: &Facts<'_>) -> Vec<&PolicyKey> {
        let mut found = Vec::new();
        let Some(kind) = self.kind(action, true) else { return found };
        kind.index.candidates(facts, |numbers| {
            let matching = numbers.iter().filter(|number| self.matches(kind, **number, facts));
            found.extend(matching.filter_map(|number| Some(&self.policy(kind, *number)?.policy.key)));
        });
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Whether there is any such policy, whatever it matches.
    #[must_use]
    pub fn has(&self, action: Action, dry_run: bool) -> bool {
        self.kind(action, dry_run).is_some()
    }

    fn kind(&self, action: Action, dry_run: bool) -> Option<&Kind> {
        match (action, dry_run) {
            (Action::Deny, false) => self.deny.as_deref(),
            (Action::Allow, false) => self.allow.as_deref(),
            (Action::Deny, true) => self.dry_deny.as_deref(),
            (Action::Allow, true) => self.dry_allow.as_deref(),
        }
    }

    fn policy(&self, kind: &Kind, number: u32) -> Option<&Arc<Compiled>> {
        self.policies.get(place(kind.rules.get(place(number))?.policy))
    }

    fn matches(&self, kind: &Kind, number: u32, facts: &Facts<'_>) -> bool {
        let rule = kind.rules.get(place(number)).and_then(|at| {
            let policy = self.policies.get(place(at.policy))?;
            policy.rules.get(place(at.rule))
        });
        rule.is_some_and(|rule| rule.matches(facts))
    }
}

impl Kind {
    fn new(policies: &[Arc<Compiled>], action: Action, dry_run: bool) -> Option<Box<Self>> {
        let mut some = false;
        let (mut places, mut rules): (Vec<RuleRef>, Vec<&Rule>) = (Vec::new(), Vec::new());
        for (policy, compiled) in (0..).zip(policies) {
            if (compiled.policy.action, compiled.policy.dry_run) != (action, dry_run) {
                continue;
            }
            some = true;
            for (rule, it) in (0..).zip(&compiled.rules) {
                places.push(RuleRef { policy, rule });
                rules.extend(compiled.policy.rules.get(it.at));
            }
        }
        some.then(|| Box::new(Self { index: RuleIndex::new(&rules), rules: places.into() }))
    }
}

fn place(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

impl Listed {
    /// From the policies that are there and the keys of those that are not.
    pub(in crate::mesh) fn new(policies: Vec<Arc<Compiled>>, mut missing: Vec<PolicyKey>) -> Self {
        missing.sort_unstable();
        missing.dedup();
        Self { set: PolicySet::new(policies), missing: missing.into() }
    }

    /// Whether it is made of just these, the missing ones sorted.
    pub(in crate::mesh) fn is_of(&self, policies: &[Arc<Compiled>], missing: &[PolicyKey]) -> bool {
        same(self.set.compiled(), policies) && *self.missing == *missing
    }

    pub(in crate::mesh) fn missing(&self) -> &[PolicyKey] {
        &self.missing
    }
}

fn same(a: &[Arc<Compiled>], b: &[Arc<Compiled>]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| Arc::ptr_eq(a, b))
}
