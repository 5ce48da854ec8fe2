//! What to capture: the typed form of the `adit redirect` flags. Text comes in, checked values go out; a value of these
//! types can always be rendered as valid rules. Deliberately absent: interfaces, users other than adit, UDP.

use std::fmt;
use std::num::{NonZeroU16, NonZeroU32};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;

/// The bits of packet and connection marks that adit reads and writes, as Istio does; the others belong to whoever set them.
pub const MARK_MASK: u32 = 0xfff;
/// Connection and packet mark of connections that adit opens to the application in a client's name: brings the replies to the
/// client's address back or, with [`Kind::Connect`], has the application told of the client.
pub const CLIENT_MARK: u32 = 0x111;
/// Connection and packet mark of connections captured by tproxy.
pub const TPROXY_MARK: u32 = 0x112;

/// Everything that decides the rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    pub kind: Kind,
    /// adit's outbound capture door.
    pub outbound_port: NonZeroU16,
    /// adit's inbound capture door.
    pub inbound_port: NonZeroU16,
    /// Not captured inbound: the HBONE door.
    pub hbone_port: NonZeroU16,
    /// Not captured inbound: adit's other doors.
    pub own_ports: Ports,
    /// Not captured outbound: packets with this mark.
    pub mark: Option<Mark>,
    /// Not captured outbound: sockets of these users.
    pub uids: Vec<u32>,
    pub outbound: Filter,
    pub inbound: Filter,
    /// Whether the application sees the client's address: replies to addresses that adit borrows come back to it or, with
    /// [`Kind::Connect`], programs tell the application.
    pub preserve_source: bool,
    /// Capture nothing more after this time unless confirmed.
    pub rollback_after: Option<Duration>,
    /// Whose sockets [`Kind::Connect`] captures at, a folder of a cgroup file system; `None`: all that can be seen. Of the
    /// other kinds' nothing.
    pub cgroup: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            kind: Kind::Redirect,
            outbound_port: port(15001),
            inbound_port: port(15006),
            hbone_port: port(15008),
            own_ports: Ports::of(&[15000, 15020, 15021, 15053, 15080]),
            mark: Some(Mark::DEFAULT),
            uids: Vec::new(),
            outbound: Filter::default(),
            inbound: Filter::default(),
            preserve_source: true,
            rollback_after: None,
            cgroup: None,
        }
    }
}

const fn port(number: u16) -> NonZeroU16 {
    match NonZeroU16::new(number) {
        Some(port) => port,
        None => NonZeroU16::MIN,
    }
}

/// How the kernel hands a connection over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Destination NAT; the original destination comes from `SO_ORIGINAL_DST`.
    Redirect,
    /// The packet stays as it is; the original destination is the local address. Needs `IP_TRANSPARENT`.
    Tproxy,
    /// Outbound at the socket, before there is a packet; the original destination comes from `SO_ORIGINAL_DST`. Inbound
    /// like [`Kind::Tproxy`], but nothing needs to be tracked.
    Connect,
}

impl Options {
    /// Whether inbound connections are captured by sockets, where that is possible.
    pub(super) fn captures_inbound_at_sockets(&self) -> bool {
        self.kind == Kind::Connect && self.inbound.captures()
    }

    /// adit's own doors, which inbound connections reach themselves.
    pub(super) fn own_doors(&self) -> Ports {
        self.own_ports.union(&Ports::of(&[self.hbone_port.get()]))
    }

    /// The inbound filter with adit's own doors among what is excluded.
    pub(super) fn inbound_but_own_doors(&self) -> Filter {
        Filter { exclude_ports: self.inbound.exclude_ports.union(&self.own_doors()), ..self.inbound.clone() }
    }

    /// Whether programs tell the application of its clients.
    pub(super) fn tells_clients(&self) -> bool {
        self.kind == Kind::Connect && self.preserve_source && self.inbound.captures()
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Redirect => "redirect",
            Self::Tproxy => "tproxy",
            Self::Connect => "connect",
        })
    }
}

/// What one direction captures. Exclusion wins over inclusion.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// `None`: every port; an empty set: nothing in this direction.
    pub include_ports: Option<Ports>,
    pub exclude_ports: Ports,
    /// Outbound: destinations. Inbound: clients.
    pub exclude_cidrs: Vec<IpNet>,
}

impl Filter {
    /// Whether this direction captures anything.
    #[must_use]
    pub fn captures(&self) -> bool {
        self.include_ports.as_ref().is_none_or(|ports| !ports.is_empty())
    }
}

/// A set of ports as sorted ranges that neither overlap nor touch (nft refuses overlapping ones).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ports(Vec<RangeInclusive<u16>>);

