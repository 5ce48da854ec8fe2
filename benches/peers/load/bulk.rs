//! Bulk: as many bytes as will go, one way, over one or more connections.
//!
//! The sender copies from a buffer that stays in the cache; the sink lets the kernel discard what came. At the end the sender half-closes, and the sink must
//! then have exactly the bytes that were sent and a clean end. Where a server may not end first, its client ends the connection once it has all bytes.

use anyhow::{Context, Result, bail};
use rustix::event::epoll::EventFlags;
use rustix::fd::OwnedFd;

use super::super::shape::Direction;
use super::{HalfClose, Load, Measured, Pair, Window, socket};

/// Bytes offered per send: large enough to make system calls rare, small enough to stay in the second-level cache.
pub(super) const OFFER: usize = 256 * 1024;
/// Bytes discarded per receive, at most.
pub(super) const SWALLOW: usize = 4 * 1024 * 1024;

pub(super) struct Flow {
    pub(super) sender: OwnedFd,
    pub(super) sink: OwnedFd,
    sent: u64,
    received: u64,
    pub(super) ended: bool,
}

pub(super) fn run(load: &mut Load, direction: Direction, connections: u32, window: &mut Window) -> Result<Measured> {
    let mut flows = open(load, direction, connections)?;
    let sink_ends = direction == Direction::Down && load.half_close == HalfClose::ClientOnly;
    let received = carry(load, &mut flows, sink_ends, window)?;
    let sent = check(&flows)?;
    if sink_ends {
        for flow in flows {
            Pair { client: flow.sink, server: flow.sender }.close()?;
        }
    }
    window.measured(sent, received)
}

/// Opens the flows and watches their ends: with twice its number as token the sender, with the next one the sink.
pub(super) fn open(load: &mut Load, direction: Direction, connections: u32) -> Result<Vec<Flow>> {
    let mut flows = Vec::new();
    for _ in 0..connections {
        let pair = load.open()?;
        let (sender, sink) = match direction {
            Direction::Up => (pair.client, pair.server),
            Direction::Down => (pair.server, pair.client),
        };
        flows.push(Flow { sender, sink, sent: 0, received: 0, ended: false });
    }
    for (token, flow) in (0..).step_by(2).zip(&flows) {
        load.bell.add(&flow.sender, token, EventFlags::OUT)?;
        load.bell.add(&flow.sink, token + 1, EventFlags::IN)?;
    }
    Ok(flows)
}

/// That each sink has exactly what was sent to it. Returns how much all sent.
pub(super) fn check(flows: &[Flow]) -> Result<u64> {
    if let Some(flow) = flows.iter().find(|flow| flow.sent != flow.received) {
        bail!("sent {} bytes on a connection, received {}", flow.sent, flow.received);
    }
    Ok(flows.iter().map(|flow| flow.sent).sum())
}

/// Carries until the window closes and everything under way has arrived. Returns the bytes received.
fn carry(load: &mut Load, flows: &mut [Flow], sink_ends: bool, window: &mut Window) -> Result<u64> {
    let (offer, mut scrap) = (vec![0x5a; OFFER], vec![0; SWALLOW]);
    let mut events = Vec::with_capacity(64);
    let (mut received, mut sending, mut open) = (0, true, flows.len());
    while open > 0 {
        load.bell.wait(&mut events)?;
        for event in events.drain(..) {
            let token = event.data.u64();
            let flow =
                usize::try_from(token / 2).ok().and_then(|index| flows.get_mut(index)).context("no such flow")?;
            if token % 2 == 0 {
                flow.push(&offer, sending)?;
            } else if !flow.ended {
                received += flow.pull(&mut scrap, sending)?;
                flow.ended |= sink_ends && !sending && flow.received == flow.sent;
                if flow.ended {
                    load.bell.remove(&flow.sink)?;
                    open -= 1;
                }
            }
        }
        if sending && !window.turn(load, received)? {
            sending = false;
            for flow in &mut *flows {
                load.bell.remove(&flow.sender)?;
                if !sink_ends {
                    socket::finish(&flow.sender)?;
                } else if flow.received == flow.sent {
                    flow.ended = true;
                    load.bell.remove(&flow.sink)?;
                    open -= 1;
                }
            }
        }
    }
    Ok(received)
}

impl Flow {
    pub(super) fn push(&mut self, offer: &[u8], sending: bool) -> Result<()> {
        if sending {
            self.sent += socket::send(&self.sender, offer).context("sending")? as u64;
        }
        Ok(())
    }

    pub(super) fn pull(&mut self, scrap: &mut [u8], sending: bool) -> Result<u64> {
        let length = match socket::discard(&self.sink, scrap).context("receiving")? {
            None => 0,
            Some(0) if sending => bail!("the connection ended by itself after {} bytes", self.received),
            Some(0) => {
                self.ended = true;
                0
            }
            Some(length) => length as u64,
        };
        self.received += length;
        Ok(length)
    }
}
