//! Revocation lists: which certificates their issuers have taken back.
//!
//! In: files. Out: a [`RevocationSet`], read whole or not at all. A list that has expired stays in force: what was
//! revoked stays revoked. That and a list that cannot be read are the operator's to hear of; see `files`.

use std::cmp::Reverse;
use std::path::Path;
use std::time::SystemTime;

use sha2::{Digest as _, Sha256};
use webpki::{
    CertRevocationList, ExpirationPolicy, OwnedCertRevocationList, RevocationCheckDepth, RevocationOptions,
    RevocationOptionsBuilder, UnknownStatusPolicy,
};
use x509_parser::prelude::{CertificateRevocationList, FromDer as _};

use crate::identity::certificate::{hex, time};
use crate::identity::pem::{self, PemError, PemFault};

/// All lists that are in force.
#[derive(Debug, Default)]
pub struct RevocationSet {
    lists: Vec<CertRevocationList<'static>>,
    pub facts: Vec<ListFacts>,
    digest: Sha256,
}

/// What there is to say about one list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListFacts {
    pub issuer: String,
    pub this_update: SystemTime,
    pub next_update: Option<SystemTime>,
    pub revoked: usize,
}

impl RevocationSet {
    /// Reads files in PEM or DER; a list that is there twice counts once, and the newest of an issuer counts.
    pub fn read<'a>(files: impl IntoIterator<Item = (&'a Path, &'a [u8])>) -> Result<Self, PemError> {
        let mut set = Self::default();
        let (mut seen, mut found) = (Vec::new(), Vec::new());
        for (file, bytes) in files {
            for (block, der) in pem::revocation_lists(file, bytes)? {
                if seen.contains(&der) {
                    continue;
                }
                let malformed = |why: &str| pem::error(file, Some(block), PemFault::Content(why.to_owned()));
                let list = OwnedCertRevocationList::from_der(&der)
                    .map_err(|_detail| malformed("it is not a revocation list that can be enforced"))?;
                let (_, parsed) = CertificateRevocationList::from_der(&der)
                    .map_err(|_detail| malformed("it is not a well-formed revocation list"))?;
                let facts = ListFacts {
                    issuer: parsed.issuer().to_string(),
                    this_update: time(parsed.last_update().timestamp()),
                    next_update: parsed.next_update().map(|at| time(at.timestamp())),
                    revoked: parsed.iter_revoked_certificates().count(),
                };
                set.digest.update(&der);
                found.push((facts, list.into()));
                seen.push(der);
            }
        }
        // Of several by one issuer only the first is asked: the newest, and of two made at once the longer.
        found.sort_by_key(|(facts, _)| Reverse((facts.this_update, facts.revoked)));
        (set.facts, set.lists) = found.into_iter().unzip();
        Ok(set)
    }

    /// The lists that should have been replaced by now.
    pub fn expired(&self, now: SystemTime) -> impl Iterator<Item = &ListFacts> {
        self.facts.iter().filter(move |list| list.next_update.is_some_and(|next| next < now))
    }

    /// Equal digests, equal sets.
    #[must_use]
    pub fn digest(&self) -> String {
        hex(&self.digest.clone().finalize())
    }

    /// Calls `check` with how to look at the whole chain: unknown is allowed, expired lists count.
    pub(super) fn with_options<T>(&self, check: impl FnOnce(Option<RevocationOptions<'_>>) -> T) -> T {
        let lists: Vec<&CertRevocationList<'_>> = self.lists.iter().collect();
        let options = RevocationOptionsBuilder::new(&lists).ok().map(|builder| {
            builder
                .with_depth(RevocationCheckDepth::Chain)
                .with_status_policy(UnknownStatusPolicy::Allow)
                .with_expiration_policy(ExpirationPolicy::Ignore)
                .build()
        });
        check(options)
    }
}
