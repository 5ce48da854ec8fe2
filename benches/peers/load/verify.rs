//! The content check: pseudo-random bytes both ways at once over one connection, compared byte for byte, each direction ended by a half-close.
//!
//! Bulk runs only count; this is what shows that a peer delivers the bytes themselves, in order.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};

use super::{HalfClose, Pair, STALL, socket};

/// Bytes each way. The two differ, so that one direction lives on after the other has ended.
const UP: usize = 4 * 1024 * 1024 + 1;
const DOWN: usize = 3 * 1024 * 1024 + 7;

struct End {
    socket: OwnedFd,
    outgoing: Vec<u8>,
    sent: usize,
    finished: bool,
    /// Does not end its half before the other end has.
    is_last: bool,
    expected: Vec<u8>,
    received: usize,
    ended: bool,
}

pub(super) fn run(pair: Pair, half_close: HalfClose) -> Result<()> {
    let (up, down) = (noise(UP, 1), noise(DOWN, 2));
    let mut client = End::new(pair.client, up.clone(), down.clone(), false);
    let mut server = End::new(pair.server, down, up, half_close == HalfClose::ClientOnly);
    let mut moved = Instant::now();
    while !(client.done() && server.done()) {
        let look = Timespec::try_from(STALL).context("deadline")?;
        let mut waits = [
            PollFd::from_borrowed_fd(client.socket.as_fd(), client.wants()),
            PollFd::from_borrowed_fd(server.socket.as_fd(), server.wants()),
        ];
        poll(&mut waits, Some(&look)).context("cannot wait")?;
        let turned = client.turn().context("client")? | server.turn().context("server")?;
        if turned {
            moved = Instant::now();
        } else if moved.elapsed() >= STALL {
            bail!(
                "nothing moved for {STALL:?}: up {} of {UP} bytes, down {} of {DOWN}",
                server.received,
                client.received
            );
        }
    }
    Ok(())
}

impl End {
    fn new(socket: OwnedFd, outgoing: Vec<u8>, expected: Vec<u8>, is_last: bool) -> Self {
        Self { socket, outgoing, sent: 0, finished: false, is_last, expected, received: 0, ended: false }
    }

    fn done(&self) -> bool {
        self.finished && self.ended
    }

    fn wants(&self) -> PollFlags {
        let reading = if self.ended { PollFlags::empty() } else { PollFlags::IN };
        let waits = self.sent == self.outgoing.len() && !self.may_finish();
        let writing = if self.finished || waits { PollFlags::empty() } else { PollFlags::OUT };
        reading | writing
    }

    fn may_finish(&self) -> bool {
        self.ended || !self.is_last
    }

    /// Sends and receives what goes. True when anything did.
    fn turn(&mut self) -> Result<bool> {
        let mut moved = false;
        if !self.finished {
            let rest = self.outgoing.get(self.sent..).unwrap_or_default();
            let sent = socket::send(&self.socket, rest).context("cannot send")?;
            self.sent += sent;
            moved |= sent > 0;
            if self.sent == self.outgoing.len() && self.may_finish() {
                socket::finish(&self.socket)?;
                self.finished = true;
            }
        }
        let mut buffer = [0; 16 * 1024];
        match socket::receive(&self.socket, &mut buffer).context("cannot receive")? {
            None => {}
            Some(0) if self.received < self.expected.len() => {
                bail!("the end came after {} of {} bytes", self.received, self.expected.len())
            }
            Some(0) => {
                moved |= !self.ended;
                self.ended = true;
            }
            Some(length) => {
                self.compare(buffer.get(..length).unwrap_or_default())?;
                moved = true;
            }
        }
        Ok(moved)
    }

    fn compare(&mut self, bytes: &[u8]) -> Result<()> {
        let until = self.received + bytes.len();
        if self.expected.get(self.received..until) != Some(bytes) {
            bail!("bytes {} to {until} differ from what was sent, or are too many", self.received);
        }
        self.received = until;
        Ok(())
    }
}

/// Bytes that repeat nowhere near: xorshift64.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
