//! Handshakes that failed, counted by our role in them and by the reason: a closed, small set, so that no stranger can
//! make a series. Lock-free.

use std::sync::atomic::{AtomicU64, Ordering};

/// Every reason there is; the last is for any other.
pub const REASONS: [&str; 25] = [
    // Of `PeerError`: what is wrong with the certificate that the peer presented.
    "malformed",
    "no_identity",
    "expired",
    "not_yet_valid",
    "unknown_issuer",
    "revoked",
    "bad_signature",
    "chain",
    "trust_domain",
    "not_wanted",
    // Of the handshake.
    "no_certificate",
    "alert",
    "incompatible",
    "not_tls",
    "too_long",
    "protocol",
    "alpn",
    "decrypt",
    "unidentified",
    // Of the connection, and ours: whoever runs the handshake knows.
    "closed",
    "socket",
    "timeout",
    "limit",
    "no_credentials",
    "other",
];

/// What we are in a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Server,
    Client,
}

#[derive(Debug, Default)]
pub struct HandshakeFailures {
    server: [AtomicU64; REASONS.len()],
    client: [AtomicU64; REASONS.len()],
}

impl Role {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Client => "client",
        }
    }
}

impl HandshakeFailures {
    /// `reason`: one of [`REASONS`]; what is none of them counts as `other`.
    pub fn count(&self, role: Role, reason: &'static str) {
        let counts = self.of(role);
        let at = REASONS.iter().position(|known| *known == reason);
        if let Some(count) = at.and_then(|at| counts.get(at)).or(counts.last()) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    const fn of(&self, role: Role) -> &[AtomicU64; REASONS.len()] {
        match role {
            Role::Server => &self.server,
            Role::Client => &self.client,
        }
    }

    /// Those that have happened.
    #[must_use]
    pub fn counts(&self) -> Vec<(Role, &'static str, u64)> {
        let roles = [Role::Server, Role::Client].into_iter();
        let all =
            roles.flat_map(|role| REASONS.iter().zip(self.of(role)).map(move |(reason, count)| (role, reason, count)));
        let all = all.map(|(role, reason, count)| (role, *reason, count.load(Ordering::Relaxed)));
        all.filter(|(_, _, count)| *count > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::verify::PeerError;

    #[test]
    fn the_set_is_closed() {
        let failures = HandshakeFailures::default();
        for reason in REASONS {
            failures.count(Role::Server, reason);
        }
        failures.count(Role::Client, "something new");
        failures.count(Role::Client, "expired");
        let counts = failures.counts();
        assert_eq!(counts.len(), REASONS.len() + 2);
        assert!(counts.contains(&(Role::Client, "other", 1)) && counts.contains(&(Role::Client, "expired", 1)));
    }

    #[test]
    fn every_error_of_a_peer_has_a_reason_of_the_set() {
        let own = [PeerError::Malformed, PeerError::UnknownIssuer, PeerError::Rule("x"), PeerError::Revoked];
        assert!(own.iter().map(PeerError::reason).all(|reason| REASONS.contains(&reason)));
    }
}
