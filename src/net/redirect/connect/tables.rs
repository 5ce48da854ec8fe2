//! The maps behind the programs: what is left alone, which ports are captured, until when, and what is under way. Options and
//! what was found out about the namespace come in; the entries of the maps go out, and the maps themselves.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};

use super::programs::{CLIENT_BYTES, CONNECTION_BYTES, DESTINATION_BYTES};
use crate::net::bpf::{Map, MapKind, MapSpec};
use crate::net::redirect::options::{Filter, Options};

/// With each socket, whom the application takes for its peer: of one that was captured, where it was going; of one that it has
/// accepted from adit, the client.
pub(super) const DESTINATIONS: MapSpec = MapSpec {
    name: "adit_dst",
    kind: MapKind::SocketStorage,
    key_bytes: 4,
    value_bytes: DESTINATION_BYTES,
    entries: 0,
};
/// Several times what the queue of a door holds by default (`somaxconn`, 4,096); the kernel takes the memory for all at once.
const MOST_PENDING: u32 = 16_384;

/// From a captured connection's SYN until adit asks. Where adit never does (it is stopped, the client has left), an entry stays
/// until others need the room.
pub(super) const PENDING: MapSpec = MapSpec {
    name: "adit_pending",
    kind: MapKind::LruHash,
    key_bytes: CLIENT_BYTES,
    value_bytes: DESTINATION_BYTES,
    entries: MOST_PENDING,
};
/// From the SYN of adit's connection to the application until that has come about. One that fails leaves its entry until
/// the next with the same ends, or until others need the room.
pub(super) const CLIENTS: MapSpec = MapSpec {
    name: "adit_clients",
    kind: MapKind::LruHash,
    key_bytes: CONNECTION_BYTES,
    value_bytes: DESTINATION_BYTES,
    entries: MOST_PENDING,
};
/// A power of two. Doors beyond it get connections by way of the others, as sockets of one group do.
pub(super) const MOST_DOORS: u32 = 64;
/// adit's listening inbound sockets.
pub(super) const DOORS: MapSpec =
    MapSpec { name: "adit_doors", kind: MapKind::Sockets, key_bytes: 4, value_bytes: 8, entries: MOST_DOORS };
/// Version, namespace, deadline: a row of three 64-bit numbers.
pub(super) const STATE: MapSpec =
    MapSpec { name: "adit_state", kind: MapKind::Array, key_bytes: 4, value_bytes: 24, entries: 1 };
pub(super) const DEADLINE_AT: i16 = 16;
const VERSION: u64 = 1;

const EXEMPT: MapSpec =
    MapSpec { name: "adit_exempt", kind: MapKind::LpmTrie, key_bytes: 20, value_bytes: 1, entries: 0 };
/// All ports, 64 to an entry.
const PORTS: MapSpec =
    MapSpec { name: "adit_ports", kind: MapKind::Array, key_bytes: 4, value_bytes: 8, entries: 65_536 / 64 };

/// The maps of one `apply`.
#[derive(Debug)]
pub(super) struct Tables {
    pub(super) destinations: Map,
    pub(super) pending: Map,
    /// Where the application is told of its clients.
    pub(super) clients: Option<Map>,
    pub(super) state: Map,
    pub(super) outbound: Chosen,
    /// Where inbound connections are captured by sockets.
    pub(super) inbound: Option<Inbound>,
}

/// What of one direction is captured.
#[derive(Debug)]
pub(super) struct Chosen {
    pub(super) exempt: Map,
    pub(super) ports: Map,
}

#[derive(Debug)]
pub(super) struct Inbound {
    pub(super) chosen: Chosen,
    pub(super) doors: Map,
}

/// What the programs of an `apply` have under way, which those of the next go on with.
#[derive(Debug, Default)]
pub(super) struct UnderWay {
    pub(super) destinations: Option<Map>,
    pub(super) pending: Option<Map>,
    pub(super) clients: Option<Map>,
    pub(super) doors: Option<Map>,
}

/// What is in [`STATE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct State {
    pub(super) namespace: u64,
    /// Nanoseconds since the machine started; `None`: capture stays.
    pub(super) deadline: Option<u64>,
}

impl State {
    pub(super) fn row(self) -> Vec<u8> {
        [VERSION, self.namespace, self.deadline.unwrap_or(0)].map(u64::to_ne_bytes).concat()
    }

    /// `None` if another version of adit has written it.
    pub(super) fn read(row: &[u8]) -> Option<Self> {
        let number = |at: usize| row.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_ne_bytes);
        let deadline = number(16).filter(|deadline| *deadline != 0);
        (number(0)? == VERSION).then_some(Self { namespace: number(8)?, deadline })
    }
}

impl Tables {
    /// New maps for these options, going on with what is under way.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn create(under_way: UnderWay, state: State, own: &[IpAddr], options: &Options) -> io::Result<Self> {
        let UnderWay { destinations, pending, clients, doors } = under_way;
        let or_new = |map: Option<Map>, spec| map.map_or_else(|| Map::create(spec), Ok);
        let tables = Self {
            destinations: or_new(destinations, DESTINATIONS)?,
            pending: or_new(pending, PENDING)?,
            clients: options.tells_clients().then(|| or_new(clients, CLIENTS)).transpose()?,
            state: Map::create(STATE)?,
            outbound: Chosen::create(&exempt(own, &options.outbound), &options.outbound)?,
            inbound: None,
        };
        tables.state.update(&ROW, &state.row())?;
        if !options.captures_inbound_at_sockets() {
            return Ok(tables);
        }
        let inbound = options.inbound_but_own_doors();
        let chosen = Chosen::create(&exempt_clients(own, &inbound), &inbound)?;
        Ok(Self { inbound: Some(Inbound { chosen, doors: or_new(doors, DOORS)? }), ..tables })
    }
}

