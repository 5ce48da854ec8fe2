//! Which folders to watch so that whatever can change the meaning of a path is seen: the folder it is in, the folders of
//! the links on the way, and the nearest folder that exists where the path does not. Best effort: what is missed here is
//! found at the next periodic look.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Links followed for one path.
const MAX_HOPS: usize = 40;

/// More folders than this are not watched but polled.
const MAX_FOLDERS: usize = 4096;

/// Real paths (no links in them), each once.
pub(super) fn folders<'a>(paths: impl Iterator<Item = &'a Path>) -> BTreeSet<PathBuf> {
    let mut found = Found::default();
    for path in paths {
        found.add(path, 0);
    }
    found.folders
}

#[derive(Default)]
struct Found {
    folders: BTreeSet<PathBuf>,
    /// Paths and steps looked at already: files of one folder share all but the last step.
    visited: HashSet<PathBuf>,
}

impl Found {
    fn add(&mut self, path: &Path, hops: usize) {
        if hops > MAX_HOPS || self.folders.len() >= MAX_FOLDERS {
            return;
        }
        self.watch_nearest(parent(path));
        if path.is_dir() {
            self.watch_nearest(path);
        }
        for step in path.ancestors().filter(|step| !step.as_os_str().is_empty()) {
            if !self.visited.insert(step.to_owned()) {
                break;
            }
            if let Ok(target) = fs::read_link(step) {
                self.watch_nearest(parent(step));
                self.add(&parent(step).join(target), hops + 1);
            }
        }
    }

    fn watch_nearest(&mut self, folder: &Path) {
        let existing = folder.ancestors().find(|ancestor| ancestor.is_dir()).unwrap_or(Path::new("."));
        if let Ok(real) = existing.canonicalize() {
            self.folders.insert(real);
        }
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_on_the_way_and_missing_folders_are_watched() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("releases/1")).unwrap();
        fs::write(root.join("releases/1/a.yaml"), "").unwrap();
        fs::create_dir(root.join("etc")).unwrap();
        symlink("../releases/1", root.join("etc/current")).unwrap();
        symlink("loop", root.join("etc/loop")).unwrap();
        for (path, want) in [
            ("etc/current/a.yaml", vec!["etc", "releases", "releases/1"]),
            ("etc/current", vec!["etc", "releases", "releases/1"]),
            ("etc/not/there/a.yaml", vec!["etc"]),
            ("etc/loop", vec!["etc"]),
        ] {
            let want: BTreeSet<PathBuf> = want.into_iter().map(|folder| root.join(folder)).collect();
            assert_eq!(folders([root.join(path).as_path()].into_iter()), want, "{path}");
        }
    }
}
