//! The dev source: an authority in a folder of the user. Not for production: whoever reads the folder is everybody.
//!
//! The root is made once, key and certificate in one file that appears whole or not at all, so several starts at a time
//! agree on one; every adit that shares the folder trusts the others. Leaves live for 24 hours and are renewed
//! at half life. Fails closed: a folder that others may enter, or a root that cannot be used, gives no credentials.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::fs::{CWD, RenameFlags};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject as _;

use crate::identity::authority::{Authority, AuthorityError};
use crate::identity::credentials::{Credentials, CredentialsError, TrustBundle};
use crate::identity::source::{FetchError, Fetched, Pending, Source};
use crate::identity::spiffe::SpiffeId;

pub(super) const NAME: &str = "dev";
const ROOT_FILE: &str = "root.pem";
const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
const LEAF_LIFE: Duration = Duration::from_secs(24 * 3600);
const MAX_ROOT_BYTES: u64 = 64 * 1024;

#[derive(Debug)]
pub struct DevSource {
    folder: PathBuf,
    id: SpiffeId,
}

impl DevSource {
    #[must_use]
    pub const fn new(folder: PathBuf, id: SpiffeId) -> Self {
        Self { folder, id }
    }
}

impl Source for DevSource {
    fn name(&self) -> &'static str {
        NAME
    }

    fn issues(&self) -> bool {
        true
    }

    fn warning(&self) -> Option<&'static str> {
        Some("the certificates come from the dev source, which is not for production")
    }

    fn changed(&mut self) -> Pending<'_, ()> {
        Box::pin(std::future::pending())
    }

    fn fetch(&mut self, now: SystemTime) -> Pending<'_, Result<Fetched, FetchError>> {
        let (folder, id) = (self.folder.clone(), self.id.clone());
        Box::pin(async move {
            let issued = tokio::task::spawn_blocking(move || issue(&folder, &id, now)).await;
            issued.map_err(|error| CredentialsError::Authority(error.to_string()))?
        })
    }
}

fn issue(folder: &Path, id: &SpiffeId, now: SystemTime) -> Result<Fetched, FetchError> {
    let root = root(folder, now)?;
    let bundle = Arc::new(TrustBundle::new([root.certificate()], Arc::default())?);
    match leaf(&root, &bundle, id, now) {
        Ok(credentials) => Ok(Fetched { credentials, faults: Vec::new() }),
        Err(error) => Err(FetchError { error: Box::new(error), bundle: Some(bundle), faults: Vec::new() }),
    }
}

fn leaf(
    root: &Authority,
    bundle: &Arc<TrustBundle>,
    id: &SpiffeId,
    now: SystemTime,
) -> Result<Credentials, CredentialsError> {
    let failed = |error: AuthorityError| CredentialsError::Authority(error.to_string());
    let leaf = root.issue(id, now, LEAF_LIFE).map_err(failed)?;
    let key = PrivateKeyDer::from_pem_slice(leaf.key_pem.as_bytes())
        .map_err(|_secret| CredentialsError::Authority("the new key cannot be read back".to_owned()))?;
    Credentials::new(vec![leaf.certificate], &key, Arc::clone(bundle), id, now)
}

/// The root of `folder`, made if there is none; two that make it at a time get the same.
pub fn root(folder: &Path, now: SystemTime) -> Result<Authority, CredentialsError> {
    let file = folder.join(ROOT_FILE);
    let cannot = |path: &Path| {
        let path = path.to_owned();
        move |error: io::Error| CredentialsError::Unreadable { file: path, error: error.to_string() }
    };
    private_folder(folder).map_err(cannot(folder))?;
    if !file.try_exists().map_err(cannot(&file))? {
        let (root, key) = Authority::new_root("adit dev root", now, ROOT_LIFE)
            .map_err(|error| CredentialsError::Authority(error.to_string()))?;
        let content = format!("{}{key}", root.certificate_pem());
        write_once(&file, content.as_bytes()).map_err(cannot(&file))?;
    }
    let metadata = fs::metadata(&file).map_err(cannot(&file))?;
    if metadata.mode() & 0o077 != 0 || metadata.len() > MAX_ROOT_BYTES {
        let why = io::Error::other("its permissions must be 0600, and it is not large");
        return Err(cannot(&file)(why));
    }
    let text = fs::read_to_string(&file).map_err(cannot(&file))?;
    Authority::from_pem(&text, &text)
        .map_err(|error| cannot(&file)(io::Error::other(format!("{error}: remove it to make a new root"))))
}

