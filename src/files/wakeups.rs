//! When to look again: at an event from a watched folder once events have settled, else once per period.
//!
//! [`Wakeups`] is the async half, [`Folders`] the blocking one that goes with the scans. Between them is one permit: any
//! number of events before the next look are one. `notify` runs a thread of its own; its queue is ours to ignore.
//! Failure to watch is one warning; from then on only the period counts.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::files::{Effort, Pace};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatchMode {
    /// Events where the kernel gives them.
    Events,
    /// Only the period.
    Polling,
}

/// Says when to look again.
#[derive(Debug)]
pub struct Wakeups {
    signal: Arc<Signal>,
    pace: Pace,
    /// First and last event that no look has answered yet.
    pending: Option<(Instant, Instant)>,
    last_look: Instant,
    next_full: Instant,
}

/// The folders being watched.
#[derive(Debug)]
pub(super) struct Folders {
    signal: Arc<Signal>,
    watcher: Option<RecommendedWatcher>,
    /// (device, inode) by path.
    watched: BTreeMap<PathBuf, (u64, u64)>,
}

#[derive(Debug, Default)]
struct Signal {
    event: Notify,
    /// Something went away or was renamed: a watch may be gone with it.
    stale: AtomicBool,
}

pub(super) fn start(pace: Pace, mode: WatchMode) -> (Wakeups, Folders) {
    let signal = Arc::new(Signal::default());
    let watcher = match mode {
        WatchMode::Polling => None,
        WatchMode::Events => {
            let signal = Arc::clone(&signal);
            notify::recommended_watcher(move |event| signal.hear(event)).map_err(|error| warn(&error)).ok()
        }
    };
    let now = Instant::now();
    let wakeups =
        Wakeups { signal: Arc::clone(&signal), pace, pending: None, last_look: now, next_full: now + pace.full };
    (wakeups, Folders { signal, watcher, watched: BTreeMap::new() })
}

fn warn(error: &notify::Error) {
    tracing::warn!(%error, "cannot watch files by inotify: changes are found by looking periodically");
}

impl Wakeups {
    /// Waits until it is time to look. Cancel safe: an event that was heard is not forgotten.
    pub async fn next(&mut self) -> Effort {
        loop {
            let until = match self.pending {
                Some((first, last)) => {
                    // In a folder where something always happens, looks still keep a distance.
                    let quiet = (last + self.pace.settle).max(self.last_look + self.pace.settle * 2);
                    quiet.min(first + self.pace.settle_max)
                }
                None => self.last_look + self.pace.period,
            };
            let event = tokio::select! {
                biased;
                () = sleep_until(until) => false,
                () = self.signal.event.notified() => true,
            };
            let now = Instant::now();
            if event {
                self.pending = Some((self.pending.map_or(now, |(first, _)| first), now));
                continue;
            }
            self.pending = None;
            self.last_look = now;
            if now < self.next_full {
                return Effort::Gated;
            }
            self.next_full = now + self.pace.full;
            return Effort::Full;
        }
    }
}

impl Folders {
    /// Watches exactly these from now on. If that is news, one more look is due: what changed before goes unheard.
    pub(super) fn follow(&mut self, folders: BTreeSet<PathBuf>) {
        let Some(watcher) = &mut self.watcher else { return };
        let stale = self.signal.stale.swap(false, Ordering::AcqRel);
        self.watched.retain(|path, _| {
            let keep = folders.contains(path);
            if !keep {
                // Fails when the folder itself is gone, and the watch with it.
                let _gone = watcher.unwatch(path);
            }
            keep
        });
        let mut news = stale;
        for path in folders {
            let Ok(metadata) = fs::metadata(&path) else { continue };
            let identity = (metadata.dev(), metadata.ino());
            if !stale && self.watched.get(&path) == Some(&identity) {
                continue;
            }
            match watcher.watch(&path, RecursiveMode::NonRecursive) {
                Ok(()) => news |= self.watched.insert(path, identity) != Some(identity),
                Err(error) if path.is_dir() => {
                    warn(&error);
                    self.watcher = None;
                    return;
                }
                Err(_) => news = true,
            }
        }
        if news {
            self.signal.event.notify_one();
        }
    }
}

impl Signal {
    fn hear(&self, event: notify::Result<notify::Event>) {
        match event.map(|event| event.kind) {
            // Somebody reads, such as we ourselves.
            Ok(EventKind::Access(kind)) if kind != AccessKind::Close(AccessMode::Write) => return,
            Ok(EventKind::Access(_) | EventKind::Create(_) | EventKind::Modify(ModifyKind::Data(_))) => {}
            // A queue overflow arrives as an error or as `Other`.
            Ok(_) | Err(_) => self.stale.store(true, Ordering::Release),
        }
        self.event.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    /// On file systems that give a new folder the inode of the one just removed, only the event tells them apart.
    #[tokio::test]
    async fn a_removed_folder_is_watched_anew_even_if_it_looks_the_same() {
        let long = Duration::from_secs(30);
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().canonicalize().unwrap().join("folder");
        fs::create_dir(&folder).unwrap();
        let pace = Pace { period: long * 10, full: long * 10, ..Pace::default() };
        let (mut wakeups, mut folders) = start(pace, WatchMode::Events);
        folders.follow(BTreeSet::from([folder.clone()]));
        timeout(long, wakeups.next()).await.unwrap();

        fs::remove_dir(&folder).unwrap();
        fs::create_dir(&folder).unwrap();
        timeout(long, wakeups.next()).await.unwrap();
        let metadata = fs::metadata(&folder).unwrap();
        folders.watched.insert(folder.clone(), (metadata.dev(), metadata.ino()));
        folders.follow(BTreeSet::from([folder.clone()]));
        timeout(long, wakeups.next()).await.unwrap();

        fs::write(folder.join("a"), "").unwrap();
        assert!(timeout(long, wakeups.next()).await.is_ok());
    }
}
