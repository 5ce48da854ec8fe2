//! Settings of authorization.

/// What a workload means that names a policy which the state does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnMissing {
    /// Nobody may connect to it until the policy is there.
    #[default]
    Deny,
    /// As if it did not name it.
    Ignore,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Policy {
    pub on_missing: OnMissing,
}
