//! The tunnel door of a real daemon, in network namespaces, and peers that mean it no good, or have no luck.
//!
//! ```text
//! raw         a client that writes HTTP/2 frames itself
//! siege       the daemon, a friend who is served all the time, and what the daemon holds
//! frames      frames that break the rules             floods      frames in numbers, windows that stay closed
//! handshakes  garbage, slow ones, a storm of them     drain       the end of the process
//! trust       revocation, removed roots, no identity  faults      descriptors used up, peers that vanish
//! ```

#![allow(clippy::panic, reason = "a test fails by panicking, in its helpers too")]

#[path = "netns/kit.rs"]
#[allow(dead_code, unused_imports, unreachable_pub, reason = "shared by test binaries, none of which uses all of it")]
mod kit;

#[path = "support/serve.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared by test binaries, none of which uses all of it")]
mod serve;

#[path = "data_path/bytes.rs"]
#[allow(dead_code, reason = "as above")]
mod bytes;

#[path = "tunnels/pki.rs"]
#[allow(dead_code, reason = "as above")]
mod pki;

#[path = "tunnels/envoy_config.rs"]
#[allow(dead_code, reason = "as above")]
mod envoy_config;

#[path = "tunnels/envoy.rs"]
#[allow(dead_code, reason = "as above")]
mod envoy;

#[path = "tunnels/world.rs"]
#[allow(dead_code, reason = "as above")]
mod world;

#[path = "hostile/raw.rs"]
mod raw;

#[path = "hostile/siege.rs"]
mod siege;

#[path = "hostile/frames.rs"]
mod frames;

#[path = "hostile/floods.rs"]
mod floods;

#[path = "hostile/handshakes.rs"]
mod handshakes;

#[path = "hostile/drain.rs"]
mod drain;

#[path = "hostile/faults.rs"]
mod faults;

#[path = "hostile/trust.rs"]
mod trust;
