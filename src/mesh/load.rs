//! From a scan of the mesh files to the next snapshot: parse what changed, compare resource by resource, build.
//!
//! In: scans. Out: a new snapshot, or "nothing changed", or every problem of every file; what was applied before stays
//! until a load succeeds as a whole. Each file is parsed alone and remembered by content hash, good or bad, so a file is
//! parsed once however often another one is wrong. Cost: the files that changed, not the state.
//! Pure, but for re-reading a file to say on which line a duplicate is, or a reference that leads nowhere.

mod dangling;
mod duplicates;
mod parse;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::Hash;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::problem::{Origin, Problem, Problems};
use crate::files::{Bounds, ContentHash, FileContent, FileError, FileFault, Scan};
use crate::mesh::file::{FileContents, Section, Site};
use crate::mesh::map;
use crate::mesh::{Change, Policy, PolicyKey, ServiceKey, ServiceSpec, Snapshot, SnapshotBuilder, Workload};

use duplicates::{Duplicate, Where};

/// Duplicates beyond this many are only counted: a file that is there twice has as many as resources.
const MAX_DUPLICATES: usize = 100;

/// Texts of together more bytes are not kept while they are parsed. A text is about a third of what it means.
const KEPT_TEXTS: usize = 16 << 20;

#[derive(Debug, Default)]
pub(super) struct Loader {
    bounds: Bounds,
    /// Of the last scan, good and bad.
    parsed: HashMap<PathBuf, Parsed>,
    applied: Applied,
}

/// What one content of one file means.
#[derive(Debug, Clone)]
struct Parsed {
    hash: ContentHash,
    result: Result<Arc<FileContents>, Problems>,
}

/// What the current snapshot was made from.
#[derive(Debug, Clone, Default)]
struct Applied {
    snapshot: Arc<Snapshot>,
    files: HashMap<PathBuf, (ContentHash, Arc<FileContents>)>,
    /// uid -> file.
    workloads: map::HashMap<Arc<str>, Arc<Path>>,
    services: map::HashMap<ServiceKey, Arc<Path>>,
    policies: map::HashMap<PolicyKey, Arc<Path>>,
}

/// A state that was built and became the loader's current one.
#[derive(Debug, Clone)]
pub(super) struct Loaded {
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) files: usize,
    /// Resources that entered, were replaced or left.
    pub(super) changes: usize,
}

