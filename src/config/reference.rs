//! The reference of all settings, for people.
//!
//! Nothing here is written twice. Keys, what a change of one does, what it takes and its default are asked of the types: the
//! schema, the key's kind and the default settings. What it is for stands in the comments of `config/adit.yaml`, and nowhere
//! else. In: both. Out: a [`Reference`], which the command line prints as Markdown and as a manual page. Pure.

mod comments;

use serde_json::Value;

use super::kinds::Kind;
use super::schema::{self, Reload, Visit};
use super::settings::Settings;
use super::yaml::Node;
use comments::Block;

/// The file whose comments say what each key is for.
const SHIPPED: &str = include_str!("../../config/adit.yaml");

/// All settings, described.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// What holds for all of them; lines as in the file.
    pub intro: String,
    /// Keys of the top level, and sections of one key.
    pub top: Vec<Row>,
    pub sections: Vec<Section>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    pub name: String,
    /// Lines as in the file; may be empty.
    pub about: String,
    pub rows: Vec<Row>,
}

/// A key, or a section inside a section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub key: String,
    /// Nothing for a section.
    pub value: Option<Accepted>,
    pub about: String,
}

/// What a key accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// In the words of its errors.
    pub takes: String,
    /// As it would be written.
    pub default: String,
    /// Whether a change applies without a restart.
    pub live: bool,
}

/// The reference of this build.
#[must_use]
pub fn reference() -> Reference {
    let known = accepted();
    let comments = comments::read(SHIPPED);
    let (mut top, mut sections) = (Vec::new(), Vec::new());
    for Block { name, about, told } in comments.blocks {
        let row = |key: String, about| {
            let value = known.iter().find(|(known, _)| *known == key).map(|(_, value)| value.clone());
            Row { key, value, about }
        };
        match told.as_slice() {
            // What stands beside such a key are its values, which its kind tells.
            [] => top.push(row(name, one_line(&about))),
            [only] => top.push(row(only.key.clone(), one_line(&about))),
            _ => {
                let rows = told.into_iter().map(|told| row(told.key, one_line(&told.about))).collect();
                sections.push(Section { name, about, rows });
            }
        }
    }
    Reference { intro: comments.intro, top, sections }
}

/// What the types say of every key.
fn accepted() -> Vec<(&'static str, Accepted)> {
    struct All(Vec<(&'static str, Accepted)>);
    impl Visit for All {
        fn leaf<T: 'static>(&mut self, key: &'static str, reload: Reload, kind: &'static Kind<T>, slot: &mut T) {
            let value = (kind.show)(slot);
            let takes = takes(kind, matches!(value, Value::Array(_)));
            self.0.push((key, Accepted { takes, default: written(&value), live: reload == Reload::Live }));
        }
    }
    let mut all = All(Vec::new());
    schema::visit(&mut Settings::default(), &mut all);
    all.0
}

/// What a kind expects, as it says itself when it is given what it cannot take.
fn takes<T>(kind: &Kind<T>, is_list: bool) -> String {
    let wrong = [Node::Text("\0".into()), Node::Text("".into()), Node::Map(Vec::new())];
    let mut expected: Vec<String> = Vec::new();
    for mismatch in wrong.iter().filter_map(|node| (kind.parse)(node).err()) {
        let words = mismatch.expected.into_owned();
        if !expected.contains(&words) {
            expected.push(words);
        }
    }
    if expected.len() > 1 {
        // The least that a value has to be says nothing beside what else it has to be.
        expected.retain(|words| words != "text");
    }
    let list = if is_list { "a list: " } else { "" };
    format!("{list}{}", expected.join("; "))
}

fn written(value: &Value) -> String {
    match value {
        Value::String(text) if !text.is_empty() => text.clone(),
        other => other.to_string(),
    }
}

fn one_line(text: &str) -> String {
    text.replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_there_once_and_is_explained() {
        let Reference { intro, top, sections } = reference();
        assert!(intro.contains("ADIT__CONNECT__TIMEOUT=3s"), "{intro}");
        let rows = || top.iter().chain(sections.iter().flat_map(|section| &section.rows));
        for Row { key, about, .. } in rows() {
            assert!(!about.is_empty(), "{key}: what is it for? Say it in config/adit.yaml, beside or above it");
            assert!(!about.contains("[live]") && !about.contains("[restart]"), "{key}: {about}");
        }
        let mut keys: Vec<&str> = rows().filter(|row| row.value.is_some()).map(|row| &*row.key).collect();
        let mut known = schema::keys();
        keys.sort_unstable();
        known.sort_unstable();
        assert_eq!(keys, known);
    }

    #[test]
    fn what_a_key_takes_is_what_its_errors_expect() {
        let all = accepted();
        let of = |key: &str| all.iter().find(|(known, _)| *known == key).map(|(_, value)| value.clone()).expect(key);
        for (key, takes, default, live) in [
            ("connect.timeout", "a duration such as 250ms or 5s, more than zero", "5s", true),
            ("capture", "redirect, tproxy or connect", "redirect", false),
            ("keepalive.userTimeout", "a duration of whole milliseconds, 1ms to 24d, or off", "30s", true),
            ("workload.namespace", "a name without spaces and slashes; a name, not empty", "default", false),
            ("inbound.plaintextPorts", "a list: ports, 1 to 65535", "[]", true),
            ("identity.files.key", "a path", "\"\"", false),
            ("mesh.files", "a list: paths of files or folders", "[]", false),
            ("node", "text", "\"\"", false),
        ] {
            assert_eq!(of(key), Accepted { takes: takes.into(), default: default.into(), live }, "{key}");
        }
        let silent: Vec<_> = all.iter().filter(|(_, value)| value.takes.is_empty()).collect();
        assert!(silent.is_empty(), "{silent:?}");
    }
}
