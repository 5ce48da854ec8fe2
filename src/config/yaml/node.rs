//! A YAML document as serde_yaml understands it. Unlike `serde_yaml::Value` it keeps duplicate keys, so that they can be
//! reported with the rest, and it is built within a budget, so that a few kilobytes of aliases do not become gigabytes.
//!
//! In: text. Out: one [`Node`] per document, at most 128 levels deep (serde_yaml's limit). Tags other than YAML's own
//! (`!Exact x`) survive. Deliberately absent: `<<` merge keys; they are a key like any other, hence unknown to readers.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;

use serde::de::{self, DeserializeSeed, EnumAccess, MapAccess, SeqAccess, VariantAccess, Visitor};

/// What one node of the tree is charged on the budget, beside its text.
const NODE_BYTES: usize = 40;
/// The tree may cost this much whatever the text's size,
const BUDGET_FLOOR: usize = 16 * 1024 * 1024;
/// or this many times the text: without aliases one byte of text is at most two nodes.
const BUDGET_PER_BYTE: usize = 2 * NODE_BYTES + 1;
/// Deepest nesting of `[` and `{` that is handed to the parser: each more costs it time in proportion to the depth, and
/// serde_yaml refuses 128 anyway. The count does not know quotes and comments, hence the margin.
const MAX_FLOW_DEPTH: usize = 256;

#[derive(Debug, Clone, PartialEq)]
pub enum Node {
    Null,
    Bool(bool),
    /// Not negative.
    Unsigned(u64),
    /// Negative.
    Signed(i64),
    Float(f64),
    Text(Box<str>),
    List(Vec<Self>),
    /// As written: in order, duplicates included.
    Map(Vec<(Self, Self)>),
    /// `!Tag value`, the tag without its `!`.
    Tagged(Box<(String, Self)>),
}

/// Text that is not YAML, or too much of it.
pub(super) struct SyntaxError {
    pub(super) message: String,
    pub(super) position: Option<(usize, usize)>,
}

impl Node {
    pub(super) fn parse_documents(text: &str) -> Result<Vec<Self>, SyntaxError> {
        if let Some(position) = too_deep(text) {
            return Err(SyntaxError { message: "nested too deeply".to_owned(), position: Some(position) });
        }
        let budget = Cell::new(BUDGET_FLOOR.max(text.len().saturating_mul(BUDGET_PER_BYTE)));
        let mut documents = Vec::new();
        for document in serde_yaml::Deserializer::from_str(text) {
            documents.push(Build { budget: &budget }.deserialize(document).map_err(|error| SyntaxError::of(&error))?);
        }
        Ok(documents)
    }

    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Whether two keys are spelt the same, `80` and `"80"` included; collections are never the same key.
    pub(super) fn is_same_key(&self, other: &Self) -> bool {
        match (self, other) {
            // Nearly all keys.
            (Self::Text(own), Self::Text(other)) => own == other,
            (Self::List(_) | Self::Map(_) | Self::Tagged(_), _) => false,
            _ => self.as_key() == other.as_key(),
        }
    }

    /// As a key is spelt in a key path; `?` for lists, maps and tags.
    pub(super) fn as_key(&self) -> Cow<'_, str> {
        match self {
            Self::Text(text) => Cow::Borrowed(text),
            Self::Null => Cow::Borrowed("null"),
            Self::Bool(value) => Cow::Owned(value.to_string()),
            Self::Unsigned(value) => Cow::Owned(value.to_string()),
            Self::Signed(value) => Cow::Owned(value.to_string()),
            Self::Float(value) => Cow::Owned(value.to_string()),
            Self::List(_) | Self::Map(_) | Self::Tagged(_) => Cow::Borrowed("?"),
        }
    }
}

/// What is there, for a message: scalars as written, shortened and escaped; collections by kind.
impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 60;
        match self {
            Self::Null => f.write_str("nothing"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Unsigned(value) => write!(f, "{value}"),
            Self::Signed(value) => write!(f, "{value}"),
            Self::Float(value) => write!(f, "{value}"),
            Self::Text(text) => {
                let shown: String = text.chars().take(SHOWN).collect();
                let rest = if shown.len() < text.len() { "..." } else { "" };
                write!(f, "{shown:?}{rest}")
            }
            Self::List(_) => f.write_str("a list"),
            Self::Map(_) => f.write_str("a map"),
            Self::Tagged(tagged) => write!(f, "{:?} with the tag !{}", tagged.1.to_string(), tagged.0.escape_debug()),
        }
    }
}

impl SyntaxError {
    fn of(error: &serde_yaml::Error) -> Self {
        let message = error.to_string();
        let position = error.location().map(|location| (location.line(), location.column()));
        // The position is said once, by the problem.
        let message = match position {
            Some((line, column)) => message.replacen(&format!(" at line {line} column {column}"), "", 1),
            None => message,
        };
        Self { message: format!("not valid YAML: {message}"), position }
    }
}

/// Line and column of the first bracket that nests deeper than is handed to the parser.
fn too_deep(text: &str) -> Option<(usize, usize)> {
    let mut depth = 0_usize;
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_FLOW_DEPTH {
            let before = text.get(..index).unwrap_or_default();
            let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
            return Some((before.matches('\n').count() + 1, index - line_start + 1));
        }
    }
    None
}

#[derive(Clone, Copy)]
struct Build<'b> {
    budget: &'b Cell<usize>,
}

impl Build<'_> {
    fn charge<E: de::Error>(self, text_len: usize) -> Result<(), E> {
        let left = self.budget.get().checked_sub(NODE_BYTES + text_len);
        self.budget.set(left.ok_or_else(|| E::custom("aliases expand to too much"))?);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Build<'_> {
    type Value = Node;

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Build<'_> {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any YAML value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Node, E> {
        self.charge(0)?;
        Ok(Node::Null)
    }

    fn visit_none<E: de::Error>(self) -> Result<Node, E> {
        self.visit_unit()
    }

    fn visit_some<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Node, E> {
        self.charge(0)?;
        Ok(Node::Bool(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Node, E> {
        self.charge(0)?;
        Ok(Node::Unsigned(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Node, E> {
        self.charge(0)?;
        Ok(u64::try_from(value).map_or(Node::Signed(value), Node::Unsigned))
    }

    fn visit_u128<E: de::Error>(self, value: u128) -> Result<Node, E> {
        // No reader takes a number this large: it only has to be shown.
        self.visit_str(&value.to_string())
    }

    fn visit_i128<E: de::Error>(self, value: i128) -> Result<Node, E> {
        self.visit_str(&value.to_string())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Node, E> {
        self.charge(0)?;
        Ok(Node::Float(value))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Node, E> {
        self.charge(value.len())?;
        Ok(Node::Text(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        self.charge(0)?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        Ok(Node::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
        self.charge(0)?;
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry_seed(self, self)? {
            map.push(entry);
        }
        Ok(Node::Map(map))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, tagged: A) -> Result<Node, A::Error> {
        let (tag, contents) = tagged.variant::<String>()?;
        self.charge(tag.len())?;
        let value = contents.newtype_variant_seed(self)?;
        Ok(Node::Tagged(Box::new((tag, value))))
    }
}
