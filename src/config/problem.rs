//! What is wrong with something an operator wrote: one [`Problem`] per wrong key, and [`Problems`], all of them.
//!
//! In: findings of the readers beside this file and of the mesh files' reader. Out: lines that a person can act on
//! (`Display`) and the same as JSON (`Serialize`). A problem always names where the text came from, and the line when
//! that is a file. Values are shown shortened and escaped; nothing here holds a secret.
//!
//! Deliberately absent: warnings. What is written is right or it is refused.

use std::fmt;
use std::path::PathBuf;

use serde::{Serialize, Serializer};

/// Where a piece of text came from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Origin {
    File(PathBuf),
    /// A file that is built into the binary, by its name in the source tree.
    BuiltIn(&'static str),
    /// An environment variable, by name.
    Environment(String),
    /// A command-line flag, as given.
    Flag(String),
    /// Nobody wrote it: it follows from the defaults.
    Defaults,
}

/// A place in a file; both count from one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Position {
    pub line: usize,
    pub column: usize,
}

/// One thing that is wrong. Empty strings mean "does not apply".
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    pub origin: Origin,
    pub position: Option<Position>,
    /// Such as `connect.timeout` or `workloads[3].services`; empty: the file as a whole.
    pub key_path: String,
    /// What is wrong, when found and expected do not already say it.
    pub message: String,
    pub found: String,
    pub expected: String,
    pub hint: Option<String>,
}

/// Everything that is wrong, in the order it was found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(transparent)]
pub struct Problems(Vec<Problem>);

impl Problem {
    /// A problem with the origin as a whole, such as a file that cannot be read.
    pub fn of(origin: Origin, message: impl Into<String>) -> Self {
        Self {
            origin,
            position: None,
            key_path: String::new(),
            message: message.into(),
            found: String::new(),
            expected: String::new(),
            hint: None,
        }
    }

    #[must_use]
    pub fn at(mut self, position: Option<Position>) -> Self {
        self.position = position;
        self
    }

    #[must_use]
    pub fn key(mut self, key_path: impl Into<String>) -> Self {
        self.key_path = key_path.into();
        self
    }

    #[must_use]
    pub fn found(mut self, found: impl Into<String>) -> Self {
        self.found = found.into();
        self
    }

    #[must_use]
    pub fn expected(mut self, expected: impl Into<String>) -> Self {
        self.expected = expected.into();
        self
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The line in the file, when there is one.
    pub fn line(&self) -> Option<usize> {
        self.position.map(|position| position.line)
    }
}

impl Problems {
    pub fn push(&mut self, problem: Problem) {
        self.0.push(problem);
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.0.iter()
    }

    /// `value`, unless something is wrong.
    pub fn or<T>(self, value: T) -> Result<T, Self> {
        if self.is_empty() { Ok(value) } else { Err(self) }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::BuiltIn(name) => write!(f, "built-in {name}"),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Flag(flag) => write!(f, "flag {flag}"),
            Self::Defaults => f.write_str("defaults"),
        }
    }
}

impl Serialize for Origin {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One line, and one more when there is a hint.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.origin)?;
        if let Some(Position { line, column }) = self.position {
            write!(f, ":{line}:{column}")?;
        }
        if !self.key_path.is_empty() {
            write!(f, ": {}", self.key_path)?;
        }
        let mut separator = ": ";
        if !self.message.is_empty() {
            write!(f, "{separator}{}", self.message)?;
        }
        if !self.found.is_empty() {
            write!(f, "{separator}found {}", self.found)?;
            separator = ", ";
        }
        if !self.expected.is_empty() {
            write!(f, "{separator}expected {}", self.expected)?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n  hint: {hint}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problem {}

impl std::error::Error for Problems {}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

impl Extend<Problem> for Problems {
    fn extend<I: IntoIterator<Item = Problem>>(&mut self, problems: I) {
        self.0.extend(problems);
    }
}

impl IntoIterator for Problems {
    type Item = Problem;
    type IntoIter = std::vec::IntoIter<Problem>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a> IntoIterator for &'a Problems {
    type Item = &'a Problem;
    type IntoIter = std::slice::Iter<'a, Problem>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_one_line_and_a_hint() {
        let problem = Problem::of(Origin::File("a.yaml".into()), "")
            .at(Some(Position { line: 7, column: 12 }))
            .key("connect.timeout")
            .found("5")
            .expected("a duration")
            .hint("write 5s");
        assert_eq!(problem.to_string(), "a.yaml:7:12: connect.timeout: found 5, expected a duration\n  hint: write 5s");
        assert_eq!(problem.line(), Some(7));
    }

    #[test]
    fn parts_that_do_not_apply_leave_no_trace() {
        let problem = Problem::of(Origin::Environment("ADIT__X".into()), "unknown key");
        assert_eq!(problem.to_string(), "environment variable ADIT__X: unknown key");
        let both = Problem::of(Origin::Defaults, "wrong").found("a").expected("b");
        assert_eq!(both.to_string(), "defaults: wrong: found a, expected b");
    }
}
