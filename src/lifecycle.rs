//! LIFECYCLE: phases on a broadcast channel, signals that cause them, named blockers of readiness.

pub mod phase;
pub mod readiness;

pub use phase::{Lifecycle, Phase};
pub use readiness::{Blocker, Readiness};
