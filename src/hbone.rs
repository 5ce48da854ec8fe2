//! The tunnel: HTTP/2 CONNECT over mutual TLS, wire-compatible with ztunnel.
//!
//! ```text
//! io       TLS over a socket, made for bulk            request  the CONNECT request and its answer, as pure functions
//! tunnel   one connection between two workloads
//! stream   one connection inside a tunnel              window   how much tunnels may hold, and HTTP/2's limits
//! ```

pub mod io;
pub mod request;
pub mod stream;
pub mod tunnel;
pub mod window;

pub use stream::{Chunk, Stream, StreamError};
pub use tunnel::{Lease, Tunnel, Tunnels};
