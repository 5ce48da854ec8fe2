//! Balance: which endpoint of a service a connection tries next, and what is learned from its tries.
//!
//! ```text
//! draw    the better of two candidates, by load, latency and weight, in the nearest group that has one that works
//! eject   failures in a row leave an endpoint alone for a while
//! ```
//!
//! Who may be drawn at all is the service's plan ([`crate::mesh::plan`]). Pure, but for the counters that hang on the state.

pub mod draw;
pub mod eject;

use std::sync::Arc;

use crate::mesh::Endpoint;
use crate::mesh::live::{InUse, Live};
use crate::mesh::plan::Candidates;

/// A chosen endpoint. Where it is and how it is reached is found out afterwards.
#[derive(Debug, Clone)]
pub struct Choice {
    pub endpoint: Arc<Endpoint>,
    /// Its own port for what is wanted.
    pub port: u16,
}

/// An endpoint in use, and whom it was drawn from.
#[derive(Debug)]
pub struct Picked {
    pub live: Live,
    /// Nothing where there was no choice.
    pub among: Option<Arc<Candidates>>,
    pub in_use: InUse,
}
