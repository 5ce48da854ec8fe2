//! The record: instructions per operation of each stage, in a file of the repository, for one architecture.
//!
//! In and out: lines of a name and a number; `#` begins a comment. Compilers, C libraries and the hash seeds of maps make a difference of a few per cent, so a
//! stage may take a tenth more than is recorded. A file that is not there records nothing, and what is not recorded is not within its limits.

use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Write as _;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// A stage may take so much more, in per cent of the record.
const MORE: u64 = 10;
/// But at least so many instructions, since a tenth of very few is one spilled register.
const MORE_AT_LEAST: u64 = 20;
/// What takes so much less, in per cent of the record, is worth a new one: else it could be lost again unseen.
const LESS: u64 = 20;

const HEAD: &str = "\
# Instructions per operation, written by `cargo bench --profile stages --bench stages -- --record`.
# What they are: docs/performance.md, \"Gates on instruction counts\".
";

#[derive(Debug, Default)]
pub(crate) struct Limits(BTreeMap<String, u64>);

/// How a count compares with the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    Within,
    Above { most: u64 },
    FarBelow,
    NotRecorded,
}

impl Limits {
    pub(crate) fn read(file: &Path) -> Result<Self> {
        let text = match std::fs::read_to_string(file) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            text => text.with_context(|| file.display().to_string())?,
        };
        let mut recorded = BTreeMap::new();
        for (number, line) in (1..).zip(text.lines()) {
            let wrong = |what: &str| format!("{}:{number}: {what}", file.display());
            let expected = || wrong("expected a name and a number");
            match line.split_whitespace().collect::<Vec<_>>()[..] {
                [] | ["#", ..] => {}
                [name, count] => {
                    let count = count.parse().with_context(expected)?;
                    if recorded.insert(name.to_owned(), count).is_some() {
                        bail!(wrong(&format!("{name} is there twice")));
                    }
                }
                _ => bail!(expected()),
            }
        }
        Ok(Self(recorded))
    }

    /// Takes over what was counted, and drops what does not exist any more.
    pub(crate) fn replace(&mut self, counted: &BTreeMap<&str, u64>, exists: impl Fn(&str) -> bool) {
        self.0.retain(|name, _| exists(name));
        self.0.extend(counted.iter().map(|(name, count)| ((*name).to_owned(), *count)));
    }

    pub(crate) fn write(&self, file: &Path) -> Result<()> {
        let mut text = HEAD.to_owned();
        for (name, count) in &self.0 {
            writeln!(text, "{name:<18} {count:>9}")?;
        }
        std::fs::write(file, text).with_context(|| file.display().to_string())
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    pub(crate) fn recorded(&self, name: &str) -> Option<u64> {
        self.0.get(name).copied()
    }

    pub(crate) fn standing(&self, name: &str, count: u64) -> Standing {
        let Some(recorded) = self.recorded(name) else { return Standing::NotRecorded };
        let most = recorded.saturating_add((recorded.saturating_mul(MORE) / 100).max(MORE_AT_LEAST));
        if count > most {
            Standing::Above { most }
        } else if count < recorded.saturating_mul(100 - LESS) / 100 {
            Standing::FarBelow
        } else {
            Standing::Within
        }
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Within => Ok(()),
            Self::Above { most } => write!(f, "TOO MANY: at most {most}"),
            Self::FarBelow => write!(f, "far fewer: lower the record with `-- --record`"),
            Self::NotRecorded => write!(f, "NOT RECORDED"),
        }
    }
}
