//! IDENTITY: who we are, whom we trust, and the TLS configurations made of both.
//!
//! ```text
//! source (dev | files) -> credentials (checked as one unit) -> TLS configs -> watch channel -> read per handshake
//!                         pem, certificate, crl, spiffe         tls, handshake, verify   rotation
//! ```
//!
//! To be seen: status, peers (who hangs on which root), failures (of handshakes), check (before the start).
//!
//! Fails closed everywhere: a key and a chain that do not fit together are never published, the old ones stay in force,
//! and without any there are no handshakes; roots and revocations do not wait for them. Deliberately absent: the tunnels
//! that use this.

pub mod authority;
pub mod certificate;
pub mod check;
pub mod credentials;
pub mod crl;
pub mod dev;
pub mod failures;
pub mod files;
#[cfg(test)]
mod fixture;
mod handshake;
pub mod peers;
pub mod pem;
pub mod plan;
mod provider;
pub mod rotation;
pub mod schedule;
pub mod source;
pub mod spiffe;
pub mod status;
pub mod tls;
pub mod verify;

pub use credentials::{Credentials, CredentialsError, TrustBundle};
pub use failures::{HandshakeFailures, Role};
pub use peers::{PeerGuard, Peers};
pub use rotation::{Rotation, Rotator};
pub use source::Source;
pub use spiffe::{SpiffeId, TrustDomain};
pub use status::{IdentityMetrics, IdentityStatus};
pub use tls::{TlsGeneration, Verdict};
pub use verify::{PeerError, PeerIdentity, Usage};
