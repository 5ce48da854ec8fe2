//! The local file format (ztunnel's): from a file's text to workloads, services and policies, and back.
//!
//! ```text
//! text --config::yaml--> cursors --workload, service, policy, manifest (names interned)--> FileContents  (or all Problems)
//! Snapshot --dump--> the same format
//! ```
//!
//! In: one file, of one or more YAML documents (JSON is YAML). Out: its resources in canonical form, each with its place
//! in the file, or everything that is wrong, each with line, key path, found, expected and hint. Bytes never panic.
//!
//! Fails closed: a policy that cannot be enforced is refused, and so are unknown keys and values that
//! are not there (`namespace:`), since that is what a half-written file looks like; an empty file is no state.
//! A document may also be a Kubernetes manifest of an `AuthorizationPolicy`.
//! Kinder than ztunnel: `services` of a workload may be missing, `trustDomain` and `serviceAccount` have defaults, a
//! missing `uid` is derived, `locality` may be partial, port numbers may be quoted (JSON must).
//!
//! Deliberately absent: what only the whole set of files can tell (duplicates), which is the loader's.

mod dump;
mod leaf;
mod manifest;
mod names;
mod policy;
mod service;
mod workload;

use std::path::Path;
use std::sync::Arc;

use crate::config::problem::{Origin, Position, Problem, Problems};
use crate::config::yaml::{Cursor, Node, Place, locate, read_documents};
use crate::mesh::{Policy, ServiceSpec, Workload};

pub use dump::Document;
pub(super) use names::Names;

/// What one file says.
#[derive(Debug, Default)]
pub(super) struct FileContents {
    pub(super) workloads: Vec<(Site, Arc<Workload>)>,
    pub(super) services: Vec<(Site, Arc<ServiceSpec>)>,
    pub(super) policies: Vec<(Site, Arc<Policy>)>,
}

/// Where a resource is in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Site {
    document: u32,
    /// In its list; [`WHOLE`] for a manifest.
    index: u32,
}

/// The resource is the document itself.
const WHOLE: u32 = u32::MAX;

/// Which of the lists of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Section {
    Workloads,
    Services,
    Policies,
}

impl Section {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Workloads => "workloads",
            Self::Services => "services",
            Self::Policies => "policies",
        }
    }
}

impl Site {
    fn new(document: usize, index: usize) -> Self {
        Self { document: u32::try_from(document).unwrap_or(u32::MAX), index: u32::try_from(index).unwrap_or(u32::MAX) }
    }

    fn manifest(document: usize) -> Self {
        Self { index: WHOLE, ..Self::new(document, 0) }
    }

    /// Such as `workloads[3]`.
    pub(super) fn key_path(self, section: Section) -> String {
        if self.index == WHOLE {
            return "metadata.name".to_owned();
        }
        format!("{}[{}]", section.as_str(), self.index)
    }
}

/// The positions of resources in the text of their file.
pub(super) fn positions(text: &str, sites: impl IntoIterator<Item = (Section, Site)>) -> Vec<Option<Position>> {
    positions_of(text, sites.into_iter().map(|(section, site)| (site, site.key_path(section))))
}

/// The positions of what is at these key paths, each in the document of its resource.
pub(super) fn positions_of(text: &str, paths: impl IntoIterator<Item = (Site, String)>) -> Vec<Option<Position>> {
    let place = |(site, path): (Site, String)| Place::value(usize::try_from(site.document).unwrap_or(usize::MAX), path);
    locate(text, &paths.into_iter().map(place).collect::<Vec<_>>())
}

/// Everything the file says, or everything that is wrong with it.
pub(super) fn parse(path: &Path, bytes: &[u8], names: &Names) -> Result<FileContents, Problems> {
    let origin = Origin::File(path.to_owned());
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let before = bytes.get(..error.valid_up_to()).unwrap_or_default();
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        let column = before.iter().rev().take_while(|byte| **byte != b'\n').count() + 1;
        Problem::of(origin.clone(), "not UTF-8 text").at(Some(Position { line, column }))
    })?;
    let mut contents = FileContents::default();
    let mut empty = true;
    // The file's size is bounded where it is read.
    read_documents(&origin, text, usize::MAX, |root| {
        if !matches!(root.node(), Node::Null) {
            empty = false;
            read_document(&root, names, &mut contents);
        }
    })?;
    if empty {
        let problem = Problem::of(origin, "the file is empty").hint("for a state with nothing in it, write {}");
        return Err(problem.into());
    }
    Ok(contents)
}

/// The last five are what `/mesh` says besides; they are read over, so that a dump is input as it is.
const KEYS: [&str; 8] =
    ["workloads", "services", "policies", "schemaVersion", "source", "hash", "appliedAt", "rejected"];

fn read_document<'a>(root: &'a Cursor<'a>, names: &Names, contents: &mut FileContents) {
    if manifest::is_one(root) {
        let policy = manifest::read(root, names).map(Arc::new);
        contents.policies.extend(policy.map(|policy| (Site::manifest(root.document()), policy)));
        return;
    }
    let Some(fields) = root.fields(&KEYS) else { return };
    fields.optional("schemaVersion", leaf::schema_version);
    if let Some(list) = fields.get("workloads") {
        each(&list, |index, item| {
            let workload = workload::read(item, names)?;
            contents.workloads.push((Site::new(item.document(), index), Arc::new(workload)));
            Some(())
        });
    }
    if let Some(list) = fields.get("services") {
        each(&list, |index, item| {
            let service = service::read(item, names)?;
            contents.services.push((Site::new(item.document(), index), Arc::new(service)));
            Some(())
        });
    }
    if let Some(list) = fields.get("policies") {
        each(&list, |index, item| {
            let policy = policy::read(item, names)?;
            contents.policies.push((Site::new(item.document(), index), Arc::new(policy)));
            Some(())
        });
    }
}

/// Every item of a list that has to be one: `workloads:` with nothing after it is a file cut short.
fn each(list: &Cursor<'_>, mut read: impl FnMut(usize, &Cursor<'_>) -> Option<()>) {
    if let Some(items) = leaf::present(list, "a list").and_then(Cursor::items) {
        for (index, item) in items.enumerate() {
            if leaf::present(&item, "a map").is_some() {
                // What is wrong has been reported; go on with the next.
                let _read = read(index, &item);
            }
        }
    }
}

#[cfg(test)]
mod tests;
