//! The files source: certificate, key, roots and revocation lists that somebody else writes.
//!
//! ```text
//! wake-up -> scan until two looks agree -> PEM -> Credentials
//! ```
//!
//! All files are read in one look, and the look starts over when a folder's `..data` link (as Kubernetes swaps volumes)
//! moves meanwhile; so key, chain, roots and lists of one generation come together. Content decides, not events. Half a
//! pair does not fit together, so it is refused and the old stays until the other half has come.
//!
//! Fails closed: what is missing or unreadable at the start means no credentials, never an empty trust store and never
//! revocation off. Later, a bad file of revocation lists keeps what it said before in force, and the rest is taken, other
//! such files included: loud, and no outage. Good lists and roots are handed on even if key and certificate are bad, or
//! the roots are: no revocation waits for that.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustix::process::{getegid, geteuid, getgroups};
use rustls_pki_types::CertificateDer;
use tokio::time::{Instant, sleep};

use crate::files::{self, Bounds, ContentHash, Effort, FileSet, Pace, Scan, Wakeups, WatchMode};
use crate::identity::certificate::CertificateFacts;
use crate::identity::credentials::{Credentials, CredentialsError, TrustBundle};
use crate::identity::crl::{ListFacts, RevocationSet};
use crate::identity::pem::{self, PemFault};
use crate::identity::source::{Fault, FetchError, Fetched, Pending, Source};
use crate::identity::spiffe::SpiffeId;

const NAME: &str = "files";
pub(super) const BOUNDS: Bounds = Bounds { file_bytes: 16 << 20, total_bytes: 64 << 20, files: 256 };
/// How often a look starts over when links move under it.
const ATTEMPTS: usize = 5;

/// Which files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// The leaf, then what stands between it and a root.
    pub cert: PathBuf,
    pub key: PathBuf,
    pub roots: Vec<PathBuf>,
    pub crls: Vec<PathBuf>,
}

pub struct FilesSource {
    wakeups: Wakeups,
    pace: Pace,
    /// Never contended: one blocking task at a time.
    reader: Arc<Mutex<Reader>>,
}

struct Reader {
    files: FileSet,
    places: Places,
    id: SpiffeId,
    /// What was last decided on.
    decided: Option<ContentHash>,
    /// What each file of revocation lists said when it was last good.
    lists: HashMap<PathBuf, Arc<[u8]>>,
    /// All of these.
    revoked: Option<Arc<RevocationSet>>,
    /// The last good roots.
    roots: Option<Vec<CertificateDer<'static>>>,
}

impl std::fmt::Debug for FilesSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FilesSource")
    }
}

impl FilesSource {
    #[must_use]
    pub fn new(places: Places, id: SpiffeId, pace: Pace, mode: WatchMode) -> Self {
        let all = [&places.cert, &places.key].into_iter().chain(&places.roots).chain(&places.crls).cloned().collect();
        let (files, wakeups) = files::watch(all, BOUNDS, pace, mode);
        let reader = Reader { files, places, id, decided: None, lists: HashMap::new(), revoked: None, roots: None };
        Self { wakeups, pace, reader: Arc::new(Mutex::new(reader)) }
    }

    async fn with_reader<T: Send + 'static>(
        reader: &Arc<Mutex<Reader>>,
        work: impl FnOnce(&mut Reader) -> T + Send + 'static,
    ) -> Result<T, CredentialsError> {
        let reader = Arc::clone(reader);
        let done =
            tokio::task::spawn_blocking(move || work(&mut reader.lock().unwrap_or_else(PoisonError::into_inner)));
        done.await.map_err(|error| CredentialsError::Authority(error.to_string()))
    }
}

