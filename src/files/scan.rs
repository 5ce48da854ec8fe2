//! One look at all sources: which files there are, what their content hashes to, what cannot be read.
//!
//! Blocking: call it on a thread that may wait. A scan never mixes two states of a folder: if the folder or its `..data`
//! link changed meanwhile, it starts over. A file whose `stat` is as it was at two earlier readings is not read again;
//! two, because a change within one tick of the file system's clock after the first would go unseen.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File, Metadata};
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use sha2::{Digest as _, Sha256};

use crate::files::wakeups::Folders;
use crate::files::{Bounds, FileError, FileFault, places};

/// How often a scan starts over when the folders change under it.
const ATTEMPTS: usize = 4;

/// SHA-256; displayed in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContentHash([u8; 32]);

/// How hard to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// Trust `stat`.
    Gated,
    /// Read everything.
    Full,
}

#[derive(Clone)]
pub struct FileContent {
    pub path: PathBuf,
    pub hash: ContentHash,
    /// Absent when the caller knows this content.
    pub bytes: Option<Arc<[u8]>>,
}

#[derive(Debug, Clone)]
pub struct Scan {
    /// In the order of the sources, folders sorted by name; each path once.
    pub files: Vec<FileContent>,
    pub errors: Vec<FileError>,
    /// Of paths, contents and errors: equal digests, equal scans.
    pub digest: ContentHash,
}

/// The sources and what is remembered of their files.
#[derive(Debug)]
pub struct FileSet {
    sources: Vec<PathBuf>,
    bounds: Bounds,
    pub(super) seen: HashMap<PathBuf, Seen>,
    folders: Option<Folders>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    stamp: Stamp,
    hash: ContentHash,
    /// Read at least twice with this stamp.
    pub(super) confirmed: bool,
}

/// What `stat` says; differs when the content may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// A source as it was when listed: its own stamp and where `..data` pointed.
type Mark = (Option<Stamp>, Option<PathBuf>);

impl FileSet {
    #[must_use]
    pub fn new(sources: Vec<PathBuf>, bounds: Bounds) -> Self {
        Self { sources, bounds, seen: HashMap::new(), folders: None }
    }

    pub(super) fn waking(mut self, folders: Folders) -> Self {
        self.folders = Some(folders);
        self
    }

    #[must_use]
    pub fn sources(&self) -> &[PathBuf] {
        &self.sources
    }

    /// Looks at everything, then sees to it that the next change there wakes. Contents that the caller `knows` come
    /// without their bytes.
    pub fn scan(&mut self, effort: Effort, knows: impl Fn(&Path, ContentHash) -> bool) -> Scan {
        let scan = self.scan_still(effort, &knows);
        let paths: HashSet<&Path> = scan.files.iter().map(|file| file.path.as_path()).collect();
        self.seen.retain(|path, _| paths.contains(path.as_path()));
        if let Some(folders) = &mut self.folders {
            let files = scan.files.iter().map(|file| file.path.as_path());
            folders.follow(places::folders(self.sources.iter().map(PathBuf::as_path).chain(files)));
        }
        scan
    }

    fn scan_still(&mut self, effort: Effort, knows: &dyn Fn(&Path, ContentHash) -> bool) -> Scan {
        let mut attempt = 1;
        loop {
            let before = self.marks();
            let scan = self.scan_once(effort, knows);
            if before == self.marks() {
                return scan;
            }
            if attempt == ATTEMPTS {
                let unstable = self.sources.iter().zip(before).zip(self.marks());
                let unstable = unstable.filter(|((_, before), after)| before != after);
                let errors = unstable.map(|((path, _), _)| FileError::new(path, FileFault::Unstable)).collect();
                return Scan::new(scan.files, errors);
            }
            attempt += 1;
        }
    }

    fn marks(&self) -> Vec<Mark> {
        let mark = |path: &PathBuf| {
            let stamp = fs::metadata(path).ok().filter(Metadata::is_dir).map(|it| Stamp::of(&it));
            (stamp, fs::read_link(path.join("..data")).ok())
        };
        self.sources.iter().map(mark).collect()
    }

    fn scan_once(&mut self, effort: Effort, knows: &dyn Fn(&Path, ContentHash) -> bool) -> Scan {
        let (paths, mut errors) = list(&self.sources, self.bounds);
        let mut files: Vec<FileContent> = Vec::with_capacity(paths.len());
        let mut total = 0_u64;
        for path in paths {
            let size = match self.look(&path, effort, knows) {
                Ok((file, size)) => {
                    files.push(file);
                    size
                }
                Err(error) => {
                    errors.push(error);
                    continue;
                }
            };
            total = total.saturating_add(size);
            if total > self.bounds.total_bytes {
                errors.push(FileError::new(&path, FileFault::TooMuch { limit: self.bounds.total_bytes }));
                break;
            }
        }
        Scan::new(files, errors)
    }

    fn look(
        &mut self,
        path: &Path,
        effort: Effort,
        knows: &dyn Fn(&Path, ContentHash) -> bool,
    ) -> Result<(FileContent, u64), FileError> {
        let metadata = fs::metadata(path).map_err(|error| FileError::io(path, "look at it", &error))?;
        let stamp = Stamp::of(&metadata);
        let before = self.seen.get(path).filter(|seen| seen.stamp == stamp).copied();
        if effort == Effort::Gated
            && let Some(seen) = before.filter(|seen| seen.confirmed && knows(path, seen.hash))
        {
            return Ok((FileContent { path: path.to_owned(), hash: seen.hash, bytes: None }, stamp.size));
        }
        let (mut content, stamp) = read_stamped(path, self.bounds)?;
        let confirmed = before.is_some_and(|seen| seen.stamp == stamp && seen.hash == content.hash);
        self.seen.insert(path.to_owned(), Seen { stamp, hash: content.hash, confirmed });
        if knows(path, content.hash) {
            content.bytes = None;
        }
        Ok((content, stamp.size))
    }
}

