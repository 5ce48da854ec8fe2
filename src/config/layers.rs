//! Layers of text on top of each other: each is read alone, so a mistake in a lower layer is reported although a higher
//! one hides it. Maps merge, because every layer only sets the keys that it names; lists replace.
//!
//! In: [`Sources`]. Out: the merged [`Settings`], and of every key the layer that set it, for the checks across keys.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::kinds::Kind;
use super::problem::{Origin, Position, Problem, Problems};
use super::schema::{self, Reload, Visit};
use super::settings::Settings;
use super::sources::Sources;
use super::yaml::{self, Cursor, Node, Place};

/// A settings file is a page or two.
const MAX_FILE_BYTES: usize = 1024 * 1024;
/// What the kernel allows one environment string.
const MAX_VALUE_BYTES: usize = 128 * 1024;
const PREFIX: &str = "adit__";

/// The layers merged, checked one by one but not yet against each other.
#[derive(Debug)]
pub(super) struct Merged {
    pub(super) settings: Settings,
    pub(super) problems: Problems,
    layers: Vec<Layer>,
    /// Which layer, by index, has the last word on a key.
    set_by: BTreeMap<&'static str, usize>,
    /// Keys that some layer has wrong.
    broken: BTreeSet<&'static str>,
}

#[derive(Debug)]
struct Layer {
    origin: Origin,
    text: String,
    root: Node,
    /// What relative paths in it start from.
    base: PathBuf,
}

impl Merged {
    pub(super) fn of(sources: &Sources) -> Self {
        let mut merged = Self {
            settings: Settings::default(),
            problems: Problems::default(),
            layers: Vec::new(),
            set_by: BTreeMap::new(),
            broken: BTreeSet::new(),
        };
        if let Some(built_in) = &sources.built_in {
            merged.add_file(Origin::BuiltIn(built_in.name), built_in.text.to_owned(), built_in.base.clone());
        }
        for file in &sources.files {
            let origin = Origin::File(file.clone());
            let base = sources.working_dir.join(file.parent().unwrap_or(Path::new("")));
            match read_file(&sources.working_dir.join(file), &origin) {
                Ok(text) => merged.add_file(origin, text, base),
                Err(problems) => merged.problems.extend(problems),
            }
        }
        merged.add_environment(&sources.environment, &sources.working_dir);
        for (key, value) in &sources.flags {
            let origin = Origin::Flag(format!("--set {key}"));
            merged.add_value(origin, key.split('.').map(str::to_owned).collect(), value, &sources.working_dir);
        }
        let folder = &mut merged.settings.identity.dev.folder;
        if folder.as_os_str().is_empty() {
            *folder = sources.state_folder().map(|state| state.join("dev-identity")).unwrap_or_default();
        }
        if merged.settings.node.is_empty() {
            merged.settings.node = sources.host_name.as_str().into();
        }
        merged
    }