impl Source for FilesSource {
    fn name(&self) -> &'static str {
        NAME
    }

    fn issues(&self) -> bool {
        false
    }

    fn changed(&mut self) -> Pending<'_, ()> {
        Box::pin(async {
            loop {
                let effort = self.wakeups.next().await;
                let differs = Self::with_reader(&self.reader, move |reader| {
                    let digest = reader.look(effort).digest;
                    reader.decided != Some(digest)
                });
                if differs.await.unwrap_or(true) {
                    return;
                }
            }
        })
    }

    fn fetch(&mut self, now: SystemTime) -> Pending<'_, Result<Fetched, FetchError>> {
        Box::pin(async move {
            let give_up = Instant::now() + self.pace.settle_max;
            let mut before = None;
            loop {
                let patient = Instant::now() < give_up;
                let done = Self::with_reader(&self.reader, move |reader| {
                    let scan = reader.look(Effort::Full);
                    let settled = before == Some(scan.digest) || !patient;
                    (scan.digest, settled.then(|| reader.decide(&scan, now)))
                });
                match done.await? {
                    (_, Some(fetched)) => return fetched,
                    (digest, None) => before = Some(digest),
                }
                sleep(self.pace.settle).await;
            }
        })
    }
}

impl Reader {
    /// One look at all files, between two moves of their folders' links.
    fn look(&mut self, effort: Effort) -> Scan {
        let mut attempt = 1;
        loop {
            let before = self.links();
            let scan = self.files.scan(effort, |_, _| false);
            if attempt == ATTEMPTS || before == self.links() {
                return scan;
            }
            attempt += 1;
        }
    }

    fn links(&self) -> Vec<Option<PathBuf>> {
        let link = |path: &PathBuf| fs::read_link(path.parent()?.join("..data")).ok();
        self.files.sources().iter().map(link).collect()
    }

    fn decide(&mut self, scan: &Scan, now: SystemTime) -> Result<Fetched, FetchError> {
        self.decided = Some(scan.digest);
        let content = Content::of(scan);
        let mut faults: Vec<Fault> = open_to_others(&self.places.key).into_iter().collect();
        let revoked = self.read_lists(&content, now, &mut faults)?;
        for list in revoked.expired(now) {
            let message = format!("the revocation list of {} has expired; it stays in force", list.issuer);
            faults.push(Fault { reason: "crl_expired", message });
        }
        // Kept even if the rest is bad: what has been revoked stays so at the next look.
        self.revoked = Some(Arc::clone(&revoked));
        // Bad roots are an error, but no reason to wait with what is revoked: it is put beside the last good ones.
        let (roots, bad_roots) = match (self.read_roots(&content), self.roots.take()) {
            (Ok(roots), _) => (roots, None),
            (Err(error), Some(kept)) => (kept, Some(error)),
            (Err(error), None) => return Err(error.into()),
        };
        let bundle = TrustBundle::new(&roots, revoked).map(Arc::new);
        self.roots = Some(roots);
        let bundle = bundle?;
        let credentials = match bad_roots {
            Some(error) => Err(error),
            None => self.read_own(&content, Arc::clone(&bundle), now),
        };
        match credentials {
            Ok(credentials) => Ok(Fetched { credentials, faults }),
            Err(error) => Err(FetchError { error: Box::new(error), bundle: Some(bundle), faults }),
        }
    }

