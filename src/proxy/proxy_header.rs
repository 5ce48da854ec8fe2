//! The PROXY protocol: a header before all other bytes of a connection that says who is behind it.
//!
//! ```text
//! inbound:  a trusted peer's socket -> receive -> read::parse -> (source, destination)     versions 1 and 2
//! outbound: (client, original destination) -> write::header -> introduce: first bytes upstream     version 1 or 2
//! hbone:    (client, target, identity) -> write::proxy_v2 -> first bytes to the application
//! ```
//!
//! A header is never guessed at: whether there is one is configured, by the peer's address or by the service.

pub mod introduce;
pub mod read;
pub mod receive;
pub mod write;

pub use introduce::{HEADER_WITHIN, introduce};
pub use read::{Ends, Malformed, Parsed, parse};
pub use receive::{HeaderError, read_header};
pub use write::{header, proxy_v1, proxy_v2};
