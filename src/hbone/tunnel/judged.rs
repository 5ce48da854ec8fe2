//! What trust says of a tunnel's peer, and what follows for the tunnel.
//!
//! Revoked, or of a trust domain that is no longer accepted: cut at once. Of a root that was removed: takes no new
//! streams, and is cut when the root's grace is over. Fails closed: what cannot be judged is cut.

use std::time::SystemTime;

use crate::hbone::tunnel::Tunnel;
use crate::identity::TlsGeneration;
use crate::identity::tls::Verdict;
use crate::identity::verify::Usage;
use crate::telemetry::{Role, TunnelEnd};

impl Tunnel {
    /// Judges the peer by these credentials, and does what follows.
    pub fn judge(&self, by: &TlsGeneration, now: SystemTime) {
        let usage = match self.about.role {
            Role::Server => Usage::Client,
            Role::Client => Usage::Server,
        };
        self.execute(&by.judge(&self.about.chain, usage, now), now);
    }

    /// Judges one that has just been listed, if there have come new credentials while it was made: the change has not
    /// seen it. `current`: the credentials in force.
    pub fn judge_newcomer(&self, current: Option<&TlsGeneration>, now: SystemTime) {
        if let Some(current) = current.filter(|current| current.number != self.about.generation) {
            self.judge(current, now);
        }
    }

    /// Does what the verdict asks for.
    pub fn execute(&self, verdict: &Verdict, now: SystemTime) {
        match verdict {
            // Also where the root has come back; one that was retired stays so, and ends when its streams have.
            Verdict::Good { .. } => self.set_doomed(None),
            Verdict::RootRemoved { until } if *until > now => {
                self.retire(TunnelEnd::Untrusted);
                self.set_doomed(Some(*until));
            }
            Verdict::Revoked => self.cut(TunnelEnd::Revoked),
            Verdict::RootRemoved { .. } | Verdict::TrustDomainRemoved | Verdict::Refused(_) => {
                self.cut(TunnelEnd::Untrusted);
            }
        }
    }
}
