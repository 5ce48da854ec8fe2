//! Where credentials come from, behind one interface: `dev` and `files` now; an Istio CA and the SPIFFE Workload API fit
//! it too (they issue, and push what has changed).

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use crate::identity::credentials::{Credentials, CredentialsError, TrustBundle};

pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a source had to give.
#[derive(Debug)]
pub struct Fetched {
    pub credentials: Credentials,
    /// What is wrong and did not stand in the way, such as a revocation list that has expired.
    pub faults: Vec<Fault>,
}

/// Why a source had nothing to give.
#[derive(Debug)]
pub struct FetchError {
    pub error: Box<CredentialsError>,
    /// Whom to trust, if that much is known: a revocation or a new root does not wait until the rest is mended. Whoever
    /// asked puts it in force with the credentials that it has.
    pub bundle: Option<Arc<TrustBundle>>,
    /// What else is wrong.
    pub faults: Vec<Fault>,
}

impl From<CredentialsError> for FetchError {
    fn from(error: CredentialsError) -> Self {
        Self { error: Box::new(error), bundle: None, faults: Vec::new() }
    }
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
    fn fetch(&mut self, now: SystemTime) -> Pending<'_, Result<Fetched, FetchError>>;
}
