//! Walking a document while remembering the way: a [`Cursor`] is a node and its key path, [`Fields`] a map whose keys
//! are known. Whatever is wrong is reported to the sink behind them, and the walk goes on.
//!
//! Paths live on the stack and are only spelt out when there is something to report.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::fmt::Write as _;

use super::leaf::{Checked, Mismatch};
use super::lines::{Place, locate};
use super::{Node, did_you_mean};
use crate::config::problem::{Origin, Position, Problem, Problems};

/// Findings of one text beyond this many are only counted: a generated file has the same mistake 100,000 times.
const MAX_FINDINGS: usize = 500;

#[derive(Debug)]
struct Finding {
    place: Place,
    message: &'static str,
    found: String,
    expected: String,
    hint: Option<String>,
}

/// Where the cursors of one text report to.
#[derive(Debug, Default)]
pub(super) struct Sink {
    findings: RefCell<Vec<Finding>>,
    more: Cell<usize>,
}

#[derive(Debug, Clone, Copy)]
enum Trail<'a> {
    Root,
    Key(&'a Trail<'a>, &'a str),
    Entry(&'a Trail<'a>, &'a Node),
    Item(&'a Trail<'a>, usize),
}

/// A node of a document and the way to it.
#[derive(Debug, Clone, Copy)]
pub struct Cursor<'a> {
    node: &'a Node,
    trail: Trail<'a>,
    document: usize,
    sink: &'a Sink,
}

/// A map whose keys are known beforehand.
#[derive(Debug)]
pub struct Fields<'a> {
    at: &'a Cursor<'a>,
}

impl<'a> Cursor<'a> {
    pub(super) fn root(node: &'a Node, document: usize, sink: &'a Sink) -> Self {
        Self { node, trail: Trail::Root, document, sink }
    }

