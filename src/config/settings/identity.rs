//! Settings of the identity.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Who the workload is to its peers, and whom it trusts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub source: IdentitySource,
    pub dev: DevIdentity,
    pub files: IdentityFiles,
    /// Trust domains that are accepted beside the workload's own.
    pub trust_domain_aliases: Vec<Arc<str>>,
    /// How long what lives on a root that was removed may go on.
    pub root_grace: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdentitySource {
    None,
    Dev,
    Files,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DevIdentity {
    /// Empty: there is no folder to take by default.
    pub folder: PathBuf,
}

/// PEM files.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IdentityFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
    pub roots: Vec<PathBuf>,
    pub crls: Vec<PathBuf>,
}

impl Default for Identity {
    fn default() -> Self {
        Self {
            source: IdentitySource::None,
            dev: DevIdentity::default(),
            files: IdentityFiles::default(),
            trust_domain_aliases: Vec::new(),
            root_grace: Duration::from_secs(3600),
        }
    }
}
