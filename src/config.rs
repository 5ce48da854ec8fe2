//! The daemon's own settings (the bootstrap): what an operator writes, checked once, then immutable.
//!
//! ```text
//! Sources -> layers (defaults < files < environment < flags) -> kinds (each value) -> checks (across keys) -> Settings
//! ```
//!
//! In: [`Sources`], a value. Out: [`Settings`], or all [`Problems`] at once, each with where it was written, the key
//! path, what was found and expected, and a hint. Nothing here logs, and nothing wrong is ever replaced by a default.
//!
//! The one list of keys is `schema`; `config/adit.yaml` shows them all with their defaults and says what they are for, from
//! which `reference` makes what people read.

pub mod auto;
mod checks;
pub mod demo;
mod kinds;
mod layers;
pub mod problem;
pub mod reference;
pub mod reload;
mod render;
mod schema;
pub mod settings;
pub mod sources;
pub mod yaml;

pub use problem::{Problem, Problems};
pub use settings::Settings;
pub use sources::Sources;

/// Reads and merges all layers. The files are read from disk at every call, so a reload is another call.
pub fn load(sources: &Sources) -> Result<Settings, Problems> {
    let (settings, problems) = inspect(sources);
    problems.or(settings)
}

/// As [`load`], but yields both what is wrong and what could be understood: for looking on, never for running.
pub fn inspect(sources: &Sources) -> (Settings, Problems) {
    let mut merged = layers::Merged::of(sources);
    let across = checks::check(&merged);
    let mut problems = std::mem::take(&mut merged.problems);
    problems.extend(across);
    (merged.settings, problems)
}

#[cfg(test)]
mod tests;
