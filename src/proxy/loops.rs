//! Loops: connections that would come back to adit itself.
//!
//! An own port is any port that adit listens on, on an address of this network namespace, in whatever form it is
//! written. The metrics and readiness ports stay reachable: they relay nothing. Fails closed.

use std::sync::Arc;

use crate::net::address::UpstreamAddr;
use crate::net::local::LocalAddresses;

/// The ports that must never be dialled on an own address.
#[derive(Debug, Clone, Default)]
pub struct OwnPorts(Arc<[u16]>);

impl OwnPorts {
    #[must_use]
    pub fn new(ports: impl IntoIterator<Item = u16>) -> Self {
        Self(ports.into_iter().collect())
    }

    /// Whether dialling `address` would come back to adit.
    pub fn contain(&self, address: UpstreamAddr, local: &mut LocalAddresses) -> bool {
        self.0.contains(&address.port()) && local.contains(address.ip())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_own_port_is_refused_in_every_form_of_our_addresses_and_only_there() {
        let own = OwnPorts::new([15001, 15006]);
        let mut local = LocalAddresses::default();
        for (address, want) in [
            ("127.0.0.1:15001", true),
            ("127.9.9.9:15006", true),
            ("[::1]:15001", true),
            ("0.0.0.0:15001", true),
            ("[::]:15001", true),
            ("[::ffff:127.0.0.1]:15001", true),
            ("127.0.0.1:15020", false),
            ("192.0.2.7:15001", false),
        ] {
            let address = UpstreamAddr::new(address.parse().expect("address"));
            assert_eq!(own.contain(address, &mut local), want, "{address}");
        }
    }
}
