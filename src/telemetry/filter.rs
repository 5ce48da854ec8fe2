//! Which log events are kept: a list of `level` and `target=level`, for example `info,mesh=debug,access=off`.
//!
//! A target covers itself and everything below it (`mesh` covers `mesh::file`); adit's own targets may be written with
//! or without `adit::`, as the log shows them. The most specific directive decides; without a bare level it is `info`.
//! Text that is not understood is an error, never a filter that silently keeps nothing. There are no filters on spans:
//! adit opens none. Libraries that log whatever peers make them do (`LIBRARIES`) are kept only where they are named.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;
use tracing::Level;
use tracing::level_filters::LevelFilter;

const CRATE_PREFIX: &str = "adit::";
const MAX_FILTER_BYTES: usize = 1024;
/// They warn of single frames, in words that are not ours and without a limit. What matters of it adit says itself.
const LIBRARIES: [&str; 1] = ["h2"];

/// A filter, and the text that it was made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    text: String,
    default: LevelFilter,
    /// Sorted so that the most specific comes first.
    targets: Vec<(String, LevelFilter)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FilterError {
    #[error("log filter is longer than {MAX_FILTER_BYTES} bytes")]
    TooLong,
    #[error("`{directive}` is neither a level nor target=level; levels are off, error, warn, info, debug, trace")]
    NotALevel { directive: String },
    #[error("`{target}` is not a log target; write a module path such as mesh or proxy::connect")]
    NotATarget { target: String },
}

impl Filter {
    /// How much of `target` is kept.
    #[must_use]
    pub fn level(&self, target: &str) -> LevelFilter {
        let own = target.strip_prefix(CRATE_PREFIX).unwrap_or(target);
        match self.targets.iter().find(|(covering, _)| covers(covering, own)) {
            Some((_, level)) => *level,
            None if LIBRARIES.iter().any(|library| covers(library, target)) => LevelFilter::OFF,
            None => self.default,
        }
    }

    #[must_use]
    pub fn keeps(&self, target: &str, level: Level) -> bool {
        level <= self.level(target)
    }

    /// The most that any target may log.
    #[must_use]
    pub fn max_level(&self) -> LevelFilter {
        self.targets.iter().map(|(_, level)| *level).fold(self.default, Ord::max)
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        let text = text.trim();
        if text.len() > MAX_FILTER_BYTES {
            return Err(FilterError::TooLong);
        }
        let mut filter = Self { text: text.to_owned(), default: LevelFilter::INFO, targets: Vec::new() };
        for directive in text.split(',').map(str::trim).filter(|directive| !directive.is_empty()) {
            let not_a_level = || FilterError::NotALevel { directive: directive.escape_debug().to_string() };
            match directive.split_once('=') {
                None => filter.default = parse_level(directive).ok_or_else(not_a_level)?,
                Some((target, level)) => {
                    let target = parse_target(target.trim())?;
                    let level = parse_level(level.trim()).ok_or_else(not_a_level)?;
                    // The last word on a target counts.
                    filter.targets.retain(|(known, _)| *known != target);
                    filter.targets.push((target, level));
                }
            }
        }
        filter.targets.sort_by_key(|(target, _)| std::cmp::Reverse(target.len()));
        Ok(filter)
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn covers(covering: &str, target: &str) -> bool {
    target.strip_prefix(covering).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

fn parse_level(word: &str) -> Option<LevelFilter> {
    const LEVELS: [(&str, LevelFilter); 6] = [
        ("off", LevelFilter::OFF),
        ("error", LevelFilter::ERROR),
        ("warn", LevelFilter::WARN),
        ("info", LevelFilter::INFO),
        ("debug", LevelFilter::DEBUG),
        ("trace", LevelFilter::TRACE),
    ];
    LEVELS.iter().find(|(name, _)| word.eq_ignore_ascii_case(name)).map(|(_, level)| *level)
}

fn parse_target(target: &str) -> Result<String, FilterError> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_:-.".contains(&byte);
    if target.is_empty() || !target.bytes().all(fits) {
        return Err(FilterError::NotATarget { target: target.escape_debug().to_string() });
    }
    Ok(target.strip_prefix(CRATE_PREFIX).unwrap_or(target).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_most_specific_directive_decides() {
        let filter: Filter = "warn, mesh=debug,adit::mesh::file=trace,access=off".parse().expect("filter");
        for (target, want) in [
            ("adit::proxy", LevelFilter::WARN),
            ("adit::mesh", LevelFilter::DEBUG),
            ("adit::mesh::snapshot", LevelFilter::DEBUG),
            ("adit::mesh::file", LevelFilter::TRACE),
            ("adit::meshes", LevelFilter::WARN),
            ("access", LevelFilter::OFF),
            ("hyper", LevelFilter::WARN),
        ] {
            assert_eq!(filter.level(target), want, "{target}");
        }
        assert_eq!(filter.max_level(), LevelFilter::TRACE);
        assert!(filter.keeps("adit::mesh", Level::DEBUG) && !filter.keeps("adit::mesh", Level::TRACE));
    }

    #[test]
    fn without_a_bare_level_it_is_info() {
        for text in ["", "mesh=trace", " , "] {
            assert_eq!(text.parse::<Filter>().expect("filter").level("other"), LevelFilter::INFO);
        }
    }

    #[test]
    fn a_library_is_silent_unless_it_is_named() {
        let level = |text: &str, target| text.parse::<Filter>().expect("filter").level(target);
        assert_eq!(level("trace", "h2::proto::ping_pong"), LevelFilter::OFF);
        assert_eq!(level("info,h2=debug", "h2::proto::ping_pong"), LevelFilter::DEBUG);
        assert_eq!(level("info,h2::proto=warn", "h2::codec"), LevelFilter::OFF);
        assert_eq!(level("info", "h2o"), LevelFilter::INFO);
    }

    #[test]
    fn the_last_word_counts() {
        let filter: Filter = "debug,a=info,warn,adit::a=error".parse().expect("filter");
        assert_eq!((filter.level("b"), filter.level("a")), (LevelFilter::WARN, LevelFilter::ERROR));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for (text, want) in [
            ("infoo", "`infoo` is neither a level nor target=level"),
            ("a=loud", "`a=loud` is neither a level nor target=level"),
            ("a b=info", "`a b` is not a log target"),
            ("=info", "`` is not a log target"),
            ("[span]=info", "`[span]` is not a log target"),
            ("a=\n", "`a=` is neither"),
        ] {
            let error = text.parse::<Filter>().expect_err(text).to_string();
            assert!(error.starts_with(want), "{error}");
        }
        assert_eq!("x".repeat(5000).parse::<Filter>(), Err(FilterError::TooLong));
    }

    proptest! {
        #[test]
        fn any_text_parses_or_is_refused_and_round_trips(text in ".{0,200}") {
            if let Ok(filter) = text.parse::<Filter>() {
                let again = filter.as_str().parse::<Filter>();
                prop_assert_eq!(again, Ok(filter));
            }
        }
    }
}
