//! adit: an L4 proxy daemon. This is the map of the house, as far as it is built.
//!
//! Everything is on one of four paths, each one-way; so far:
//!
//! ```text
//! LIFECYCLE signals | admin -> phase on a broadcast channel -> listeners and workers       (lifecycle)
//! ```
//!
//! Imports only point downward: `config` and `telemetry` share words; `lifecycle` stands alone.

pub mod config;
pub mod lifecycle;
pub mod telemetry;
