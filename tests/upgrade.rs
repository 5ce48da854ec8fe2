//! Upgrade: the real program replaced on disk and followed by a new process, under load and with everything going wrong that
//! can; socket activation and what a service manager is told; adit as process 1.

#![allow(clippy::panic, reason = "a test fails by panicking, in its helpers too")]

#[path = "netns/kit.rs"]
#[allow(dead_code, unused_imports, unreachable_pub, reason = "shared by test binaries, none of which uses all of it")]
mod kit;

#[path = "faults/world.rs"]
#[allow(dead_code, unreachable_pub, reason = "as in the kit")]
mod world;

#[path = "support/serve.rs"]
#[allow(dead_code, unreachable_pub, reason = "as in the kit")]
mod serve;

#[path = "upgrade/line.rs"]
#[allow(unreachable_pub, reason = "as in the kit")]
mod line;

#[path = "upgrade/lossless.rs"]
mod lossless;

#[path = "upgrade/drain.rs"]
mod drain;

#[path = "upgrade/failures.rs"]
mod failures;

#[path = "upgrade/sockets.rs"]
mod sockets;

#[path = "upgrade/process1.rs"]
mod process1;

#[path = "upgrade/service.rs"]
mod service;

#[path = "upgrade/systemd.rs"]
mod systemd;
