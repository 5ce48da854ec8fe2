//! The settings as JSON, in the shape and spelling of the file: what comes out is valid input.

use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use super::kinds::Kind;
use super::schema::{self, Reload, Visit};
use super::settings::Settings;

/// Every key with its value, in the order of the schema.
pub(super) fn flat(settings: &Settings) -> Vec<Shown> {
    struct Flat(Vec<Shown>);
    impl Visit for Flat {
        fn leaf<T: 'static>(&mut self, key: &'static str, reload: Reload, kind: &'static Kind<T>, slot: &mut T) {
            self.0.push(Shown { key, reload, value: (kind.show)(slot) });
        }
    }
    let mut flat = Flat(Vec::new());
    schema::visit(&mut settings.clone(), &mut flat);
    flat.0
}

pub(super) struct Shown {
    pub(super) key: &'static str,
    pub(super) reload: Reload,
    pub(super) value: Value,
}

impl Settings {
    /// What an operator could have written to get exactly these settings.
    pub fn to_json(&self) -> Value {
        let mut root = Map::new();
        for Shown { key, value, .. } in flat(self) {
            insert(&mut root, key, value);
        }
        Value::Object(root)
    }
}

/// Makes the sections on the way.
fn insert(section: &mut Map<String, Value>, path: &str, value: Value) {
    match path.split_once('.') {
        None => {
            section.insert(path.to_owned(), value);
        }
        Some((name, rest)) => {
            let inner = section.entry(name).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(inner) = inner {
                insert(inner, rest, value);
            }
        }
    }
}

impl Serialize for Settings {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_json().serialize(serializer)
    }
}
