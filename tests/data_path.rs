//! The data path over real captured sockets: a client host, the daemon's host and a server host, joined by a switch, with
//! the real binary and the real capture rules. Every test is in namespaces of its own (see `netns/kit.rs`).

#![allow(clippy::panic, reason = "a test fails by panicking, in its helpers too")]

#[path = "netns/kit.rs"]
#[allow(dead_code, unused_imports, unreachable_pub, reason = "shared by test binaries, none of which uses all of it")]
mod kit;

#[path = "data_path/scene.rs"]
mod scene;

#[path = "data_path/bytes.rs"]
mod bytes;

#[path = "data_path/outbound.rs"]
mod outbound;

#[path = "data_path/inbound.rs"]
mod inbound;

#[path = "data_path/at_the_socket.rs"]
mod at_the_socket;

#[path = "data_path/loops.rs"]
mod loops;

#[path = "data_path/ends.rs"]
mod ends;

#[path = "data_path/refusals.rs"]
mod refusals;

#[path = "data_path/connect.rs"]
mod connect;

#[path = "data_path/integrity.rs"]
mod integrity;

#[path = "data_path/workers.rs"]
mod workers;
