//! What the process may do to the network, and which feature is lost where it may not.
//!
//! The effective capability set of the calling thread comes in (or a made-up one, in tests) with what the settings need;
//! a list of [`Missing`] goes out, each naming the capability, the feature and the way around. A capability counts only in
//! the user namespace that owns the network namespace, so a set that looks sufficient can still be refused by the
//! kernel: the list is for telling the operator early, the system call's own error stays the truth.
//! An unreadable set counts as empty.

use std::fmt;

pub use rustix::thread::CapabilitySet;

/// The effective capabilities of the calling thread.
#[must_use]
pub fn effective() -> CapabilitySet {
    rustix::thread::capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective)
}

/// Whether nftables rules and routes of this namespace may be changed.
#[must_use]
pub fn can_administer(held: CapabilitySet) -> bool {
    held.contains(CapabilitySet::NET_ADMIN)
}

/// What the settings ask of the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Needs {
    /// A capture door is open and `packetMark` is not off.
    pub mark: bool,
    /// A capture door is open that takes connections for addresses of others: with `capture: tproxy`, or inbound with `connect`.
    pub tproxy: bool,
    /// The inbound capture door is open and `preserveSource` is not off.
    pub preserve_source: bool,
    /// Every TCP port that is listened on.
    pub ports: Vec<u16>,
    /// `net.ipv4.ip_unprivileged_port_start`; 1024 unless an administrator changed it.
    pub first_unprivileged_port: u16,
}

/// A capability that is not held and what is lost with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// As `capsh` and Kubernetes manifests spell it (Kubernetes without the `CAP_`).
    pub capability: &'static str,
    /// The settings key that asks for it.
    pub key: &'static str,
    /// What does not work.
    pub lost: String,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "missing {}: {} ({})", self.capability, self.lost, self.key)
    }
}

/// What is lost with the capabilities `held`, in a fixed order; empty when nothing is.
#[must_use]
pub fn missing(needs: &Needs, held: CapabilitySet) -> Vec<Missing> {
    let mut missing = Vec::new();
    // SO_MARK and IP_TRANSPARENT take either; SO_MARK takes CAP_NET_RAW since Linux 5.17.
    if !held.intersects(CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW) {
        let asked = [
            (needs.mark, "packetMark", "connections that adit opens cannot be told from captured ones"),
            (needs.tproxy, "capture", "connections captured by tproxy cannot be accepted"),
            (needs.preserve_source, "preserveSource", "the application sees adit's address, not the client's"),
        ];
        for (_, key, lost) in asked.into_iter().filter(|(asked, ..)| *asked) {
            missing.push(Missing { capability: "CAP_NET_ADMIN", key, lost: lost.to_owned() });
        }
    }
    if !held.contains(CapabilitySet::NET_BIND_SERVICE) {
        for port in needs.ports.iter().filter(|port| **port != 0 && **port < needs.first_unprivileged_port) {
            missing.push(Missing {
                capability: "CAP_NET_BIND_SERVICE",
                key: "listen",
                lost: format!("port {port} cannot be listened on"),
            });
        }
    }
    missing
}

/// `net.ipv4.ip_unprivileged_port_start` of this namespace.
#[must_use]
pub fn first_unprivileged_port() -> u16 {
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn everything() -> Needs {
        Needs {
            mark: true,
            tproxy: true,
            preserve_source: true,
            ports: vec![15001, 443],
            first_unprivileged_port: 1024,
        }
    }

    fn keys(needs: &Needs, held: CapabilitySet) -> Vec<(&'static str, &'static str)> {
        missing(needs, held).into_iter().map(|missing| (missing.capability, missing.key)).collect()
    }

    #[test]
    fn names_each_capability_and_each_feature() {
        let admin = CapabilitySet::NET_ADMIN;
        let bind = CapabilitySet::NET_BIND_SERVICE;
        let features =
            [("CAP_NET_ADMIN", "packetMark"), ("CAP_NET_ADMIN", "capture"), ("CAP_NET_ADMIN", "preserveSource")];
        type Case = (Needs, CapabilitySet, Vec<(&'static str, &'static str)>);
        let cases: [Case; 6] = [
            (everything(), admin | bind, vec![]),
            (everything(), CapabilitySet::NET_RAW | bind, vec![]),
            (everything(), admin, vec![("CAP_NET_BIND_SERVICE", "listen")]),
            (everything(), bind, features.to_vec()),
            (Needs { mark: true, ..Needs::default() }, CapabilitySet::empty(), features[..1].to_vec()),
            // The demo: nothing captured, nothing needed.
            (
                Needs { ports: vec![0, 15080], first_unprivileged_port: 1024, ..Needs::default() },
                CapabilitySet::empty(),
                vec![],
            ),
        ];
        for (needs, held, want) in cases {
            assert_eq!(keys(&needs, held), want, "{needs:?} with {held:?}");
        }
    }

    #[test]
    fn a_missing_one_reads_as_a_sentence() {
        let needs = Needs { ports: vec![443], first_unprivileged_port: 1024, ..Needs::default() };
        let text: Vec<_> = missing(&needs, CapabilitySet::empty()).iter().map(ToString::to_string).collect();
        assert_eq!(text, ["missing CAP_NET_BIND_SERVICE: port 443 cannot be listened on (listen)"]);
    }

    #[test]
    fn the_effective_set_is_the_one_the_kernel_shows() {
        let status = std::fs::read_to_string("/proc/thread-self/status").expect("proc");
        let shown = status.lines().find_map(|line| line.strip_prefix("CapEff:")).expect("CapEff").trim();
        assert_eq!(u64::from_str_radix(shown, 16).expect("hexadecimal"), effective().bits());
    }
}
