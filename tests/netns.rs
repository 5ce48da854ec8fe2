//! Tests over real kernel state: every test makes its own user and network namespaces (see `netns/kit.rs`), so none needs
//! root and none touches the machine's own network.

#![allow(clippy::panic, reason = "a test fails by panicking, in its helpers too")]

#[path = "netns/kit.rs"]
#[allow(dead_code, unused_imports, unreachable_pub, reason = "shared by test binaries, none of which uses all of it")]
mod kit;

#[path = "netns/redirect.rs"]
mod redirect;

#[path = "netns/selftest.rs"]
mod selftest;

#[path = "netns/command.rs"]
mod command;

#[path = "netns/connect.rs"]
mod connect;

#[path = "netns/clients.rs"]
mod clients;

#[path = "netns/inbound.rs"]
mod inbound;
