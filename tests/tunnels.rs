//! HBONE tunnels between real programs, in network namespaces: foreign peers (Envoy, OpenSSL) and adit.
//!
//! ```text
//! pki            certificates by `adit certs issue`, and odd ones
//! envoy          a real Envoy: Envoy::hbone_server(..), Envoy::hbone_client(..); what it does on the wire
//! openssl        SClient::new().leaf(..).with(..).run(..): accepted, or refused with which alert
//! resetter       a server that resets streams by any code      limited   one that lowers its limit of streams
//! world          two hosts with a tunnel between them, adit or Envoy at each end
//! relay          what every connection through a tunnel must do, for any world
//! proof          the above on foreign peers alone
//! adit_server    Envoy to adit                adit_client    adit to Envoy
//! adit_both      adit to adit                 handshakes     OpenSSL to adit
//! load           many, slow and stalled ones  odd_peers      what only raw frames do
//! rotation       new leaves, new roots, revocations under load
//! identity       certificates that expire, workloads that change, names, what both ends say
//! loss           peers that vanish, drain, come back      policies       who may reach whom, and live changes of that
//! policy_drain   such changes while the far end drains
//! pace           who speaks first, who is silent, and for how long, between two adits
//! waypoints      Envoy as waypoint, and as gateway of another network, between two adits
//! ```
//!
//! Needs Envoy where `.ci/install-envoy` puts it, and `openssl`; a test that misses one fails and says so.

#![allow(clippy::panic, reason = "a test fails by panicking, in its helpers too")]

#[path = "netns/kit.rs"]
#[allow(dead_code, unused_imports, unreachable_pub, reason = "shared by test binaries, none of which uses all of it")]
mod kit;

#[path = "support/serve.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared by test binaries, none of which uses all of it")]
mod serve;

#[path = "data_path/bytes.rs"]
mod bytes;

#[path = "tunnels/pki.rs"]
mod pki;

#[path = "tunnels/envoy_config.rs"]
mod envoy_config;

#[path = "tunnels/envoy.rs"]
mod envoy;

#[path = "tunnels/openssl.rs"]
mod openssl;

#[path = "tunnels/resetter.rs"]
mod resetter;

#[path = "tunnels/limited.rs"]
mod limited;

#[path = "tunnels/world.rs"]
mod world;

#[path = "tunnels/relay.rs"]
mod relay;

#[path = "tunnels/proof.rs"]
mod proof;

#[path = "tunnels/adit_server.rs"]
mod adit_server;

#[path = "tunnels/adit_client.rs"]
mod adit_client;

#[path = "tunnels/adit_both.rs"]
mod adit_both;

#[path = "tunnels/handshakes.rs"]
mod handshakes;

#[path = "tunnels/load.rs"]
mod load;

#[path = "tunnels/odd_peers.rs"]
mod odd_peers;

#[path = "tunnels/rotation.rs"]
mod rotation;

#[path = "tunnels/identity.rs"]
mod identity;

#[path = "tunnels/loss.rs"]
mod loss;

#[path = "tunnels/policies.rs"]
mod policies;

#[path = "tunnels/policy_drain.rs"]
mod policy_drain;

#[path = "tunnels/waypoints.rs"]
mod waypoints;

#[path = "tunnels/pace.rs"]
mod pace;
