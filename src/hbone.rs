//! The tunnel: HTTP/2 CONNECT over mutual TLS, wire-compatible with ztunnel.
//!
//! ```text
//! io       TLS over a socket, made for bulk            request  the CONNECT request and its answer, as pure functions
//! ```

pub mod io;
pub mod request;
