//! What `adit check` says of an identity: reads the files that the daemon's source would, by the same code.
//!
//! In: the settings, the time. Out: in words what there is, or every problem with its file. Nothing is made or changed.
//! What the daemon would take and warn of (a key that others can read, an expired revocation list) is a warning here too.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use crate::config::problem::{Origin, Problem, Problems};
use crate::config::settings::{IdentitySource, Settings};
use crate::identity::credentials::{Credentials, CredentialsError, Pair, TrustBundle};
use crate::identity::crl::RevocationSet;
use crate::identity::files::{BOUNDS, Places, certificates, open_to_others};
use crate::identity::spiffe::SpiffeId;
use crate::identity::{dev, pem, plan};
use crate::telemetry::text::Rfc3339;

/// What there was to check.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Checked {
    /// Empty: there is to be no identity.
    pub about: String,
    pub warnings: Vec<String>,
}

/// Checks what `identity` in the settings names.
///
/// # Errors
/// Everything for which the daemon would not get ready.
pub fn check(settings: &Settings, now: SystemTime) -> Result<Checked, Problems> {
    let Some(plan) = plan::plan(settings)? else { return Ok(Checked::default()) };
    match settings.identity.source {
        IdentitySource::None => Ok(Checked::default()),
        IdentitySource::Dev => {
            let looked = dev::look(&settings.identity.dev.folder, now);
            looked.map_err(|error| problem("identity.dev.folder", &settings.identity.dev.folder, &error))?;
            Ok(Checked { about: format!("{} from the dev source", plan.id), warnings: Vec::new() })
        }
        IdentitySource::Files => Files::new(plan::places(settings)).check(&plan.id, now),
    }
}

struct Files {
    places: Places,
    problems: Problems,
}

impl Files {
    fn new(places: Places) -> Self {
        Self { places, problems: Problems::default() }
    }

    fn check(mut self, id: &SpiffeId, now: SystemTime) -> Result<Checked, Problems> {
        let places = self.places.clone();
        let revoked = self.lists();
        let mut roots = Vec::new();
        for file in &places.roots {
            let one = |bytes: &[u8]| {
                let found = certificates(file, bytes)?;
                TrustBundle::new(&found, Arc::default()).map(|_fit| found)
            };
            roots.extend(self.read("identity.files.roots", file, one).unwrap_or_default());
        }
        let chain = self.read("identity.files.cert", &places.cert, |bytes| certificates(&places.cert, bytes));
        let key = self.read("identity.files.key", &places.key, |bytes| Ok(pem::private_key(&places.key, bytes)?));
        let mut checked = Checked::default();
        checked.warnings.extend(open_to_others(&places.key).map(|fault| fault.message));
        for list in revoked.expired(now) {
            checked.warnings.push(format!("the revocation list of {} has expired; it stays in force", list.issuer));
        }
        if let (Some(chain), Some(key)) = (chain, key) {
            let made = match TrustBundle::new(&roots, revoked) {
                Ok(bundle) => Credentials::examine(chain, &key, Arc::new(bundle), id, now).map(Some),
                // Said already; what can be said without roots is left.
                Err(_no_roots) => {
                    Pair::new(chain, &key, id, now).map_or_else(|error| Err(vec![error]), |pair| Err(pair.wrong))
                }
            };
            match made {
                Ok(Some(made)) if made.revoked() => {
                    let revoked = Problem::of(Origin::File(places.cert.clone()), "the certificate is revoked");
                    self.problems.push(revoked.key("identity.files.crls").hint("have a new one issued"));
                }
                Ok(made) => checked.about = made.as_ref().map(about).unwrap_or_default(),
                Err(wrong) => wrong.iter().for_each(|error| self.own(error)),
            }
        }
        self.problems.or(checked)
    }

    /// The lists that can be read.
    fn lists(&mut self) -> Arc<RevocationSet> {
        let mut good: Vec<(PathBuf, Arc<[u8]>)> = Vec::new();
        for file in &self.places.crls.clone() {
            let one = |bytes: &[u8]| {
                RevocationSet::read([(file.as_path(), bytes)])?;
                Ok(Arc::from(bytes))
            };
            good.extend(self.read("identity.files.crls", file, one).map(|bytes| (file.clone(), bytes)));
        }
        let good = RevocationSet::read(good.iter().map(|(file, bytes)| (file.as_path(), &**bytes)));
        Arc::new(good.unwrap_or_default())
    }

    fn read<T>(
        &mut self,
        key: &str,
        file: &Path,
        parse: impl FnOnce(&[u8]) -> Result<T, CredentialsError>,
    ) -> Option<T> {
        // The settings' own check has said that it is missing.
        if file.as_os_str().is_empty() {
            return None;
        }
        let content = crate::files::read(file, BOUNDS)
            .map_err(|error| CredentialsError::Unreadable { file: file.to_owned(), error: error.fault.to_string() });
        let parsed = content.and_then(|content| parse(content.bytes.as_deref().unwrap_or_default()));
        parsed.map_err(|error| self.problems.push(problem(key, file, &error))).ok()
    }

    /// What is wrong with key and chain together.
    fn own(&mut self, error: &CredentialsError) {
        let (key, file) = match error {
            CredentialsError::KeyMismatch | CredentialsError::UnsupportedKey => {
                ("identity.files.key", &self.places.key)
            }
            _ => ("identity.files.cert", &self.places.cert),
        };
        self.problems.push(problem(key, file, error));
    }
}

fn about(made: &Credentials) -> String {
    format!("{} until {}", made.id(), Rfc3339(made.not_after()))
}

/// The file once, whether or not the error names it.
fn problem(key: &str, file: &Path, error: &CredentialsError) -> Problem {
    let (file, message) = match error {
        CredentialsError::Unreadable { file, error } => (file.as_path(), format!("it cannot be read: {error}")),
        CredentialsError::Pem(pem) => {
            let block = pem.block.map(|block| format!("block {block}: ")).unwrap_or_default();
            (pem.file.as_path(), format!("{block}{}", pem.fault))
        }
        other => (file, other.to_string()),
    };
    Problem::of(Origin::File(file.to_owned()), message).key(key).hint(hint(error))
}

const fn hint(error: &CredentialsError) -> &'static str {
    match error {
        CredentialsError::Unreadable { .. } => "does it exist, and may adit's user read it?",
        CredentialsError::KeyMismatch => "adit waits for the other half: is one of the two files older?",
        CredentialsError::WrongIdentity { .. } | CredentialsError::Leaf(_) => {
            "the identity is spiffe://trustDomain/ns/namespace/sa/serviceAccount of `workload` in the settings"
        }
        CredentialsError::Dates { .. } => "have a new one issued, and look at the clock",
        CredentialsError::Chain { .. } => "the chain must end at a root of identity.files.roots",
        _ => "`adit certs inspect` shows what a file says",
    }
}

#[cfg(test)]
mod tests;