    /// Which of `keys` was set last, by whom and where: whoever wrote it made the combination. The earlier in `keys` if
    /// one layer set several; the first if nobody set any.
    pub(super) fn origin(&self, keys: &[&'static str]) -> (&'static str, Origin, Option<Position>) {
        let mut last: Option<(usize, &'static str)> = None;
        for key in keys {
            if let Some(&index) = self.set_by.get(key)
                && last.is_none_or(|(latest, _)| index > latest)
            {
                last = Some((index, key));
            }
        }
        match last.and_then(|(index, key)| Some((key, self.layers.get(index)?))) {
            Some((key, layer)) => (key, layer.origin.clone(), layer.position(key)),
            None => (keys.first().copied().unwrap_or(""), Origin::Defaults, None),
        }
    }

    /// Whether none of `keys` is known to be wrong in itself.
    pub(super) fn sound(&self, keys: &[&'static str]) -> bool {
        !keys.iter().any(|key| self.broken.contains(key))
    }

    fn add_file(&mut self, origin: Origin, text: String, base: PathBuf) {
        match yaml::parse(&origin, &text, MAX_FILE_BYTES) {
            Err(problems) => self.problems.extend(problems),
            Ok(mut documents) if documents.len() == 1 => {
                let root = documents.swap_remove(0);
                self.add(Layer { origin, text, root, base });
            }
            Ok(documents) => self.problems.push(
                Problem::of(origin, "more than one document")
                    .found(format!("{} documents", documents.len()))
                    .expected("one")
                    .hint("give each its own file: --config A --config B"),
            ),
        }
    }

    /// One value at one key path: an environment variable or a flag.
    fn add_value(&mut self, origin: Origin, path: Vec<String>, text: &str, base: &Path) {
        let mut value = match yaml::parse(&origin, text, MAX_VALUE_BYTES) {
            Ok(mut documents) if documents.len() == 1 => documents.swap_remove(0),
            Ok(_) => return self.problems.push(Problem::of(origin, "more than one YAML document")),
            Err(problems) => {
                let unplaced = problems.into_iter().map(|problem| problem.at(None).key(path.join(".")));
                return self.problems.extend(unplaced);
            }
        };
        for segment in path.into_iter().rev() {
            value = Node::Map(vec![(Node::Text(segment.into()), value)]);
        }
        self.add(Layer { origin, text: String::new(), root: value, base: base.to_owned() });
    }

    fn add_environment(&mut self, variables: &[(OsString, OsString)], base: &Path) {
        let schema = schema::keys();
        let mut named: Vec<(Vec<String>, &OsStr, &OsStr)> = variables
            .iter()
            .filter_map(|(name, value)| Some((environment_path(name, &schema)?, name.as_os_str(), value.as_os_str())))
            .collect();
        // Sections before their keys, so that the more exact one wins; otherwise by name: the order of an environment
        // means nothing.
        named.sort_by(|a, b| (a.0.len(), &a.0, a.1).cmp(&(b.0.len(), &b.0, b.1)));
        let mut before: Option<(Vec<String>, &OsStr)> = None;
        for (path, name, value) in named {
            let origin = Origin::Environment(name.to_string_lossy().into_owned());
            if let Some((_, earlier)) = before.as_ref().filter(|(earlier, _)| *earlier == path) {
                let earlier = earlier.to_string_lossy();
                self.problems.push(
                    Problem::of(origin, "two variables for one key")
                        .key(path.join("."))
                        .hint(format!("unset it or {earlier}")),
                );
                continue;
            }
            match value.to_str() {
                Some(value) => self.add_value(origin, path.clone(), value, base),
                None => self.problems.push(Problem::of(origin, "not valid UTF-8").key(path.join("."))),
            }
            before = Some((path, name));
        }
    }

    fn add(&mut self, layer: Layer) {
        let index = self.layers.len();
        let read = yaml::read_node(&layer.origin, &layer.text, &layer.root, |root| {
            check_keys(root);
            let mut reader = Reader { root, set: Vec::new(), broken: Vec::new() };
            schema::visit(&mut self.settings, &mut reader);
            self.set_by.extend(reader.set.iter().map(|key| (*key, index)));
            self.broken.extend(reader.broken);
            reader.set
        });
        let set = read.unwrap_or_else(|(set, problems)| {
            self.problems.extend(problems);
            set
        });
        resolve_paths(&mut self.settings, &set, &layer.base);
        self.layers.push(layer);
    }
}

impl Layer {
    fn position(&self, key: &str) -> Option<Position> {
        yaml::locate(&self.text, &[Place::value(0, key)]).into_iter().next().flatten()
    }
}

/// Relative paths that a layer has set start from where it is.
fn resolve_paths(settings: &mut Settings, set: &[&'static str], base: &Path) {
    let identity = &mut settings.identity;
    let single = [
        ("identity.dev.folder", &mut identity.dev.folder),
        ("identity.files.cert", &mut identity.files.cert),
        ("identity.files.key", &mut identity.files.key),
    ];
    for (key, path) in single {
        if set.contains(&key) && !path.as_os_str().is_empty() {
            *path = base.join(&*path);
        }
    }
    let lists = [
        ("mesh.files", &mut settings.mesh.files),
        ("identity.files.roots", &mut identity.files.roots),
        ("identity.files.crls", &mut identity.files.crls),
    ];
    for (key, paths) in lists {
        for path in paths.iter_mut().filter(|_| set.contains(&key)) {
            *path = base.join(&*path);
        }
    }
}

/// Sets what one layer names.
struct Reader<'a> {
    root: Cursor<'a>,
    set: Vec<&'static str>,
    broken: Vec<&'static str>,
}

impl Visit for Reader<'_> {
    fn leaf<T: 'static>(&mut self, key: &'static str, _: Reload, kind: &'static Kind<T>, slot: &mut T) {
        let mut read = |cursor: Cursor<'_>| match cursor.read(kind.parse) {
            Some(value) => {
                *slot = value;
                self.set.push(key);
            }
            None => self.broken.push(key),
        };
        at(&self.root, key, &mut read);
    }
}

/// Shows `read` what is at `path`, if anything is.
fn at(section: &Cursor<'_>, path: &str, read: &mut dyn FnMut(Cursor<'_>)) {
    let (name, rest) = path.split_once('.').unwrap_or((path, ""));
    match section.get(name) {
        Some(inner) if !rest.is_empty() => at(&inner, rest, read),
        Some(found) => read(found),
        None => {}
    }
}

/// Reports every key that the schema does not have.
fn check_keys(root: Cursor<'_>) {
    check_section(root, &schema::keys(), "");
}

fn check_section(cursor: Cursor<'_>, schema: &[&'static str], section: &str) {
    let keys = children(schema, section);
    if keys.is_empty() || cursor.fields(&keys).is_none() {
        return;
    }
    for key in keys {
        if let Some(inner) = cursor.get(key) {
            check_section(inner, schema, &below(section, key));
        }
    }
}