/// Whether [`root`] would do, without making anything.
pub(super) fn look(folder: &Path, now: SystemTime) -> Result<(), CredentialsError> {
    if folder.join(ROOT_FILE).exists() {
        return root(folder, now).map(drop);
    }
    let fit = if folder.exists() { private_folder(folder) } else { Ok(()) };
    fit.map_err(|error| CredentialsError::Unreadable { file: folder.to_owned(), error: error.to_string() })
}

/// Makes the folder, or checks that it is ours alone.
fn private_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let metadata = fs::metadata(folder)?;
    if !metadata.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    if metadata.mode() & 0o077 != 0 || metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::Error::other("the folder must be the user's own, with permissions 0700"));
    }
    Ok(())
}

/// Writes a file that nobody sees half of, unless it is there already.
fn write_once(file: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = file.with_file_name(format!(".{ROOT_FILE}.{}.{:x}", std::process::id(), fastrand::u64(..)));
    let written = write_new(&temporary, content).and_then(|()| {
        match rustix::fs::renameat_with(CWD, &temporary, CWD, file, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(()),
            // Somebody else was first: theirs is the root.
            Err(rustix::io::Errno::EXIST) => fs::remove_file(&temporary),
            Err(error) => Err(error.into()),
        }
    });
    if written.is_err() {
        // Best effort: it is named as temporary.
        let _gone = fs::remove_file(&temporary);
    }
    written?;
    File::open(file.parent().unwrap_or(Path::new(".")))?.sync_all()
}

/// A new file, readable by its owner only, on disk when this returns.
pub fn write_new(file: &Path, content: &[u8]) -> io::Result<()> {
    let mut new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    new.write_all(content)?;
    new.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn starts_at_a_time_agree_on_one_root() {
        for _ in 0..5 {
            let dir = tempfile::tempdir().unwrap();
            let folder = dir.path().join("state/dev");
            let barrier = Barrier::new(8);
            let roots: Vec<_> = std::thread::scope(|scope| {
                let start = || {
                    barrier.wait();
                    root(&folder, SystemTime::now()).unwrap().certificate().to_vec()
                };
                let threads: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            assert!(roots.iter().all(|root| *root == roots[0]));
            let left: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(left, [ROOT_FILE], "nothing temporary stays");
            assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o777, 0o700);
            assert_eq!(fs::metadata(folder.join(ROOT_FILE)).unwrap().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn what_others_could_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("dev");
        root(&folder, SystemTime::now()).unwrap();
        fs::set_permissions(folder.join(ROOT_FILE), fs::Permissions::from_mode(0o640)).unwrap();
        assert!(root(&folder, SystemTime::now()).unwrap_err().to_string().contains("0600"));
        fs::set_permissions(folder.join(ROOT_FILE), fs::Permissions::from_mode(0o600)).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(root(&folder, SystemTime::now()).unwrap_err().to_string().contains("0700"));
    }

    /// A renewal that fails takes nothing away from whom to trust.
    #[test]
    fn a_root_that_can_issue_no_more_is_still_handed_on() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, now) = (dir.path().join("dev"), SystemTime::now());
        let made = root(&folder, now - ROOT_LIFE * 2).unwrap();
        let failed = issue(&folder, &crate::identity::fixture::id("web"), now).unwrap_err();
        assert_eq!(failed.error.reason(), "chain");
        let expected = TrustBundle::new([made.certificate()], Arc::default()).unwrap();
        assert_eq!(failed.bundle.unwrap().digest(), expected.digest());
    }

    #[test]
    fn a_root_that_is_cut_off_is_refused_and_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("dev");
        root(&folder, SystemTime::now()).unwrap();
        let file = folder.join(ROOT_FILE);
        let whole = fs::read(&file).unwrap();
        fs::write(&file, &whole[..whole.len() / 2]).unwrap();
        assert!(root(&folder, SystemTime::now()).unwrap_err().to_string().contains("remove it"));
        assert_eq!(fs::read(&file).unwrap().len(), whole.len() / 2);
    }
}
