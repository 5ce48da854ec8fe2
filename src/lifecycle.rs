//! LIFECYCLE: phases on a broadcast channel, signals that cause them, named blockers of readiness; and what outlives one
//! process: taking over from the version before, handing over to the next, and the service manager around them.

pub mod handover;
pub mod launcher;
pub mod link;
pub mod notify;
pub mod origin;
pub mod phase;
pub mod program;
pub mod readiness;
pub mod supervisor;

pub use origin::{Inherited, Origin};
pub use phase::{Lifecycle, Phase};
pub use program::Program;
pub use readiness::{Blocker, Readiness};
