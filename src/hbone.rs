//! The tunnel: HTTP/2 CONNECT over mutual TLS, wire-compatible with ztunnel.
//!
//! ```text
//! io       TLS over a socket, made for bulk
//! ```

pub mod io;