impl Loader {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { bounds, ..Self::default() }
    }

    /// All or nothing. `Ok(None)`: the files say what they said before, byte for byte. The texts of a large state
    /// are let go of one by one as they are parsed, and `scan` has them no more.
    pub(super) fn load(&mut self, scan: &mut Scan) -> Result<Option<Loaded>, Problems> {
        self.prepare(scan);
        let scan = &*scan;
        let mut problems = unreadable_files(scan);
        let mut current: Vec<(&FileContent, Arc<FileContents>)> = Vec::with_capacity(scan.files.len());
        for file in &scan.files {
            match self.parsed.get(&file.path).map(|parsed| &parsed.result) {
                Some(Ok(contents)) => current.push((file, Arc::clone(contents))),
                Some(Err(wrong)) => problems.extend(wrong.iter().cloned()),
                None => problems.push(unreadable(&FileError { path: file.path.clone(), fault: FileFault::Unstable })),
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        self.apply(scan, &current)
    }

    /// Parses what is not known, so that it is when the scan is loaded. Nothing is refused yet: what the files say may be
    /// half of what they will.
    pub(super) fn prepare(&mut self, scan: &mut Scan) {
        let new = self.unknown(scan);
        let mut new = parse::parse_all(new, &self.applied.snapshot);
        let known = scan.files.iter().filter_map(|file| {
            let known = self.known(&file.path, file.hash).or_else(|| new.remove(&*file.path));
            Some((file.path.clone(), known?))
        });
        self.parsed = known.collect();
    }

    /// References of the applied state that lead nowhere, each with its place; `scan` is what it was loaded from.
    pub(super) fn dangling(&self, scan: &Scan) -> Vec<Problem> {
        let applied = |file: &FileContent| self.applied.files.get(&file.path).filter(|(hash, _)| *hash == file.hash);
        let files = scan.files.iter().filter_map(|file| Some((file, &**applied(file).map(|(_, contents)| contents)?)));
        dangling::problems(&self.applied.snapshot, files, self.bounds)
    }

    /// What has to be parsed.
    fn unknown(&self, scan: &mut Scan) -> Vec<FileContent> {
        let bytes: usize = scan.files.iter().filter_map(|file| file.bytes.as_ref()).map(|bytes| bytes.len()).sum();
        let large = bytes > KEPT_TEXTS;
        let unknown = scan.files.iter_mut().filter(|file| !self.knows(&file.path, file.hash));
        unknown
            .map(|file| {
                let bytes = if large { file.bytes.take() } else { file.bytes.clone() };
                FileContent { path: file.path.clone(), hash: file.hash, bytes }
            })
            .collect()
    }

    /// Whether this content of the file need not be read again.
    pub(super) fn knows(&self, path: &Path, hash: ContentHash) -> bool {
        self.known(path, hash).is_some()
    }

    /// From the last scan, or from what is applied: a file that was bad or gone for a while may be what it was.
    fn known(&self, path: &Path, hash: ContentHash) -> Option<Parsed> {
        if let Some(parsed) = self.parsed.get(path).filter(|parsed| parsed.hash == hash) {
            return Some(parsed.clone());
        }
        let (_, contents) = self.applied.files.get(path).filter(|(applied, _)| *applied == hash)?;
        Some(Parsed { hash, result: Ok(Arc::clone(contents)) })
    }

    /// From here on every file is good by itself.
    fn apply(
        &mut self,
        scan: &Scan,
        current: &[(&FileContent, Arc<FileContents>)],
    ) -> Result<Option<Loaded>, Problems> {
        let is_applied = |path: &Path, contents: &Arc<FileContents>| {
            self.applied.files.get(path).is_some_and(|(_, applied)| Arc::ptr_eq(applied, contents))
        };
        let entering: Vec<_> = current.iter().filter(|(file, contents)| !is_applied(&file.path, contents)).collect();
        let staying: HashSet<&Path> = current
            .iter()
            .filter(|(file, contents)| is_applied(&file.path, contents))
            .map(|(file, _)| &*file.path)
            .collect();
        let nothing_left = staying.len() == self.applied.files.len();
        if entering.is_empty() && nothing_left && self.applied.snapshot.generation() > 0 {
            return Ok(None);
        }

        let leaving: HashMap<&Path, &FileContents> = self
            .applied
            .files
            .iter()
            .map(|(path, (_, contents))| (path.as_path(), &**contents))
            .filter(|(path, _)| !staying.contains(path))
            .collect();
        let mut owners = Owners::new(&self.applied, &leaving);
        for (file, contents) in &entering {
            owners.enter(&file.path, contents);
        }
        let mut changes = owners.leave();
        let Owners { duplicates, more_duplicates, .. } = owners;
        let (workloads, services, policies) = (owners.workloads.files, owners.services.files, owners.policies.files);
        if !duplicates.is_empty() {
            let files = current.iter().map(|(file, contents)| (*file, &**contents));
            return Err(duplicates::problems(duplicates, more_duplicates, files, self.bounds));
        }

        for (_, contents) in &entering {
            changes.extend(news(contents, &self.applied.snapshot));
        }
        let mut builder = SnapshotBuilder::new(&self.applied.snapshot);
        let count = changes.len();
        changes.into_iter().for_each(|change| builder.apply(change));
        builder.set_source_hash(scan.source_hash().into());
        let snapshot = Arc::new(builder.finish());
        let entry = |(file, contents): &(&FileContent, Arc<FileContents>)| {
            (file.path.clone(), (file.hash, Arc::clone(contents)))
        };
        let files = current.iter().map(entry).collect();
        self.applied = Applied { snapshot: Arc::clone(&snapshot), files, workloads, services, policies };
        Ok(Some(Loaded { snapshot, files: current.len(), changes: count }))
    }
}

/// Who defines what, while files leave and enter. What a new version of a file defines as the old one did stays as it
/// is: the maps are as large as the state.
struct Owners<'a> {
    leaving: &'a HashMap<&'a Path, &'a FileContents>,
    workloads: Owned<'a, Arc<str>>,
    services: Owned<'a, ServiceKey>,
    policies: Owned<'a, PolicyKey>,
    duplicates: Vec<Duplicate>,
    more_duplicates: usize,
}

/// The files of the resources of one kind.
struct Owned<'a, K> {
    files: map::HashMap<K, Arc<Path>>,
    /// Those that leaving files define in their new version, or that have moved.
    again: HashSet<&'a K>,
}

impl<'a> Owners<'a> {
    fn new(applied: &Applied, leaving: &'a HashMap<&'a Path, &'a FileContents>) -> Self {
        Self {
            leaving,
            workloads: Owned::new(&applied.workloads),
            services: Owned::new(&applied.services),
            policies: Owned::new(&applied.policies),
            duplicates: Vec::new(),
            more_duplicates: 0,
        }
    }

