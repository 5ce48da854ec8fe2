//! Watching files and folders by content, for whoever reads any.
//!
//! ```text
//! sources (files, folders) --FileSet::scan--> paths, hashes, bytes of what was read, errors     (blocking)
//! Wakeups::next ----------------------------> when to scan again                                (async)
//! ```
//!
//! What a file means is decided by its content hash alone. Events of the kernel (inotify on the folders, by `notify`)
//! only make the next look come sooner: which event came, or whether one came at all, changes nothing but the delay,
//! which is at most the period. So a symlink swap (Kubernetes' `..data`), a rename over, a rewrite in place, a file or a
//! folder that appears later are all the same case. Without inotify there is one warning, and polling.
//!
//! A look at unchanged files costs a `stat` each; once in a while everything is hashed again, should a file system not
//! tell the truth about times. Sizes and counts are bounded. Symlinks are followed: whoever writes the folder is trusted.
//!
//! Deliberately absent: what is in the files, and whether a change is good. The reader decides and keeps its last good
//! state. Nothing here fails closed or open; errors are part of a scan.

mod fault;
mod places;
mod scan;
mod wakeups;

use std::path::PathBuf;
use std::time::Duration;

pub use fault::{FileError, FileFault};
pub use scan::{ContentHash, Effort, FileContent, FileSet, Scan, read};
pub use wakeups::{Wakeups, WatchMode};

/// How much is read at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    pub file_bytes: u64,
    pub total_bytes: u64,
    pub files: usize,
}

impl Default for Bounds {
    /// Ten times what 100,000 workloads need.
    fn default() -> Self {
        Self { file_bytes: 256 << 20, total_bytes: 1 << 30, files: 10_000 }
    }
}

/// How often to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Between looks when no event comes.
    pub period: Duration,
    /// Between looks that hash everything again.
    pub full: Duration,
    /// How long events must be silent before a look,
    pub settle: Duration,
    /// but a look is not put off longer than this.
    pub settle_max: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            period: Duration::from_secs(5),
            full: Duration::from_secs(60),
            settle: Duration::from_millis(50),
            settle_max: Duration::from_millis(500),
        }
    }
}

/// Starts to watch. A folder means its `*.yaml` and `*.yml`, sorted; hidden entries are skipped.
#[must_use]
pub fn watch(sources: Vec<PathBuf>, bounds: Bounds, pace: Pace, mode: WatchMode) -> (FileSet, Wakeups) {
    let (wakeups, folders) = wakeups::start(pace, mode);
    (FileSet::new(sources, bounds).waking(folders), wakeups)
}

#[cfg(test)]
mod tests;
