//! The tunnel: HTTP/2 CONNECT over mutual TLS, wire-compatible with ztunnel.
//!
//! ```text
//! io       TLS over a socket, made for bulk            request  the CONNECT request and its answer, as pure functions
//! tunnel   one connection between two workloads        client, pool, server: who makes them, and who takes streams
//! stream   one connection inside a tunnel              window   how much tunnels may hold, and HTTP/2's limits
//! carried  a stream as bytes, for a tunnel inside it
//! ```

mod carried;
pub mod client;
pub mod io;
pub mod pool;
pub mod request;
pub mod server;
pub mod stream;
pub mod tunnel;
pub mod window;

pub use client::{Dial, OpenError, Opened};
pub use pool::{Pool, TunnelKey};
pub use stream::{Chunk, Stream, StreamError};
pub use tunnel::{Lease, Tunnel, Tunnels};

/// Where workloads listen for tunnels.
pub const PORT: u16 = 15008;
