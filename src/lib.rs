//! adit: an L4 proxy daemon. This is the map of the house, as far as it is built.
//!
//! Everything is on one of four paths, each one-way; so far:
//!
//! ```text
//! LIFECYCLE signals | admin -> phase on a broadcast channel -> listeners and workers       (lifecycle)
//! ```
//!
//! Imports only point downward: `files` and `lifecycle` import no other room, `net` only `config`.

pub mod config;
pub mod files;
pub mod lifecycle;
pub mod net;
pub mod telemetry;