    fn enter(&mut self, path: &Path, contents: &'a FileContents) {
        let path: Arc<Path> = path.into();
        for (site, workload) in &contents.workloads {
            let first = self.workloads.enter(&workload.uid, &path, self.leaving);
            self.note(first, Section::Workloads, &workload.uid, &path, *site);
        }
        for (site, spec) in &contents.services {
            let first = self.services.enter(spec.key(), &path, self.leaving);
            self.note(first, Section::Services, spec.key(), &path, *site);
        }
        for (site, policy) in &contents.policies {
            let first = self.policies.enter(&policy.key, &path, self.leaving);
            self.note(first, Section::Policies, &policy.key, &path, *site);
        }
    }

    fn note(
        &mut self,
        first: Option<Arc<Path>>,
        section: Section,
        name: &dyn fmt::Display,
        path: &Arc<Path>,
        site: Site,
    ) {
        let Some(first) = first else { return };
        if self.duplicates.len() == MAX_DUPLICATES {
            self.more_duplicates += 1;
            return;
        }
        let second = Where { path: Arc::clone(path), site };
        self.duplicates.push(Duplicate { section, name: name.to_string(), first, second });
    }

    /// What the leaving files define and no other does. All that enters has done so.
    fn leave(&mut self) -> Vec<Change> {
        let mut gone = Vec::new();
        for contents in self.leaving.values() {
            let workloads = contents.workloads.iter().map(|(_, workload)| &workload.uid);
            gone.extend(self.workloads.leave(workloads).map(|uid| Change::RemoveWorkload(Arc::clone(uid))));
            let services = contents.services.iter().map(|(_, spec)| spec.key());
            gone.extend(self.services.leave(services).map(|key| Change::RemoveService(key.clone())));
            let policies = contents.policies.iter().map(|(_, policy)| &policy.key);
            gone.extend(self.policies.leave(policies).map(|key| Change::RemovePolicy(key.clone())));
        }
        gone
    }
}

impl<'a, K: Hash + Eq + Clone> Owned<'a, K> {
    fn new(files: &map::HashMap<K, Arc<Path>>) -> Self {
        Self { files: files.clone(), again: HashSet::new() }
    }

    /// Returns the file that defines it already.
    fn enter(&mut self, key: &'a K, path: &Arc<Path>, leaving: &HashMap<&Path, &FileContents>) -> Option<Arc<Path>> {
        match self.files.get(key) {
            Some(owner) if !leaving.contains_key(&**owner) || !self.again.insert(key) => Some(Arc::clone(owner)),
            Some(owner) if owner == path => None,
            before => {
                // Another file that has it, too, finds the name of a leaving file.
                if before.is_none() && leaving.contains_key(&**path) {
                    self.again.insert(key);
                }
                self.files.insert(key.clone(), Arc::clone(path));
                None
            }
        }
    }

    fn leave(&mut self, keys: impl Iterator<Item = &'a K>) -> impl Iterator<Item = &'a K> {
        keys.filter(|key| !self.again.contains(key)).inspect(|key| drop(self.files.remove(*key)))
    }
}

pub(super) fn unreadable_files(scan: &Scan) -> Problems {
    let mut problems = Problems::default();
    problems.extend(scan.errors.iter().map(unreadable));
    problems
}

fn unreadable(error: &FileError) -> Problem {
    let problem = Problem::of(Origin::File(error.path.clone()), error.fault.to_string());
    match error.fault {
        FileFault::EmptyFolder => problem.hint("a state with nothing in it is a file with {} in it"),
        _ => problem,
    }
}

/// What of a file is not in the state as it is.
fn news<'a>(contents: &'a FileContents, snapshot: &'a Snapshot) -> impl Iterator<Item = Change> + 'a {
    let is_new = |workload: &&Arc<Workload>| snapshot.workload_by_uid(&workload.uid) != Some(*workload);
    let is_new_spec = |spec: &&Arc<ServiceSpec>| snapshot.spec(spec.key()) != Some(*spec);
    let workloads = contents.workloads.iter().map(|(_, workload)| workload).filter(is_new);
    let services = contents.services.iter().map(|(_, spec)| spec).filter(is_new_spec);
    let is_new_policy = |policy: &&Arc<Policy>| snapshot.policy(policy.key.as_str()) != Some(*policy);
    let policies = contents.policies.iter().map(|(_, policy)| policy).filter(is_new_policy);
    let puts = workloads.cloned().map(Change::PutWorkload).chain(services.cloned().map(Change::PutService));
    puts.chain(policies.cloned().map(Change::PutPolicy))
}

#[cfg(test)]
mod tests;
