//! What the pool decides, as pure functions: which tunnel takes the next stream, whether another is opened beside
//! those that have room, and how many are opened for those who wait.

/// Tunnels made at the same time for one key. More are made when these are done.
pub(super) const CONNECTS_AT_ONCE: u32 = 16;

/// One tunnel's load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Load {
    pub(super) streams: u32,
    /// How many there may be.
    pub(super) limit: u32,
}

/// How many streams a tunnel may have: as many as we and the peer allow, and until the peer has said so just one.
pub(super) fn limit(ours: u32, peer: Option<u32>, carried: u64) -> u32 {
    match peer {
        Some(peer) => ours.min(peer),
        None if carried == 0 => 1,
        None => 0,
    }
}

/// How many streams a tunnel takes before the next one is filled.
pub(super) fn share(max_streams: u32, max_per_peer: u32) -> u32 {
    max_streams.div_ceil(max_per_peer.max(1)).max(1)
}

/// Which tunnel takes the next stream: the first that has not had its share, so that the others can become idle; else
/// the one with the fewest streams.
pub(super) fn pick(loads: impl Iterator<Item = Load>, share: u32) -> Option<usize> {
    let mut least: Option<(usize, u32)> = None;
    for (index, load) in loads.enumerate().filter(|(_, load)| load.streams < load.limit) {
        if load.streams < share {
            return Some(index);
        }
        if least.is_none_or(|(_, streams)| load.streams < streams) {
            least = Some((index, load.streams));
        }
    }
    least.map(|(index, _)| index)
}

/// Whether another tunnel is opened although there is room: all have had their share and there are few of them.
/// `max_per_peer` bounds only this; whoever finds all tunnels full gets a new one.
pub(super) fn wants_company(
    mut loads: impl Iterator<Item = Load>,
    tunnels: u32,
    share: u32,
    max_per_peer: u32,
) -> bool {
    tunnels < max_per_peer && loads.all(|load| load.streams >= share)
}

/// How many more tunnels are to be opened for those who wait. `coming`: the streams that those under way will take;
/// `expected`: how many one will take.
pub(super) fn connects_needed(waiting: u32, coming: u32, expected: u32, under_way: u32) -> u32 {
    let wanted = waiting.saturating_sub(coming).div_ceil(expected.max(1));
    wanted.min(CONNECTS_AT_ONCE.saturating_sub(under_way))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loads(of: &[(u32, u32)]) -> impl Iterator<Item = Load> {
        of.iter().map(|&(streams, limit)| Load { streams, limit })
    }

    #[test]
    fn one_stream_goes_out_before_the_peer_has_said_how_many() {
        for (ours, peer, carried, want) in [
            (100, None, 0, 1),
            (100, None, 1, 0),
            (100, Some(1), 0, 1),
            (100, Some(0), 0, 0),
            (100, Some(u32::MAX), 7, 100),
            (1, Some(100), 7, 1),
        ] {
            assert_eq!(limit(ours, peer, carried), want, "{ours} {peer:?} {carried}");
        }
    }

    #[test]
    fn tunnels_are_filled_in_order_up_to_their_share_and_evenly_beyond() {
        for (share, of, want) in [
            (25, &[][..], None),
            (25, &[(0, 100), (0, 100)], Some(0)),
            (25, &[(24, 100), (0, 100)], Some(0)),
            (25, &[(25, 100), (3, 100)], Some(1)),
            (25, &[(40, 100), (30, 100), (30, 100)], Some(1)),
            (25, &[(100, 100), (99, 100)], Some(1)),
            (25, &[(100, 100), (100, 100)], None),
            // The peer allows less than the share.
            (25, &[(3, 3), (2, 3)], Some(1)),
            (25, &[(0, 0)], None),
            // The peer has lowered its limit below what there is.
            (25, &[(5, 1)], None),
        ] {
            assert_eq!(pick(loads(of), share), want, "{of:?}");
        }
    }

    #[test]
    fn another_tunnel_is_opened_beside_busy_ones_only() {
        for (of, tunnels, want) in [
            (&[(24, 100)][..], 1, false),
            (&[(25, 100)], 1, true),
            (&[(25, 100), (3, 100)], 2, false),
            (&[(25, 100), (25, 100), (25, 100), (25, 100)], 4, false),
            // The others are on their way.
            (&[(25, 100)], 4, false),
        ] {
            assert_eq!(wants_company(loads(of), tunnels, share(100, 4), 4), want, "{of:?}");
        }
        assert!(!wants_company(loads(&[(100, 100)]), 1, share(100, 1), 1));
        assert_eq!((share(100, 3), share(1, 4), share(3, 4)), (34, 1, 1));
    }

    #[test]
    fn never_one_tunnel_for_each_who_waits() {
        for (waiting, coming, expected, under_way, want) in [
            (0, 0, 100, 0, 0),
            (1, 0, 100, 0, 1),
            (100, 100, 100, 1, 0),
            (101, 100, 100, 1, 1),
            (1000, 0, 100, 0, 10),
            (1000, 300, 100, 3, 7),
            (3, 0, 1, 0, 3),
            (1000, 0, 1, 0, CONNECTS_AT_ONCE),
            (1000, CONNECTS_AT_ONCE, 1, CONNECTS_AT_ONCE, 0),
            (5, 0, 0, 0, 5),
        ] {
            assert_eq!(connects_needed(waiting, coming, expected, under_way), want, "{waiting} {coming} {expected}");
        }
    }
}
