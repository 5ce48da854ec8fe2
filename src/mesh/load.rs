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
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::problem::{Origin, Problem, Problems};
use crate::files::{Bounds, ContentHash, FileContent, FileError, FileFault, Scan};
use crate::mesh::file::{FileContents, Section, Site};
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
    workloads: imbl::HashMap<Arc<str>, Arc<Path>>,
    services: imbl::HashMap<ServiceKey, Arc<Path>>,
    policies: imbl::HashMap<PolicyKey, Arc<Path>>,
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
        let mut problems = unreadable_files(scan);
        let new = self.unknown(scan);
        let mut new = parse::parse_all(new, &self.applied.snapshot);
        let scan = &*scan;
        let mut current: Vec<(&FileContent, Arc<FileContents>)> = Vec::with_capacity(scan.files.len());
        let mut parsed = HashMap::with_capacity(scan.files.len());
        for file in &scan.files {
            let known = self.known(&file.path, file.hash).or_else(|| new.remove(&*file.path));
            let Some(known) = known else {
                problems.push(unreadable(&FileError { path: file.path.clone(), fault: FileFault::Unstable }));
                continue;
            };
            match &known.result {
                Ok(contents) => current.push((file, Arc::clone(contents))),
                Err(wrong) => problems.extend(wrong.iter().cloned()),
            }
            parsed.insert(file.path.clone(), known);
        }
        self.parsed = parsed;
        if !problems.is_empty() {
            return Err(problems);
        }
        self.apply(scan, &current)
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

        let mut owners = Owners::new(&self.applied);
        for (_, (_, contents)) in self.applied.files.iter().filter(|(path, _)| !staying.contains(path.as_path())) {
            owners.leave(contents);
        }
        for (file, contents) in &entering {
            owners.enter(&file.path, contents);
        }
        let Owners { workloads, services, policies, left, duplicates, more_duplicates } = owners;
        if !duplicates.is_empty() {
            let files = current.iter().map(|(file, contents)| (*file, &**contents));
            return Err(duplicates::problems(duplicates, more_duplicates, files, self.bounds));
        }

        let mut changes: Vec<Change> = Vec::new();
        let gone = |change: &Change| match change {
            Change::RemoveWorkload(uid) => !workloads.contains_key(uid),
            Change::RemoveService(key) => !services.contains_key(key),
            Change::RemovePolicy(key) => !policies.contains_key(key),
            Change::PutWorkload(_) | Change::PutService(_) | Change::PutPolicy(_) => true,
        };
        changes.extend(left.into_iter().filter(gone));
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

/// Who defines what, while files leave and enter.
struct Owners {
    workloads: imbl::HashMap<Arc<str>, Arc<Path>>,
    services: imbl::HashMap<ServiceKey, Arc<Path>>,
    policies: imbl::HashMap<PolicyKey, Arc<Path>>,
    /// Removals of what the leaving files define; some of it may enter again.
    left: Vec<Change>,
    duplicates: Vec<Duplicate>,
    more_duplicates: usize,
}

impl Owners {
    fn new(applied: &Applied) -> Self {
        Self {
            workloads: applied.workloads.clone(),
            services: applied.services.clone(),
            policies: applied.policies.clone(),
            left: Vec::new(),
            duplicates: Vec::new(),
            more_duplicates: 0,
        }
    }

    fn leave(&mut self, contents: &FileContents) {
        for (_, workload) in &contents.workloads {
            self.workloads.remove(&workload.uid);
            self.left.push(Change::RemoveWorkload(Arc::clone(&workload.uid)));
        }
        for (_, spec) in &contents.services {
            self.services.remove(spec.key());
            self.left.push(Change::RemoveService(spec.key().clone()));
        }
        for (_, policy) in &contents.policies {
            self.policies.remove(&policy.key);
            self.left.push(Change::RemovePolicy(policy.key.clone()));
        }
    }

    fn enter(&mut self, path: &Path, contents: &FileContents) {
        let path: Arc<Path> = path.into();
        for (site, workload) in &contents.workloads {
            let uid = &workload.uid;
            if let Some(first) = self.workloads.insert(Arc::clone(uid), Arc::clone(&path)) {
                self.duplicate(Section::Workloads, uid.to_string(), first, &path, *site);
            }
        }
        for (site, spec) in &contents.services {
            if let Some(first) = self.services.insert(spec.key().clone(), Arc::clone(&path)) {
                self.duplicate(Section::Services, spec.key().to_string(), first, &path, *site);
            }
        }
        for (site, policy) in &contents.policies {
            if let Some(first) = self.policies.insert(policy.key.clone(), Arc::clone(&path)) {
                self.duplicate(Section::Policies, policy.key.to_string(), first, &path, *site);
            }
        }
    }

    fn duplicate(&mut self, section: Section, name: String, first: Arc<Path>, path: &Arc<Path>, site: Site) {
        if self.duplicates.len() == MAX_DUPLICATES {
            self.more_duplicates += 1;
            return;
        }
        let second = Where { path: Arc::clone(path), site };
        self.duplicates.push(Duplicate { section, name, first, second });
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
