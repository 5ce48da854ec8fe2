//! Reading YAML that a person wrote so that everything wrong with it is reported at once; for the settings and for the
//! mesh files.
//!
//! ```text
//! text --serde_yaml--> Node (one per document) --Cursor, Fields--> the reader's own types
//!                                                     |
//!                                     findings (key path, found, expected, hint)
//!                                                     |
//!                      only if there are any: --saphyr events--> line and column -> Problems
//! ```
//!
//! serde_yaml is the only meaning of the text; the second parser only says on which line a key path is. A value that is
//! wrong yields its own error ([`Checked`]) and never hides the next one. Unknown and duplicate keys are problems.
//!
//! Hostile text ends in an error: size, nesting, alias expansion and the number of reported problems are bounded.

mod cursor;
mod leaf;
mod lines;
mod node;
mod suggest;

pub use cursor::{Cursor, Fields, push_index, push_key};
pub use leaf::{Checked, Mismatch, boolean, choice, integer, parsed, range, text};
pub use lines::{Place, locate};
pub use node::Node;
pub use suggest::did_you_mean;

use crate::config::problem::{Origin, Position, Problem, Problems};
use cursor::Sink;

/// Reads every document of `text` with `read`. `Err` holds everything that is wrong, in the order of the text where
/// that is known; then what `read` returned is dropped.
///
/// `read` gets a cursor on the document's root and reports through it; it may return anything when it has reported.
/// An empty text is one document that is [`Node::Null`].
pub fn read_documents<T>(
    origin: &Origin,
    text: &str,
    max_bytes: usize,
    mut read: impl FnMut(Cursor<'_>) -> T,
) -> Result<Vec<T>, Problems> {
    let documents = parse(origin, text, max_bytes)?;
    let sink = Sink::default();
    let mut out = Vec::with_capacity(documents.len());
    for (index, document) in documents.iter().enumerate() {
        out.push(read(Cursor::root(document, index, &sink)));
    }
    if sink.is_empty() { Ok(out) } else { Err(sink.into_problems(origin, text)) }
}

/// As [`read_documents`] for one document that is parsed already; `text` is what it was parsed from, for the lines, or
/// empty when there are none.
pub fn read_node<T>(
    origin: &Origin,
    text: &str,
    node: &Node,
    read: impl FnOnce(Cursor<'_>) -> T,
) -> Result<T, (T, Problems)> {
    let sink = Sink::default();
    let out = read(Cursor::root(node, 0, &sink));
    if sink.is_empty() { Ok(out) } else { Err((out, sink.into_problems(origin, text))) }
}

/// Only the meaning of the text, without a reader.
pub fn parse(origin: &Origin, text: &str, max_bytes: usize) -> Result<Vec<Node>, Problems> {
    if text.len() > max_bytes {
        return Err(Problem::of(origin.clone(), "too large")
            .found(format!("{} bytes", text.len()))
            .expected(format!("at most {max_bytes} bytes"))
            .into());
    }
    Node::parse_documents(text).map_err(|syntax| {
        let position = syntax.position.map(|(line, column)| Position { line, column });
        Problem::of(origin.clone(), syntax.message).at(position).into()
    })
}

#[cfg(test)]
mod tests;
