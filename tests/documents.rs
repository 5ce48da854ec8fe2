//! What `docs/` and README.md say, held against what is: commands are run, YAML is loaded, limits are compared with the code,
//! links lead somewhere. A block of commands that is not run says why, above itself.
//!
//! What a test changes in what it runs: adit is the build under test; the current folder is one of its own; network and `/run` are
//! those of namespaces of its own; the shell stops at the first command that fails.

#![allow(clippy::panic, reason = "a test fails by panicking, in its helpers too")]

#[path = "netns/kit.rs"]
#[allow(dead_code, unused_imports, unreachable_pub, reason = "shared by test binaries, none of which uses all of it")]
mod kit;
#[path = "support/program.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared by test binaries, none of which uses all of it")]
mod program;

#[path = "documents/blocks.rs"]
mod blocks;
#[path = "documents/facts.rs"]
mod facts;
#[path = "documents/limits.rs"]
mod limits;
#[path = "documents/manual.rs"]
mod manual;
#[path = "documents/scripts.rs"]
mod scripts;
#[path = "documents/yaml.rs"]
mod yaml;
