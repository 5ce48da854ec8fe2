//! What an operator touches, on the real daemon: the admin, metrics and readiness ports, the commands, the log.

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
#[path = "socks5/wire.rs"]
#[allow(dead_code, reason = "shared by test binaries, none of which uses all of it")]
mod wire;

#[path = "surfaces/commands.rs"]
mod commands;
#[path = "surfaces/curl.rs"]
mod curl;
#[path = "surfaces/documents.rs"]
mod documents;
#[path = "surfaces/identity.rs"]
mod identity;
#[path = "surfaces/log.rs"]
mod log;
#[path = "surfaces/ports.rs"]
mod ports;