    /// The roots of all files, each fit to be trusted.
    fn read_roots(&self, content: &Content) -> Result<Vec<CertificateDer<'static>>, CredentialsError> {
        let mut roots = Vec::new();
        for file in &self.places.roots {
            roots.extend(certificates(file, content.bytes(file)?)?);
        }
        TrustBundle::new(&roots, Arc::default())?;
        Ok(roots)
    }

    fn read_own(
        &self,
        content: &Content,
        bundle: Arc<TrustBundle>,
        now: SystemTime,
    ) -> Result<Credentials, CredentialsError> {
        let mut chain = certificates(&self.places.cert, content.bytes(&self.places.cert)?)?;
        // Peers have their own roots; sending ours is bytes for nothing.
        let roots = self.roots.as_deref().unwrap_or_default();
        let mut index = 0;
        chain.retain(|certificate| {
            index += 1;
            index == 1 || !roots.contains(certificate)
        });
        let key = pem::private_key(&self.places.key, content.bytes(&self.places.key)?)?;
        Credentials::new(chain, &key, bundle, &self.id, now)
    }

    /// The lists of all files, each as it is now or, if that is no good, as it was when it last was.
    fn read_lists(
        &mut self,
        content: &Content,
        now: SystemTime,
        faults: &mut Vec<Fault>,
    ) -> Result<Arc<RevocationSet>, CredentialsError> {
        for file in &self.places.crls {
            match self.read_list(file, content, now) {
                Ok(bytes) => drop(self.lists.insert(file.clone(), bytes)),
                // Of a file that never was good nothing is known, and that is not the same as nothing revoked.
                Err(error) if !self.lists.contains_key(file) => return Err(error),
                Err(error) => {
                    let message = format!("{error}; the revocation lists that it held before stay in force");
                    faults.push(Fault { reason: "crl", message });
                }
            }
        }
        let files = self.places.crls.iter().filter_map(|file| Some((file.as_path(), &**self.lists.get(file)?)));
        Ok(Arc::new(RevocationSet::read(files)?))
    }

    /// One file of lists; not one whose lists have expired and are older than those in force.
    fn read_list(&self, file: &Path, content: &Content, now: SystemTime) -> Result<Arc<[u8]>, CredentialsError> {
        let bytes = content.bytes(file)?;
        let read = RevocationSet::read([(file, &**bytes)])?;
        let newer = |list: &&ListFacts| {
            let known = self.revoked.iter().flat_map(|kept| &kept.facts);
            known.into_iter().any(|kept| kept.issuer == list.issuer && kept.this_update > list.this_update)
        };
        if let Some(list) = read.expired(now).find(newer) {
            return Err(CredentialsError::Unreadable {
                file: file.to_owned(),
                error: format!("the list of {} has expired, and is older", list.issuer),
            });
        }
        Ok(Arc::clone(bytes))
    }
}

/// A key that others than adit and its owner can read; it is used all the same.
pub(super) fn open_to_others(key: &Path) -> Option<Fault> {
    let metadata = fs::metadata(key).ok()?;
    let mode = metadata.mode() & 0o777;
    let mut groups = getgroups().unwrap_or_default();
    groups.push(getegid());
    let ours = groups.iter().any(|group| group.as_raw() == metadata.gid());
    let by_group = metadata.uid() != geteuid().as_raw() && ours;
    let message = || {
        format!(
            "others can read the private key {} (its mode is {mode:04o}): chmod 600 it, or give a Kubernetes volume \
             defaultMode 0400",
            key.display()
        )
    };
    is_open(mode, by_group).then(|| Fault { reason: "key_permissions", message: message() })
}

/// Where it is `by_group` that adit reads a file of somebody else's, as with `fsGroup` in a pod, the group may read it.
const fn is_open(mode: u32, by_group: bool) -> bool {
    mode & if by_group { 0o004 } else { 0o044 } != 0
}

/// What was read, by path.
struct Content {
    bytes: HashMap<PathBuf, Arc<[u8]>>,
    errors: HashMap<PathBuf, String>,
}

impl Content {
    fn of(scan: &Scan) -> Self {
        let bytes = scan.files.iter().filter_map(|file| Some((file.path.clone(), file.bytes.clone()?)));
        let errors = scan.errors.iter().map(|error| (error.path.clone(), error.fault.to_string()));
        Self { bytes: bytes.collect(), errors: errors.collect() }
    }

    fn bytes(&self, file: &Path) -> Result<&Arc<[u8]>, CredentialsError> {
        self.bytes.get(file).ok_or_else(|| {
            let error = self.errors.get(file).cloned().unwrap_or_else(|| "it is not a file".to_owned());
            CredentialsError::Unreadable { file: file.to_owned(), error }
        })
    }
}

/// The certificates of a file, each known to be well-formed, so that the error names the block.
pub fn certificates(file: &Path, bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, CredentialsError> {
    let found = pem::certificates(file, bytes)?.into_iter().map(|(block, certificate)| {
        CertificateFacts::of(&certificate)
            .map(|_facts| certificate)
            .map_err(|why| pem::error(file, Some(block), PemFault::Content(why.to_string())).into())
    });
    found.collect()
}

#[cfg(test)]
mod tests;