fn below(section: &str, key: &str) -> String {
    if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") }
}

/// The keys directly inside a section, `""` being the whole.
fn children(schema: &[&'static str], section: &str) -> Vec<&'static str> {
    let inside = |key: &&'static str| match section {
        "" => Some(*key),
        _ => key.strip_prefix(section)?.strip_prefix('.'),
    };
    let mut children: Vec<&'static str> =
        schema.iter().filter_map(inside).filter_map(|rest| rest.split('.').next()).collect();
    children.dedup();
    children
}

/// `ADIT__CONNECT__USER_TIMEOUT` names `connect.userTimeout`: `__` separates levels, case and single underscores do not
/// count. What names no key stays as it is written, to be reported. `None`: not ours.
fn environment_path(name: &OsStr, schema: &[&'static str]) -> Option<Vec<String>> {
    let name = name.to_string_lossy();
    let rest = name.get(PREFIX.len()..).filter(|_| name.to_lowercase().starts_with(PREFIX))?;
    let fold = |word: &str| word.replace('_', "").to_lowercase();
    let mut path = Vec::new();
    let mut section = Some(String::new());
    for segment in rest.split("__") {
        let known = section.as_ref().map(|section| children(schema, section)).unwrap_or_default();
        let key = known.into_iter().find(|key| fold(key) == fold(segment));
        path.push(key.map_or_else(|| segment.to_lowercase(), str::to_owned));
        section = section.zip(key).map(|(section, key)| below(&section, key));
    }
    Some(path)
}

fn read_file(path: &Path, origin: &Origin) -> Result<String, Problems> {
    let cannot = |error: std::io::Error| {
        let problem = Problem::of(origin.clone(), format!("cannot be read: {error}"));
        Problems::from(match error.kind() {
            std::io::ErrorKind::NotFound => problem.hint("check the path given with --config"),
            _ => problem,
        })
    };
    let file = std::fs::File::open(path).map_err(cannot)?;
    let mut bytes = Vec::new();
    // One more than allowed, so that the parser sees that it is too much.
    let limit = u64::try_from(MAX_FILE_BYTES).unwrap_or(u64::MAX).saturating_add(1);
    file.take(limit).read_to_end(&mut bytes).map_err(cannot)?;
    String::from_utf8(bytes).map_err(|error| {
        let before = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        Problem::of(origin.clone(), "not valid UTF-8").at(Some(Position { line, column: 1 })).into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_variables_ignore_case_and_single_underscores() {
        let schema = schema::keys();
        for (name, path) in [
            ("ADIT__CONNECT__TIMEOUT", Some("connect.timeout")),
            ("adit__connect__timeout", Some("connect.timeout")),
            ("ADIT__KEEPALIVE__USER_TIMEOUT", Some("keepalive.userTimeout")),
            ("ADIT__KEEPALIVE__USERTIMEOUT", Some("keepalive.userTimeout")),
            ("ADIT__PACKET_MARK", Some("packetMark")),
            ("ADIT__SOCKS5_ALLOW_REMOTE", Some("socks5AllowRemote")),
            ("ADIT__CONNECT", Some("connect")),
            ("ADIT__NO_SUCH", Some("no_such")),
            ("ADIT__CONNECT__NOPE", Some("connect.nope")),
            ("ADIT__CONNECT__TIMEOUT__MORE", Some("connect.timeout.more")),
            ("ADIT__MODE__MODE", Some("mode.mode")),
            ("ADIT__", Some("")),
            ("ADIT__CONNECT__", Some("connect.")),
            ("ADIT_CONNECT__TIMEOUT", None),
            ("ADIT", None),
            ("PATH", None),
            ("", None),
        ] {
            let found = environment_path(OsStr::new(name), &schema).map(|path| path.join("."));
            assert_eq!(found.as_deref(), path, "{name}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_name_panics(name in "(ADIT|adit)?_{0,4}\\PC{0,40}") {
            let _any = environment_path(OsStr::new(&name), &schema::keys());
        }

        /// Any spelling of a key's name by underscores and case finds the key.
        #[test]
        fn every_key_has_names(index in 0_usize..1000, upper in proptest::prelude::any::<u64>(), at in 1_usize..9) {
            let schema = schema::keys();
            let key = schema[index % schema.len()];
            let mut name = String::from("ADIT__");
            for (level, segment) in key.split('.').enumerate() {
                name += if level > 0 { "__" } else { "" };
                for (index, c) in segment.chars().enumerate() {
                    if index == at {
                        name.push('_');
                    }
                    name.push(if upper >> (index % 64) & 1 == 0 { c } else { c.to_ascii_uppercase() });
                }
            }
            let found = environment_path(OsStr::new(&name), &schema).map(|path| path.join("."));
            proptest::prop_assert_eq!(found.as_deref(), Some(key));
        }
    }
}