    pub fn node(&self) -> &'a Node {
        self.node
    }

    /// Which document of the text this is in, from zero.
    pub fn document(&self) -> usize {
        self.document
    }

    /// Such as `workloads[3].services["ns/host"]`.
    pub fn path(&self) -> String {
        let mut path = String::new();
        self.trail.spell(&mut path);
        path
    }

    /// The node as a map with these keys; any other key and every repeated key is reported. Nothing at all counts as
    /// an empty map. `None` (and a report) when it is something else.
    pub fn fields(&'a self, known: &[&str]) -> Option<Fields<'a>> {
        let entries = self.map_entries()?;
        for (index, (key, _)) in entries.iter().enumerate() {
            let Some(name) = key.as_text() else {
                self.report_key(key, index, "unknown key", None);
                continue;
            };
            if !known.contains(&name) {
                let hint = match did_you_mean(name, known.iter().copied()) {
                    _ if name == "<<" => Some("merge keys are not supported: write the keys out".to_owned()),
                    Some(meant) => Some(format!("did you mean \"{meant}\"?")),
                    None if known.len() <= 12 => Some(format!("known keys here: {}", known.join(", "))),
                    None => None,
                };
                self.report_key(key, index, "unknown key", hint);
            }
        }
        self.report_duplicates(entries);
        Some(Fields { at: self })
    }

    /// The value of a key, if this is a map that has it; nothing is reported. Of repeated keys the first.
    pub fn get(&'a self, name: &'a str) -> Option<Self> {
        let Node::Map(entries) = self.node else { return None };
        let (_, node) = entries.iter().find(|(key, _)| key.as_text() == Some(name))?;
        Some(Cursor { node, trail: Trail::Key(&self.trail, name), ..*self })
    }

    /// The node as a map from anything to anything, in order; repeated keys are reported.
    pub fn entries(&'a self) -> Option<impl Iterator<Item = (&'a Node, Cursor<'a>)>> {
        let entries = self.map_entries()?;
        self.report_duplicates(entries);
        Some(entries.iter().map(|(key, value)| (key, self.child(key, value))))
    }

    /// The node as a list. Nothing at all counts as an empty list.
    pub fn items(&'a self) -> Option<impl Iterator<Item = Cursor<'a>>> {
        let items: &[Node] = match self.node {
            Node::List(items) => items,
            Node::Null => &[],
            other => {
                self.report(Mismatch::new(other, "a list"));
                return None;
            }
        };
        let item = |(index, node)| Cursor { node, trail: Trail::Item(&self.trail, index), ..*self };
        Some(items.iter().enumerate().map(item))
    }

    /// The node as a single value. `None` when that failed, which is then reported.
    pub fn read<T>(&self, parse: impl Fn(&Node) -> Checked<T>) -> Option<T> {
        parse(self.node).map_err(|mismatch| self.report(mismatch)).ok()
    }

    /// The node as a list of single values; every wrong one is reported.
    pub fn read_list<T>(&self, parse: impl Fn(&Node) -> Checked<T>) -> Option<Vec<T>> {
        let read: Vec<Option<T>> = self.items()?.map(|item| item.read(&parse)).collect();
        read.into_iter().collect()
    }

    /// Something is wrong with this node.
    pub fn report(&self, mismatch: Mismatch) {
        let Mismatch { found, expected, hint } = mismatch;
        let place = Place { document: self.document, path: self.path(), nth: 0, key: false };
        self.sink.push(Finding { place, message: "", found, expected: expected.into_owned(), hint });
    }

    /// Something is wrong with this node that is better said in a sentence.
    pub fn report_message(&self, message: &'static str, found: impl Into<String>, hint: Option<String>) {
        let place = Place { document: self.document, path: self.path(), nth: 0, key: false };
        self.sink.push(Finding { place, message, found: found.into(), expected: String::new(), hint });
    }

    /// A map's key itself is wrong, not its value: for keys that mean something, such as ports.
    pub fn report_as_key(&self, mismatch: Mismatch) {
        let Mismatch { found, expected, hint } = mismatch;
        let place = Place { document: self.document, path: self.path(), nth: 0, key: true };
        self.sink.push(Finding { place, message: "key", found, expected: expected.into_owned(), hint });
    }

    fn map_entries(&self) -> Option<&'a [(Node, Node)]> {
        match self.node {
            Node::Map(entries) => Some(entries),
            Node::Null => Some(&[]),
            other => {
                self.report(Mismatch::new(other, "a map"));
                None
            }
        }
    }

    fn child(&'a self, key: &'a Node, value: &'a Node) -> Self {
        Self { node: value, trail: Trail::Entry(&self.trail, key), ..*self }
    }

    fn report_duplicates(&self, entries: &[(Node, Node)]) {
        // Small maps are the rule: compare pairs. Large ones are worth an index.
        if entries.len() <= 16 {
            for (index, (key, _)) in entries.iter().enumerate() {
                if entries.iter().take(index).any(|(earlier, _)| earlier.is_same_key(key)) {
                    self.report_key(key, index, "duplicate key", None);
                }
            }
            return;
        }
        let mut seen = HashSet::with_capacity(entries.len());
        for (index, (key, _)) in entries.iter().enumerate() {
            if !seen.insert(key.as_key()) && key.is_same_key(key) {
                self.report_key(key, index, "duplicate key", None);
            }
        }
    }

    fn report_key(&self, key: &Node, index: usize, message: &'static str, hint: Option<String>) {
        let Node::Map(entries) = self.node else { return };
        let nth = entries.iter().take(index).filter(|(earlier, _)| earlier.is_same_key(key)).count();
        let mut path = self.path();
        push_key(&mut path, &key.as_key());
        let place = Place { document: self.document, path, nth, key: true };
        self.sink.push(Finding { place, message, found: String::new(), expected: String::new(), hint });
    }
}

