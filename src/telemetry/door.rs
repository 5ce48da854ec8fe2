//! The words for where a connection came in: used alike as metric labels, as log fields and by the limits.
//! A closed set, so that counters are arrays and no label is ever built from text.

use serde::{Deserialize, Serialize};

/// Through which listener a connection came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Door {
    Outbound,
    Inbound,
    Socks5,
    /// Tunnels, and each stream inside one.
    Hbone,
}

impl Door {
    pub const ALL: [Self; 4] = [Self::Outbound, Self::Inbound, Self::Socks5, Self::Hbone];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
            Self::Socks5 => "socks5",
            Self::Hbone => "hbone",
        }
    }

    #[must_use]
    pub const fn direction(self) -> Direction {
        match self {
            Self::Outbound | Self::Socks5 => Direction::Outbound,
            Self::Inbound | Self::Hbone => Direction::Inbound,
        }
    }

    #[must_use]
    pub const fn reporter(self) -> Reporter {
        match self.direction() {
            Direction::Outbound => Reporter::Source,
            Direction::Inbound => Reporter::Destination,
        }
    }

    /// The limit that counts this door's connections beside [`Scope::Total`].
    #[must_use]
    pub const fn scope(self) -> Scope {
        match self {
            Self::Outbound => Scope::Outbound,
            Self::Inbound => Scope::Inbound,
            Self::Socks5 => Scope::Socks5,
            Self::Hbone => Scope::Hbone,
        }
    }
}

/// Seen from the workload that adit stands beside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    Outbound,
    Inbound,
}

impl Direction {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

/// Which end of the connection is telling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reporter {
    Source,
    Destination,
}

impl Reporter {
    pub const ALL: [Self; 2] = [Self::Source, Self::Destination];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

/// Which limit on connections: over all, or of one door.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    Total,
    Outbound,
    Inbound,
    Socks5,
    Hbone,
}

impl Scope {
    pub const ALL: [Self; 5] = [Self::Total, Self::Outbound, Self::Inbound, Self::Socks5, Self::Hbone];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Total => "total",
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
            Self::Socks5 => "socks5",
            Self::Hbone => "hbone",
        }
    }

    /// Whether a connection of `door` counts here.
    #[must_use]
    pub fn covers(self, door: Door) -> bool {
        self == Self::Total || self == door.scope()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_follow_the_order_of_all() {
        for (index, door) in Door::ALL.iter().enumerate() {
            assert_eq!(*door as usize, index);
        }
        for (index, scope) in Scope::ALL.iter().enumerate() {
            assert_eq!(*scope as usize, index);
        }
    }

    #[test]
    fn each_door_counts_in_its_own_scope_and_in_the_total() {
        for door in Door::ALL {
            let scopes: Vec<_> = Scope::ALL.into_iter().filter(|scope| scope.covers(door)).collect();
            assert_eq!(scopes, [Scope::Total, door.scope()]);
        }
    }
}