impl Ports {
    #[must_use]
    pub fn of(ports: &[u16]) -> Self {
        Self::merged(ports.iter().map(|port| *port..=*port).collect())
    }

    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|range| range.contains(&port))
    }

    /// Every port that is in `self` or in `other`.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self::merged(self.0.iter().chain(&other.0).cloned().collect())
    }

    fn merged(mut ranges: Vec<RangeInclusive<u16>>) -> Self {
        ranges.sort_by_key(|range| (*range.start(), *range.end()));
        let mut merged: Vec<RangeInclusive<u16>> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match merged.last_mut() {
                Some(last) if u32::from(*range.start()) <= u32::from(*last.end()) + 1 => {
                    *last = *last.start()..=*last.end().max(range.end());
                }
                _ => merged.push(range),
            }
        }
        Self(merged)
    }
}

/// As nft writes it: `22, 8000-8100`.
impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            match (range.start(), range.end()) {
                (start, end) if start == end => write!(f, "{comma}{start}")?,
                (start, end) => write!(f, "{comma}{start}-{end}")?,
            }
        }
        Ok(())
    }
}

/// `80,443,8000-8100`, or `none`.
impl FromStr for Ports {
    type Err = InvalidPorts;

    fn from_str(text: &str) -> Result<Self, InvalidPorts> {
        if text == "none" {
            return Ok(Self::default());
        }
        let ranges: Result<Vec<_>, _> = text.split(',').map(|part| port_range(part.trim())).collect();
        Ok(Self::merged(ranges?))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a port from 1 to 65535, a range such as 8000-8100, or `none`")]
pub struct InvalidPorts(String);

fn port_range(text: &str) -> Result<RangeInclusive<u16>, InvalidPorts> {
    let invalid = || InvalidPorts(text.to_owned());
    let port = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port != 0).ok_or_else(invalid);
    let (start, end) = match text.split_once('-') {
        Some((start, end)) => (port(start)?, port(end)?),
        None => (port(text)?, port(text)?),
    };
    if start > end { Err(invalid()) } else { Ok(start..=end) }
}

/// The mark of every socket that adit opens (`packetMark`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark(NonZeroU32);

impl Mark {
    pub const DEFAULT: Self = match NonZeroU32::new(1337) {
        Some(mark) => Self(mark),
        None => Self(NonZeroU32::MIN),
    };

    /// Refuses a mark that the rules would take for one of their own two.
    pub fn new(mark: NonZeroU32) -> Result<Self, InvalidMark> {
        match mark.get() & MARK_MASK {
            CLIENT_MARK | TPROXY_MARK => Err(InvalidMark::Taken(mark.get())),
            _ => Ok(Self(mark)),
        }
    }

    #[must_use]
    pub const fn value(self) -> u32 {
        self.0.get()
    }

    /// Which bits identify it: the low twelve where they can, else all.
    #[must_use]
    pub const fn mask(self) -> u32 {
        if self.value() <= MARK_MASK { MARK_MASK } else { u32::MAX }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMark {
    #[error("`{0}` is not a mark from 1 to 4294967295 (or hexadecimal, 0x539)")]
    NotANumber(String),
    #[error("{0:#x} ends in 0x111 or 0x112, which the rules use themselves")]
    Taken(u32),
}

/// Decimal, or hexadecimal after `0x`.
impl FromStr for Mark {
    type Err = InvalidMark;

    fn from_str(text: &str) -> Result<Self, InvalidMark> {
        let number = match text.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16),
            None => text.parse(),
        };
        let mark = number.ok().and_then(NonZeroU32::new).ok_or_else(|| InvalidMark::NotANumber(text.to_owned()))?;
        Self::new(mark)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ports_are_sorted_and_merged() {
        for (given, want) in [
            ("80", "80"),
            ("443,80", "80, 443"),
            ("80,81,82", "80-82"),
            ("1-10, 5-20 ,22", "1-20, 22"),
            ("1-65535,80", "1-65535"),
            ("none", ""),
        ] {
            assert_eq!(given.parse::<Ports>().expect(given).to_string(), want);
        }
        for wrong in ["", "0", "65536", "9-8", "a", "80,", "-1", "80-", "1-2-3", "80;443"] {
            assert!(wrong.parse::<Ports>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn marks_do_not_clash() {
        for (given, value, mask) in [("1337", 1337, 0xfff), ("0x539", 1337, 0xfff), ("0x10000", 0x10000, u32::MAX)] {
            let mark: Mark = given.parse().expect(given);
            assert_eq!((mark.value(), mark.mask()), (value, mask));
        }
        for wrong in ["0", "273", "0x111", "0x112", "0xabc111", "-1", "4294967296", "off", ""] {
            assert!(wrong.parse::<Mark>().is_err(), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn a_union_holds_exactly_both(a in prop::collection::vec(any::<u16>(), 0..20),
                                      b in prop::collection::vec(any::<u16>(), 0..20), probe: u16) {
            let union = Ports::of(&a).union(&Ports::of(&b));
            for port in a.iter().chain(&b) {
                prop_assert!(union.contains(*port));
            }
            prop_assert_eq!(union.contains(probe), a.contains(&probe) || b.contains(&probe));
        }
    }
}
