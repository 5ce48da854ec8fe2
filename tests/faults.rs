//! Faults, limits, drain and reload: the real daemon in network namespaces, with peers that die, hang, reset and vanish.

#![allow(clippy::panic, reason = "a test fails by panicking, in its helpers too")]

#[path = "netns/kit.rs"]
#[allow(dead_code, unused_imports, unreachable_pub, reason = "shared by test binaries, none of which uses all of it")]
mod kit;

#[path = "faults/world.rs"]
#[allow(unreachable_pub, reason = "as in the kit")]
mod world;

#[path = "faults/dead_peers.rs"]
mod dead_peers;

#[path = "faults/descriptors.rs"]
mod descriptors;

#[path = "faults/limits.rs"]
mod limits;

#[path = "faults/drain.rs"]
mod drain;

#[path = "faults/reload_settings.rs"]
mod reload_settings;

#[path = "faults/reload_mesh.rs"]
mod reload_mesh;

#[path = "../benches/scale/generate.rs"]
#[allow(dead_code, reason = "the benchmark uses all of it")]
mod generate;

#[path = "faults/large_state.rs"]
mod large_state;

#[path = "faults/policies.rs"]
mod policies;

#[path = "faults/endpoints.rs"]
mod endpoints;

#[path = "faults/start.rs"]
mod start;

#[path = "faults/soak.rs"]
mod soak;