impl Chosen {
    fn create(exempt: &[IpNet], filter: &Filter) -> io::Result<Self> {
        let entries = u32::try_from(exempt.len()).unwrap_or(u32::MAX).max(1);
        let chosen = Self { exempt: Map::create(MapSpec { entries, ..EXEMPT })?, ports: Map::create(PORTS)? };
        for net in exempt {
            chosen.exempt.update(&prefix(*net), &[1])?;
        }
        for (index, bits) in (0_u32..).zip(port_bits(filter)) {
            chosen.ports.update(&index.to_ne_bytes(), &bits.to_ne_bytes())?;
        }
        Ok(chosen)
    }
}

/// The one of [`STATE`].
pub(super) const ROW: [u8; 4] = [0; 4];

/// Destinations that are never captured: what only means this host or its link, this namespace's own addresses, and what the
/// operator excludes.
pub(super) fn exempt(own: &[IpAddr], filter: &Filter) -> Vec<IpNet> {
    let host = |ip: IpAddr| IpNet::from(ip);
    let net = |ip: IpAddr, bits| IpNet::new_assert(ip, bits);
    let mut exempt = vec![
        LINK_LOCAL,
        net(Ipv4Addr::LOCALHOST.into(), 8),
        // The kernel takes these two for loopback.
        host(Ipv4Addr::UNSPECIFIED.into()),
        host(Ipv6Addr::UNSPECIFIED.into()),
        host(Ipv6Addr::LOCALHOST.into()),
    ];
    exempt.extend(own.iter().copied().map(host));
    exempt.extend(&filter.exclude_cidrs);
    exempt
}

/// Clients that are never captured: this namespace itself, those of its link, and whom the operator excludes.
fn exempt_clients(own: &[IpAddr], filter: &Filter) -> Vec<IpNet> {
    let own = own.iter().copied().map(IpNet::from);
    [LINK_LOCAL].into_iter().chain(own).chain(filter.exclude_cidrs.iter().copied()).collect()
}

/// Addresses that mean nothing without their device.
const LINK_LOCAL: IpNet = IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10));

/// How long the prefix is, in this machine's order, and the address; an IPv4 one is mapped.
fn prefix(net: IpNet) -> Vec<u8> {
    let (bits, address) = match net {
        IpNet::V4(v4) => (96 + u32::from(v4.prefix_len()), v4.addr().to_ipv6_mapped()),
        IpNet::V6(v6) => (u32::from(v6.prefix_len()), v6.addr()),
    };
    [&bits.to_ne_bytes()[..], &address.octets()].concat()
}

/// A bit for each port that is captured.
fn port_bits(filter: &Filter) -> Vec<u64> {
    let included = |port| filter.include_ports.as_ref().is_none_or(|ports| ports.contains(port));
    let captured = |port: &u16| included(*port) && !filter.exclude_ports.contains(*port);
    let mut bits = vec![0_u64; PORTS.entries as usize];
    for port in (0..=u16::MAX).filter(captured) {
        bits[usize::from(port / 64)] |= 1 << (port % 64);
    }
    bits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_become_bits() {
        let filter = Filter {
            include_ports: Some("1-70,443".parse().expect("ports")),
            exclude_ports: "64,443".parse().expect("ports"),
            ..Filter::default()
        };
        let bits = port_bits(&filter);
        assert_eq!((bits.len(), bits[0], bits[1], bits[6]), (1024, !1, 0b111_1110, 0));
        assert!(port_bits(&Filter::default()).iter().all(|bits| *bits == u64::MAX));
    }

    #[test]
    fn prefixes_count_from_the_mapped_form() {
        let net: IpNet = "10.0.0.0/8".parse().expect("net");
        let (bits, address) = (prefix(net)[..4].to_vec(), prefix(net)[4..].to_vec());
        assert_eq!(bits, 104_u32.to_ne_bytes());
        assert_eq!(address, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 0]);
        let net: IpNet = "fd00::/8".parse().expect("net");
        assert_eq!(prefix(net)[..6], [8_u32.to_ne_bytes().as_slice(), &[0xfd, 0]].concat());
    }

    #[test]
    fn what_means_this_host_is_exempt() {
        let own = "10.77.0.2".parse().expect("address");
        let filter = Filter { exclude_cidrs: vec!["192.0.2.0/24".parse().expect("net")], ..Filter::default() };
        let exempt = exempt(&[own], &filter);
        for (ip, want) in [
            ("127.3.2.1", true),
            ("0.0.0.0", true),
            ("::", true),
            ("::1", true),
            ("fe80::1", true),
            ("10.77.0.2", true),
            ("192.0.2.9", true),
            ("10.77.0.3", false),
            ("169.254.169.254", false),
            ("::2", false),
        ] {
            let ip: IpAddr = ip.parse().expect("address");
            assert_eq!(exempt.iter().any(|net| net.contains(&ip)), want, "{ip}");
        }
    }

    #[test]
    fn the_state_is_read_as_it_was_written() {
        for deadline in [None, Some(7)] {
            let state = State { namespace: 4711, deadline };
            assert_eq!(State::read(&state.row()), Some(state));
        }
        assert_eq!(State::read(&[2; 24]), None, "another version's");
        assert_eq!(State::read(&[]), None);
    }
}
