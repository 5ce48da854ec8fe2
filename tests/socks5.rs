//! The SOCKS5 door of the real daemon: real clients, raw sockets, and everything that is no proper request.

#![allow(clippy::panic, reason = "a test fails by panicking, in its helpers too")]

#[path = "netns/kit.rs"]
#[allow(dead_code, unused_imports, unreachable_pub, reason = "shared by test binaries, none of which uses all of it")]
mod kit;
#[path = "support/program.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared by test binaries, none of which uses all of it")]
mod program;
#[path = "support/serve.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared by test binaries, none of which uses all of it")]
mod serve;

#[path = "socks5/clients.rs"]
mod clients;
#[path = "socks5/hostile.rs"]
mod hostile;
#[path = "socks5/refusals.rs"]
mod refusals;
#[path = "socks5/requests.rs"]
mod requests;
#[path = "socks5/wire.rs"]
mod wire;