/// Reads one file now, whatever is remembered.
pub fn read(path: &Path, bounds: Bounds) -> Result<FileContent, FileError> {
    read_stamped(path, bounds).map(|(content, _)| content)
}

/// The content and the stamp it had both before and after it was read.
fn read_stamped(path: &Path, bounds: Bounds) -> Result<(FileContent, Stamp), FileError> {
    for _ in 0..ATTEMPTS {
        // Non-blocking, or opening a fifo would wait for a writer.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let opened = rustix::fs::open(path, flags, Mode::empty());
        let mut file = File::from(opened.map_err(|error| FileError::io(path, "open it", &error.into()))?);
        let stat = |file: &File| file.metadata().map_err(|error| FileError::io(path, "look at it", &error));
        let metadata = stat(&file)?;
        if !metadata.is_file() {
            return Err(FileError::new(path, FileFault::NotAFile));
        }
        let limit = bounds.file_bytes;
        let mut bytes = Vec::with_capacity(usize::try_from(metadata.len().min(limit)).unwrap_or(0));
        let reading = (&mut file).take(limit.saturating_add(1)).read_to_end(&mut bytes);
        reading.map_err(|error| FileError::io(path, "read it", &error))?;
        if u64::try_from(bytes.len()).is_ok_and(|read| read > limit) {
            return Err(FileError::new(path, FileFault::TooLarge { limit }));
        }
        let stamp = Stamp::of(&metadata);
        if Stamp::of(&stat(&file)?) == stamp {
            let hash = ContentHash::of(&bytes);
            return Ok((FileContent { path: path.to_owned(), hash, bytes: Some(bytes.into()) }, stamp));
        }
    }
    Err(FileError::new(path, FileFault::Unstable))
}

/// The files that the sources mean.
fn list(sources: &[PathBuf], bounds: Bounds) -> (Vec<PathBuf>, Vec<FileError>) {
    let (mut paths, mut errors, mut known) = (Vec::new(), Vec::new(), HashSet::new());
    for source in sources {
        let listed = match fs::metadata(source) {
            Ok(metadata) if metadata.is_dir() => list_folder(source),
            Ok(_) => Ok(vec![source.clone()]),
            Err(error) => Err(FileError::io(source, "look at it", &error)),
        };
        match listed {
            Ok(listed) => paths.extend(listed.into_iter().filter(|path| known.insert(path.clone()))),
            Err(error) => errors.push(error),
        }
        if paths.len() > bounds.files {
            errors.push(FileError::new(source, FileFault::TooMany { limit: bounds.files }));
            paths.truncate(bounds.files);
            break;
        }
    }
    (paths, errors)
}

fn list_folder(folder: &Path) -> Result<Vec<PathBuf>, FileError> {
    let failed = |error: &std::io::Error| FileError::io(folder, "list it", error);
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(|error| failed(&error))? {
        let name = entry.map_err(|error| failed(&error))?.file_name();
        if is_wanted(&name) && !folder.join(&name).is_dir() {
            names.push(name);
        }
    }
    if names.is_empty() {
        return Err(FileError::new(folder, FileFault::EmptyFolder));
    }
    names.sort();
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

fn is_wanted(name: &OsStr) -> bool {
    let hidden = name.as_bytes().starts_with(b".");
    let extension = Path::new(name).extension();
    !hidden && extension.is_some_and(|extension| extension == "yaml" || extension == "yml")
}

impl Scan {
    fn new(files: Vec<FileContent>, errors: Vec<FileError>) -> Self {
        let mut digest = Sha256::new();
        for file in &files {
            digest.update(file.path.as_os_str().as_bytes());
            digest.update([0]);
            digest.update(file.hash.0);
        }
        for error in &errors {
            digest.update(error.to_string().as_bytes());
            digest.update([0]);
        }
        Self { files, errors, digest: ContentHash(digest.finalize().into()) }
    }

    /// As if `text` were the one file there is.
    #[must_use]
    pub fn of_text(name: &str, text: &str) -> Self {
        let bytes = text.as_bytes();
        let file = FileContent { path: name.into(), hash: ContentHash::of(bytes), bytes: Some(bytes.into()) };
        Self::new(vec![file], Vec::new())
    }

    /// Of contents only, wherever they lie: one file's own hash, several files' hash of hashes; nothing, nothing.
    #[must_use]
    pub fn source_hash(&self) -> String {
        match self.files.as_slice() {
            [] => String::new(),
            [only] => only.hash.to_string(),
            files => {
                let hashes = files.iter().fold(Sha256::new(), |digest, file| digest.chain_update(file.hash.0));
                ContentHash(hashes.finalize().into()).to_string()
            }
        }
    }
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl ContentHash {
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Contents may be secret and are long: only their hash is shown.
impl fmt::Debug for FileContent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileContent").field("path", &self.path).field("hash", &self.hash).finish_non_exhaustive()
    }
}
