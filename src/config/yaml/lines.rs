//! From key paths to lines: a second, event-level pass over the text, made only when there is something to report.
//!
//! In: the text and the places to find. Out: the position of each, or of its nearest ancestor that is in the text. A
//! text that this parser refuses (serde_yaml is the meaning, not this one) yields the positions before the fault.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, Span};

use super::cursor::{push_index, push_key};
use crate::config::problem::Position;

/// What to find: the `nth` occurrence of a key path in a document (repeated keys occur more than once), all from zero.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    pub document: usize,
    pub path: String,
    pub nth: usize,
    /// The key rather than its value.
    pub key: bool,
}

impl Place {
    /// The value at a key path.
    pub fn value(document: usize, path: impl Into<String>) -> Self {
        Self { document, path: path.into(), nth: 0, key: false }
    }
}

/// The positions of `places`, in their order.
pub fn locate(text: &str, places: &[Place]) -> Vec<Option<Position>> {
    let mut wanted = Wanted::new();
    for place in places {
        let document = wanted.entry(place.document).or_default();
        for path in ancestry(&place.path) {
            document.entry(path.to_owned()).or_default();
        }
    }
    Walk { wanted: &mut wanted, document: 0, started: false, path: String::new(), open: Vec::new() }.run(text);
    places.iter().map(|place| find(&wanted, place)).collect()
}

#[derive(Debug, Clone, Copy)]
struct Occurrence {
    key: Option<Position>,
    value: Position,
}

/// By document and key path.
type Wanted = HashMap<usize, HashMap<String, Vec<Occurrence>>>;

fn find(wanted: &Wanted, place: &Place) -> Option<Position> {
    let document = wanted.get(&place.document)?;
    ancestry(&place.path).enumerate().find_map(|(up, path)| {
        let occurrences = document.get(path)?;
        let occurrence = if up == 0 { occurrences.get(place.nth) } else { occurrences.first() }?;
        if place.key || up > 0 { occurrence.key.or(Some(occurrence.value)) } else { Some(occurrence.value) }
    })
}

/// The path, its parent, and so on up to the empty path.
fn ancestry(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path), |path| {
        if path.is_empty() {
            return None;
        }
        // Brackets inside quotes make a wrong parent, which is then simply not found; the next one up is.
        let end = path.rfind(['.', '[']).unwrap_or(0);
        path.get(..end)
    })
}

/// A collection that has begun and not ended.
struct Open {
    /// Length of the path of the collection itself.
    path_len: usize,
    kind: Kind,
}

enum Kind {
    List {
        next: usize,
    },
    Map {
        key: Option<Position>,
    },
    /// A collection used as a key: its inside has no path.
    Skip {
        depth: usize,
    },
}

struct Walk<'w> {
    wanted: &'w mut Wanted,
    document: usize,
    started: bool,
    path: String,
    open: Vec<Open>,
}

impl Walk<'_> {
    fn run(mut self, text: &str) {
        let mut parser = Parser::new_from_str(text);
        while let Some(Ok((event, span))) = parser.next_event() {
            match event {
                Event::DocumentStart(_) => {
                    self.document += usize::from(self.started);
                    self.started = true;
                    self.path.clear();
                    self.open.clear();
                }
                Event::Scalar(text, ..) => self.scalar(&text, span),
                Event::Alias(_) => self.scalar("?", span),
                Event::SequenceStart(..) => self.begin(Kind::List { next: 0 }, span),
                Event::MappingStart(..) => self.begin(Kind::Map { key: None }, span),
                Event::SequenceEnd | Event::MappingEnd => self.end(),
                Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
            }
        }
    }

    fn scalar(&mut self, text: &str, span: Span) {
        match self.open.last_mut() {
            Some(Open { kind: Kind::Skip { .. }, .. }) => {}
            Some(Open { kind: Kind::Map { key: key @ None }, .. }) => {
                *key = Some(position(span));
                push_key(&mut self.path, text);
            }
            _ => {
                self.enter_value(span);
                self.leave_value();
            }
        }
    }

    fn begin(&mut self, kind: Kind, span: Span) {
        match self.open.last_mut() {
            Some(Open { kind: Kind::Skip { depth }, .. }) => *depth += 1,
            Some(Open { kind: Kind::Map { key: key @ None }, .. }) => {
                *key = Some(position(span));
                push_key(&mut self.path, "?");
                self.open.push(Open { path_len: self.path.len(), kind: Kind::Skip { depth: 1 } });
            }
            _ => {
                self.enter_value(span);
                self.open.push(Open { path_len: self.path.len(), kind });
            }
        }
    }

    fn end(&mut self) {
        match self.open.last_mut() {
            Some(Open { kind: Kind::Skip { depth }, .. }) => {
                *depth -= 1;
                if *depth == 0 {
                    self.open.pop();
                }
            }
            Some(_) => {
                self.open.pop();
                self.leave_value();
            }
            None => {}
        }
    }

    /// A value begins: the path now names it; note where it is if somebody asked.
    fn enter_value(&mut self, span: Span) {
        let mut key_position = None;
        match self.open.last_mut() {
            Some(Open { kind: Kind::List { next }, .. }) => {
                push_index(&mut self.path, *next);
                *next += 1;
            }
            Some(Open { kind: Kind::Map { key }, .. }) => key_position = *key,
            _ => {}
        }
        let document = self.wanted.get_mut(&self.document);
        if let Some(occurrences) = document.and_then(|document| document.get_mut(self.path.as_str())) {
            occurrences.push(Occurrence { key: key_position, value: position(span) });
        }
    }

    /// A value has ended: the path names its parent again.
    fn leave_value(&mut self) {
        match self.open.last_mut() {
            Some(Open { path_len, kind }) => {
                self.path.truncate(*path_len);
                if let Kind::Map { key } = kind {
                    *key = None;
                }
            }
            None => self.path.clear(),
        }
    }
}

fn position(span: Span) -> Position {
    Position { line: span.start.line(), column: span.start.col() + 1 }
}
