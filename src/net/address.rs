//! Addresses: one canonical form, and a type per role so that none can be mistaken for another.

use std::fmt;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};

/// `::ffff:a.b.c.d` is the IPv4 address `a.b.c.d`. A link-local address keeps its scope: without it, it leads nowhere.
#[must_use]
pub fn canonical(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() => {
            SocketAddrV6::new(*v6.ip(), v6.port(), 0, v6.scope_id()).into()
        }
        _ => SocketAddr::new(address.ip().to_canonical(), address.port()),
    }
}

macro_rules! roles {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(SocketAddr);

        impl $name {
            /// Canonicalises.
            #[must_use]
            pub fn new(address: SocketAddr) -> Self { Self(canonical(address)) }

            #[must_use]
            pub const fn socket_addr(self) -> SocketAddr { self.0 }

            #[must_use]
            pub const fn ip(self) -> IpAddr { self.0.ip() }

            #[must_use]
            pub const fn port(self) -> u16 { self.0.port() }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { self.0.fmt(f) }
        }
    )*};
}

roles! {
    /// The client's end of a downstream connection.
    PeerAddr;
    /// Where the client was going when the kernel captured it, or what it asked a SOCKS5 door for.
    OriginalDst;
    /// What adit dials.
    UpstreamAddr;
}

impl From<OriginalDst> for UpstreamAddr {
    fn from(dst: OriginalDst) -> Self {
        Self(dst.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_addresses_are_ipv4() {
        for (given, want) in [
            ("[::ffff:10.0.0.1]:80", "10.0.0.1:80"),
            ("10.0.0.1:80", "10.0.0.1:80"),
            ("[::1]:80", "[::1]:80"),
            ("[2001:db8::1]:80", "[2001:db8::1]:80"),
            ("[fe80::1%7]:80", "[fe80::1%7]:80"),
        ] {
            let given: SocketAddr = given.parse().expect("address");
            assert_eq!(OriginalDst::new(given).to_string(), want);
        }
    }
}
