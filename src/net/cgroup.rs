//! Where cgroups of version 2 are: the file system's mount, its folders, and one of them held open. What can be seen from
//! here is asked only; in a container that is the container's own part of the tree.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{Mode, OFlags, fstat, fstatfs, open};

/// Of the file system.
const CGROUP2_MAGIC: i64 = 0x6367_7270;
/// More folders than a machine of many thousand containers has.
const MAX_FOLDERS: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("cannot read where cgroups are mounted")]
    Mounts(#[source] io::Error),
    #[error("no cgroup file system of version 2 is mounted here")]
    NotMounted,
    #[error("{} is not a folder of a cgroup file system of version 2", .0.display())]
    NotACgroup(PathBuf),
    #[error("cannot open the cgroup {}", path.display())]
    Open { path: PathBuf, source: io::Error },
}

/// A cgroup, by its folder.
#[derive(Debug, Clone)]
pub struct Cgroup {
    fd: Rc<OwnedFd>,
    /// Device and inode: the same folder may have several paths.
    identity: (u64, u64),
}

impl Cgroup {
    /// # Errors
    /// It cannot be opened, or is something else.
    pub fn open(path: &Path) -> Result<Self, CgroupError> {
        let failed = |error: rustix::io::Errno| CgroupError::Open { path: path.to_owned(), source: error.into() };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = open(path, flags, Mode::empty()).map_err(failed)?;
        if fstatfs(&fd).map_err(failed)?.f_type as i64 != CGROUP2_MAGIC {
            return Err(CgroupError::NotACgroup(path.to_owned()));
        }
        let stat = fstat(&fd).map_err(failed)?;
        Ok(Self { fd: Rc::new(fd), identity: (stat.st_dev, stat.st_ino) })
    }

    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Whether both are the same.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        self.identity == other.identity
    }
}

/// The root of what can be seen.
///
/// # Errors
/// There is none.
pub fn mount() -> Result<PathBuf, CgroupError> {
    mounts()?.into_iter().next().ok_or(CgroupError::NotMounted)
}

/// All folders, parents first; none where nothing is mounted.
///
/// # Errors
/// It cannot be found out what is mounted.
pub fn all() -> Result<Vec<PathBuf>, CgroupError> {
    let mut folders: Vec<PathBuf> = mounts()?.into_iter().take(1).collect();
    let mut next = 0;
    while next < folders.len() && folders.len() < MAX_FOLDERS {
        // Whatever goes while it is looked at has no programs any more.
        let entries = fs::read_dir(&folders[next]).into_iter().flatten().filter_map(Result::ok);
        let inside = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        folders.extend(inside.map(|entry| entry.path()));
        next += 1;
    }
    Ok(folders)
}

fn mounts() -> Result<Vec<PathBuf>, CgroupError> {
    fs::read_to_string("/proc/self/mountinfo").map(|text| listed(&text)).map_err(CgroupError::Mounts)
}

/// Those that show the root of what this process may see come first.
fn listed(mountinfo: &str) -> Vec<PathBuf> {
    let mut found: Vec<(&str, PathBuf)> = mountinfo
        .lines()
        .filter_map(|line| {
            let (mount, kind) = line.split_once(" - ")?;
            let mut fields = mount.split(' ').skip(3);
            let (root, point) = (fields.next()?, fields.next()?);
            (kind.split(' ').next() == Some("cgroup2")).then(|| (root, PathBuf::from(unescaped(point))))
        })
        .collect();
    found.sort_by_key(|(root, _)| *root != "/");
    found.into_iter().map(|(_, point)| point).collect()
}

/// Blanks are written as `\040`.
fn unescaped(path: &str) -> String {
    path.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_of_the_whole_comes_first() {
        let text = "\
29 24 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
41 24 0:27 /pod /run/my\\040pod rw,nosuid - cgroup2 cgroup2 rw\n\
30 24 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw\n\
broken line\n";
        assert_eq!(listed(text), [PathBuf::from("/sys/fs/cgroup/unified"), PathBuf::from("/run/my pod")]);
        assert!(listed("").is_empty());
    }

    #[test]
    fn other_folders_are_refused() {
        let refused = Cgroup::open(Path::new("/")).expect_err("no cgroup");
        assert!(matches!(refused, CgroupError::NotACgroup(_)), "{refused}");
        let refused = Cgroup::open(Path::new("/nonexistent")).expect_err("nothing");
        assert!(refused.to_string().contains("/nonexistent"), "{refused}");
    }
}
