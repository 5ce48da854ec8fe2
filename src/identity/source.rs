//! Where credentials come from, behind one interface: `dev` and `files` now; an Istio CA and the SPIFFE Workload API fit
//! it too (they issue, and push what has changed).

use std::future::Future;
use std::pin::Pin;
use std::time::SystemTime;

use crate::identity::credentials::{Credentials, CredentialsError};

pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a source had to give.
#[derive(Debug)]
pub struct Fetched {
    pub credentials: Credentials,
    /// What is wrong and did not stand in the way, such as a revocation list that has expired.
    pub faults: Vec<Fault>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// A metric label.
    pub reason: &'static str,
    pub message: String,
}

/// One way to get credentials. It need not remember anything: whoever asks keeps the last good ones.
pub trait Source: Send {
    /// As the setting `identity.source` says it.
    fn name(&self) -> &'static str;

    /// Whether every fetch makes a new leaf; if not, it finds what somebody else has written, and looks by itself.
    fn issues(&self) -> bool;

    /// To be said once a minute, if anything.
    fn warning(&self) -> Option<&'static str> {
        None
    }

    /// Returns when a fetch would find something else than the last one did. Cancel safe; pending if that is never.
    fn changed(&mut self) -> Pending<'_, ()>;

    /// Gets credentials; checks everything as of `now`.
    fn fetch(&mut self, now: SystemTime) -> Pending<'_, Result<Fetched, CredentialsError>>;
}