impl<'a> Fields<'a> {
    /// The value of a key, if it is there. Of repeated keys (already reported) the first.
    pub fn get(&self, name: &'a str) -> Option<Cursor<'a>> {
        self.at.get(name)
    }

    /// The key as a single value; `None` when absent, or when it is wrong, which is then reported.
    pub fn optional<T>(&self, name: &'a str, parse: impl Fn(&Node) -> Checked<T>) -> Option<T> {
        self.get(name)?.read(parse)
    }

    /// As [`Fields::optional`], but absence is reported too.
    pub fn required<T>(&self, name: &'a str, parse: impl Fn(&Node) -> Checked<T>) -> Option<T> {
        match self.get(name) {
            Some(value) => value.read(parse),
            None => {
                self.report_missing(name);
                None
            }
        }
    }

    /// As [`Fields::optional`], with a default for both absent and wrong.
    pub fn or<T>(&self, name: &'a str, parse: impl Fn(&Node) -> Checked<T>, default: T) -> T {
        self.optional(name, parse).unwrap_or(default)
    }

    /// The key as a list of single values; empty when absent.
    pub fn list<T>(&self, name: &'a str, parse: impl Fn(&Node) -> Checked<T>) -> Vec<T> {
        self.get(name).and_then(|value| value.read_list(parse)).unwrap_or_default()
    }

    /// Reports that a key is not there, on the line of the map that lacks it.
    pub fn report_missing(&self, name: &str) {
        let mut path = self.at.path();
        push_key(&mut path, name);
        let place = Place { document: self.at.document, path, nth: 0, key: true };
        self.at.sink.push(Finding {
            place,
            message: "missing key",
            found: String::new(),
            expected: String::new(),
            hint: None,
        });
    }
}

impl Trail<'_> {
    fn spell(&self, path: &mut String) {
        match self {
            Trail::Root => {}
            Trail::Key(parent, name) => {
                parent.spell(path);
                push_key(path, name);
            }
            Trail::Entry(parent, key) => {
                parent.spell(path);
                push_key(path, &key.as_key());
            }
            Trail::Item(parent, index) => {
                parent.spell(path);
                push_index(path, *index);
            }
        }
    }
}

/// What of a key is spelt in a path.
const LONGEST: usize = 200;

/// Appends `.name`, or `["name"]` when the name is more than a word.
/// Appends a key to a path, quoted where it is not a plain word.
pub fn push_key(path: &mut String, name: &str) {
    let word =
        (1..=LONGEST).contains(&name.len()) && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    if !word {
        let shown: String = name.chars().take(LONGEST).collect();
        let _infallible = write!(path, "[{shown:?}]");
        return;
    }
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(name);
}

/// Appends the place in a list.
pub fn push_index(path: &mut String, index: usize) {
    let _infallible = write!(path, "[{index}]");
}

impl Sink {
    pub(super) fn is_empty(&self) -> bool {
        self.findings.borrow().is_empty()
    }

    fn push(&self, finding: Finding) {
        let mut findings = self.findings.borrow_mut();
        if findings.len() < MAX_FINDINGS {
            findings.push(finding);
        } else {
            self.more.set(self.more.get() + 1);
        }
    }

    /// The findings with their lines, in the order of the text.
    pub(super) fn into_problems(self, origin: &Origin, text: &str) -> Problems {
        let findings = self.findings.into_inner();
        let mut places: Vec<Place> = findings.iter().map(|finding| finding.place.clone()).collect();
        // The first of a repeated key is named too.
        places.extend(findings.iter().map(|finding| Place { nth: 0, ..finding.place.clone() }));
        let positions = locate(text, &places);
        let (here, first) = positions.split_at(findings.len());
        let mut located: Vec<(Option<Position>, Problem)> = findings
            .into_iter()
            .zip(here.iter().zip(first))
            .map(|(finding, (here, first))| (*here, finding.into_problem(origin, *here, *first)))
            .collect();
        located.sort_by_key(|(position, _)| *position);
        let mut problems = Problems::default();
        problems.extend(located.into_iter().map(|(_, problem)| problem));
        if self.more.get() > 0 {
            problems.push(Problem::of(origin.clone(), format!("and {} more problems", self.more.get())));
        }
        problems
    }
}

impl Finding {
    fn into_problem(self, origin: &Origin, here: Option<Position>, first: Option<Position>) -> Problem {
        let mut problem = Problem::of(origin.clone(), self.message)
            .at(here)
            .key(self.place.path)
            .found(self.found)
            .expected(self.expected);
        problem.hint = self.hint;
        if self.place.nth > 0
            && let Some(first) = first
        {
            problem.hint.get_or_insert_with(|| format!("it is already set on line {}", first.line));
        }
        problem
    }
}
