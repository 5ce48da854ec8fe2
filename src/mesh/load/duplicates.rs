//! Two definitions of one resource: a problem that names both places. The lines are looked up only now, with one pass
//! over each file concerned.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use crate::config::problem::{Origin, Position, Problem, Problems};
use crate::files::{self, Bounds, FileContent};
use crate::mesh::file::{self, FileContents, Section, Site};

pub(super) struct Duplicate {
    pub(super) section: Section,
    /// The uid, or the key of the service or policy.
    pub(super) name: String,
    /// The file that has it first.
    pub(super) first: Arc<Path>,
    pub(super) second: Where,
}

#[derive(Clone)]
pub(super) struct Where {
    pub(super) path: Arc<Path>,
    pub(super) site: Site,
}

/// Where each file stands in the load, and what it says.
type Files<'a> = HashMap<&'a Path, (usize, &'a FileContent, &'a FileContents)>;

pub(super) fn problems<'a>(
    duplicates: Vec<Duplicate>,
    more: usize,
    files: impl Iterator<Item = (&'a FileContent, &'a FileContents)>,
    bounds: Bounds,
) -> Problems {
    let files: Files<'a> =
        files.enumerate().map(|(at, (file, contents))| (&*file.path, (at, file, contents))).collect();
    let mut pairs: Vec<(Section, String, Where, Where)> = duplicates
        .into_iter()
        .map(|Duplicate { section, name, first, second }| {
            let first = Where { site: first_site(&files, &first, section, &name).unwrap_or(second.site), path: first };
            // What is named first is what comes first, whichever file changed last.
            let order = |it: &Where| (files.get(&*it.path).map(|(at, ..)| *at), it.site);
            if order(&first) <= order(&second) {
                (section, name, first, second)
            } else {
                (section, name, second, first)
            }
        })
        .collect();
    pairs.sort_by(|(_, _, _, a), (_, _, _, b)| (&a.path, a.site).cmp(&(&b.path, b.site)));

    let places = pairs.iter().flat_map(|(section, _, first, second)| [(*section, first), (*section, second)]);
    let lines = Lines::find(places, &files, bounds);
    let mut problems = Problems::default();
    for (section, name, first, second) in &pairs {
        let also = match lines.get(*section, first) {
            Some(Position { line, .. }) => format!("{}:{line}", first.path.display()),
            None => first.path.display().to_string(),
        };
        let message = match section {
            Section::Workloads => "duplicate uid",
            Section::Services => "duplicate service",
            Section::Policies => "duplicate policy",
        };
        problems.push(
            Problem::of(Origin::File(second.path.to_path_buf()), message)
                .at(lines.get(*section, second))
                .key(second.site.key_path(*section))
                .found(format!("{name:?}"))
                .hint(format!("it is already defined at {also} ({})", first.site.key_path(*section))),
        );
    }
    if more > 0
        && let Some((_, _, _, second)) = pairs.last()
    {
        problems.push(Problem::of(Origin::File(second.path.to_path_buf()), format!("and {more} more duplicates")));
    }
    problems
}

fn first_site(files: &Files<'_>, path: &Path, section: Section, name: &str) -> Option<Site> {
    let (_, _, contents) = files.get(path)?;
    match section {
        Section::Workloads => contents.workloads.iter().find(|(_, it)| *it.uid == *name).map(|(site, _)| *site),
        Section::Services => {
            contents.services.iter().find(|(_, it)| it.key().to_string() == name).map(|(site, _)| *site)
        }
        Section::Policies => contents.policies.iter().find(|(_, it)| it.key.as_str() == name).map(|(site, _)| *site),
    }
}

/// The positions of some resources, file by file.
struct Lines(HashMap<(Arc<Path>, Section, Site), Position>);

impl Lines {
    fn find<'a>(places: impl Iterator<Item = (Section, &'a Where)>, files: &Files<'_>, bounds: Bounds) -> Self {
        let mut by_file: HashMap<&Arc<Path>, Vec<(Section, Site)>> = HashMap::new();
        for (section, place) in places {
            by_file.entry(&place.path).or_default().push((section, place.site));
        }
        let mut lines = HashMap::new();
        for (path, sites) in by_file {
            let Some((_, file, _)) = files.get(&**path) else { continue };
            let bytes = text_of(file, bounds);
            let Some(text) = bytes.as_deref().and_then(|bytes| std::str::from_utf8(bytes).ok()) else { continue };
            let positions = file::positions(text, sites.iter().copied());
            for ((section, site), position) in sites.into_iter().zip(positions) {
                lines.extend(position.map(|position| ((Arc::clone(path), section, site), position)));
            }
        }
        Self(lines)
    }

    fn get(&self, section: Section, place: &Where) -> Option<Position> {
        self.0.get(&(Arc::clone(&place.path), section, place.site)).copied()
    }
}

/// Nothing when the file has changed meanwhile: then it is loaded again anyway.
pub(super) fn text_of(file: &FileContent, bounds: Bounds) -> Option<Arc<[u8]>> {
    if let Some(bytes) = &file.bytes {
        return Some(Arc::clone(bytes));
    }
    let content = files::read(&file.path, bounds).ok()?;
    content.bytes.filter(|_| content.hash == file.hash)
}
