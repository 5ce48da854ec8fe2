//! What the settings ask of this room, checked: the identity, the accepted trust domains, and the source.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::config::problem::{Origin, Problem, Problems};
use crate::config::settings::{IdentitySource, Settings};
use crate::files::{Pace, WatchMode};
use crate::identity::dev::DevSource;
use crate::identity::files::{FilesSource, Places};
use crate::identity::source::Source;
use crate::identity::spiffe::{SpiffeId, TrustDomain};

/// Who to be and whom to accept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub id: SpiffeId,
    /// The own trust domain, then its aliases.
    pub accepted: Arc<[TrustDomain]>,
    pub root_grace: Duration,
}

/// The plan; nothing if `identity.source` is none.
///
/// # Errors
/// Names that cannot be part of an identity.
pub fn plan(settings: &Settings) -> Result<Option<Plan>, Problems> {
    let identity = &settings.identity;
    if identity.source == IdentitySource::None {
        return Ok(None);
    }
    let mut problems = Problems::default();
    let workload = &settings.workload;
    let mut refuse = |key: &str, found: &str, error: &dyn std::fmt::Display| {
        let problem = Problem::of(Origin::Defaults, "").key(key).found(format!("{found:?}"));
        problems.push(problem.expected("a part of a SPIFFE id").hint(error.to_string()));
    };
    let mut accepted = Vec::new();
    let names = std::iter::once(("workload.trustDomain", &workload.trust_domain));
    for (key, name) in names.chain(identity.trust_domain_aliases.iter().map(|it| ("identity.trustDomainAliases", it))) {
        match TrustDomain::from_str(name) {
            Ok(domain) if accepted.contains(&domain) => {}
            Ok(domain) => accepted.push(domain),
            Err(error) => refuse(key, name, &error),
        }
    }
    let (namespace, account) = (&*workload.namespace, &*workload.service_account);
    let id = match TrustDomain::from_str(&workload.trust_domain) {
        Ok(own) => SpiffeId::of_service_account(&own, namespace, account)
            .map_err(|error| refuse("workload", &format!("{namespace} {account}"), &error))
            .ok(),
        Err(_refused_above) => None,
    };
    if identity.source == IdentitySource::Dev && identity.dev.folder.as_os_str().is_empty() {
        refuse("identity.dev.folder", "", &"there is no state folder of the user: set it");
    }
    problems.or(id.map(|id| Plan { id, accepted: accepted.into(), root_grace: identity.root_grace }))
}

/// The source that the settings name.
#[must_use]
pub fn source(settings: &Settings, id: &SpiffeId) -> Option<Box<dyn Source>> {
    let identity = &settings.identity;
    match identity.source {
        IdentitySource::None => None,
        IdentitySource::Dev => Some(Box::new(DevSource::new(identity.dev.folder.clone(), id.clone()))),
        IdentitySource::Files => {
            Some(Box::new(FilesSource::new(places(settings), id.clone(), Pace::default(), WatchMode::Events)))
        }
    }
}

/// The files of the files source.
pub(super) fn places(settings: &Settings) -> Places {
    let files = settings.identity.files.clone();
    Places { cert: files.cert, key: files.key, roots: files.roots, crls: files.crls }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_an_identity_or_problems() {
        let mut settings = Settings::default();
        assert_eq!(plan(&settings), Ok(None));
        settings.identity.source = IdentitySource::Dev;
        settings.identity.dev.folder = "/d".into();
        settings.identity.trust_domain_aliases = vec!["old.local".into(), "cluster.local".into()];
        let made = plan(&settings).unwrap().unwrap();
        assert_eq!(made.id.as_str(), "spiffe://cluster.local/ns/default/sa/default");
        assert_eq!(made.accepted.len(), 2);
        settings.workload.trust_domain = "Cluster.Local".into();
        settings.workload.namespace = "a:b".into();
        settings.identity.trust_domain_aliases.push("x:y".into());
        settings.identity.dev.folder = "".into();
        let problems = plan(&settings).unwrap_err();
        let keys: Vec<&str> = problems.iter().map(|problem| problem.key_path.as_str()).collect();
        assert_eq!(keys, ["workload.trustDomain", "identity.trustDomainAliases", "identity.dev.folder"]);
    }
}
