//! The load generator and the echo server: one thread, one epoll, both ends of every connection.
//!
//! Comes in: where the server listens, where clients connect (the same for a direct run, else the peer's door), a shape. Goes out: `Measured`.
//!
//! Invariants: what was sent is what was received, per connection, or the shape fails; every wait has a deadline. Having both ends in one thread makes the
//! check exact and saves the context switches that would otherwise be the load's largest cost.

mod beside;
mod bulk;
mod burst;
mod idle;
mod request;
mod settle;
mod short;
mod socket;
mod verify;
mod window;

use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::account::{Spent, Usage};
use super::shape::Shape;
use socket::{Bell, Wake};
use window::Window;

/// When nothing at all happens for so long, the peer has lost something.
const STALL: Duration = Duration::from_secs(5);

/// Which ends of a connection may end their half first and go on reading; some peers lose what comes after the server's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HalfClose {
    Both,
    ClientOnly,
}

/// Where the figures about the peer come from; the load itself knows sockets only.
pub(crate) struct Books {
    pub(crate) usage: fn() -> Result<Usage>,
    pub(crate) resident: fn() -> Result<u64>,
    /// Sockets that are waited for: by process, then by worker.
    pub(crate) sockets: fn() -> Result<Vec<Vec<u64>>>,
}

/// How long a shape runs.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Timing {
    pub(crate) warm_up: Duration,
    pub(crate) length: Duration,
    /// The longest wait for memory to settle after a burst.
    pub(crate) settle: Duration,
}

/// What one shape measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) wall_ns: u64,
    /// Bytes, requests or connections completed in that time.
    pub(crate) units: u64,
    pub(crate) spent: Spent,
    /// Time in which the load had nothing to do. Little of it: the load was the limit, not the peer.
    pub(crate) load_idle_ns: u64,
    /// p50, p99, p99.9.
    pub(crate) latency_ns: Option<[u32; 3]>,
    pub(crate) memory: Option<Memory>,
    /// Sockets of the peer while all connections are open: by process, then by worker. Of the shape `spread` only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) sockets: Vec<Vec<u64>>,
    /// All bytes of the shape's life, warm-up and end included, both directions: what the load sent, and what it got. Equal.
    pub(crate) sent: u64,
    pub(crate) received: u64,
}

/// Resident bytes of the peer: without connections, and with idle ones or after a burst.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Memory {
    pub(crate) before: u64,
    pub(crate) after: u64,
}

/// The load generator with its echo server.
pub(crate) struct Load {
    listener: OwnedFd,
    target: SocketAddrV4,
    bell: Bell,
    books: Books,
    /// What the peer can carry.
    pub(crate) half_close: HalfClose,
    next_hello: u64,
}

/// Both ends of one connection.
struct Pair {
    client: OwnedFd,
    server: OwnedFd,
}

impl Load {
    /// Binds the echo server to `server`. Given where it listens, `target` says where clients connect.
    pub(crate) fn bind(
        server: SocketAddrV4,
        target: impl FnOnce(SocketAddrV4) -> SocketAddrV4,
        books: Books,
    ) -> Result<Self> {
        let (listener, server) = socket::listen(server).with_context(|| format!("cannot listen on {server}"))?;
        let (target, bell) = (target(server), Bell::new()?);
        Ok(Self { listener, target, bell, books, half_close: HalfClose::Both, next_hello: 0x6164_6974_0000_0000 })
    }

    /// Proves that the peer carries bytes unchanged, both ways at once, and half-closes; and warms it up.
    pub(crate) fn verify(&mut self) -> Result<()> {
        let pair = self.open_among_strays()?;
        verify::run(pair, self.half_close).context("content check")?;
        let pairs = (0..64).map(|_| self.open()).collect::<Result<Vec<_>>>()?;
        pairs.into_iter().try_for_each(Pair::close)
    }

    /// Runs one shape.
    pub(crate) fn run(&mut self, shape: Shape, timing: Timing) -> Result<Measured> {
        // Its warm-up begins now, with the opening of the connections; the shapes that are not timed leave it alone.
        let mut window = Window::new(timing, self.books.usage);
        // Nothing of an earlier shape can ring.
        self.bell = Bell::new()?;
        match shape {
            Shape::Idle { connections } => idle::run(self, connections),
            Shape::Burst { connections } => burst::run(self, connections, timing),
            Shape::Spread { connections } => idle::spread(self, connections),
            Shape::Request { size, connections } => request::run(self, &vec![size; connections], &mut window),
            Shape::Beside { bulk } => beside::run(self, bulk, &mut window),
            Shape::Short { parallel } => short::run(self, parallel, &mut window),
            Shape::Bulk { direction, connections } => bulk::run(self, direction, connections, &mut window),
        }
    }

    /// Connects through the peer and accepts at the other end.
    fn open(&mut self) -> Result<Pair> {
        let (client, hello) = self.hail()?;
        let server = self.accept()?;
        if let Some(got) = first_bytes(&server)? {
            return if got == hello {
                Ok(Pair { client, server })
            } else {
                bail!("the server expected {hello:?}, got {got:?}")
            };
        }
        bail!("the server got a connection that ended before its first byte")
    }

    /// Like `open`, but lets connections pass that end before their first byte: the peer made them when its door was tried.
    fn open_among_strays(&mut self) -> Result<Pair> {
        let (client, hello) = self.hail()?;
        loop {
            let server = self.accept()?;
            match first_bytes(&server)? {
                None => {}
                Some(got) if got == hello => return Ok(Pair { client, server }),
                Some(got) => bail!("the server expected {hello:?}, got {got:?}"),
            }
        }
    }

    /// Connects and says hello with a number of its own, by which the server's end will be known to be of the same connection.
    fn hail(&mut self) -> Result<(OwnedFd, [u8; 8])> {
        let client = socket::connect(self.target).with_context(|| format!("cannot connect to {}", self.target))?;
        socket::wait(&client, Wake::WRITE).context("connecting")?;
        socket::error(&client).with_context(|| format!("cannot connect to {}", self.target))?;
        socket::undelay(&client)?;
        self.next_hello += 1;
        let hello = self.next_hello.to_le_bytes();
        socket::send_all(&client, &hello).context("client's first bytes")?;
        Ok((client, hello))
    }

    fn accept(&self) -> Result<OwnedFd> {
        socket::wait(&self.listener, Wake::READ).context("the server got no connection")?;
        socket::accept(&self.listener).context("cannot accept")
    }
}

impl Pair {
    /// The server says one byte, the client must hear that one.
    fn answer(&self, byte: u8) -> Result<()> {
        socket::send_all(&self.server, &[byte]).context("server's byte")?;
        let mut got = [0];
        socket::receive_exactly(&self.client, &mut got).context("client waits for the server's byte")?;
        if got != [byte] {
            bail!("client expected byte {byte}, got {}", got[0]);
        }
        Ok(())
    }

    /// Closes from the client's end, and sees the end arrive at the server and come back.
    fn close(self) -> Result<()> {
        socket::finish(&self.client)?;
        socket::expect_end(&self.server).context("server waits for the client's end")?;
        drop(self.server);
        socket::expect_end(&self.client).context("client waits for the server's end")
    }
}

/// What the client said first; none when the connection ended, or was reset, before it.
fn first_bytes(server: &OwnedFd) -> Result<Option<[u8; 8]>> {
    let mut got = [0; 8];
    socket::wait(server, Wake::READ).context("the server got no first bytes")?;
    match socket::receive(server, &mut got[..1]) {
        Ok(Some(0)) | Err(Errno::CONNRESET) => return Ok(None),
        outcome => outcome.context("cannot receive")?,
    };
    socket::receive_exactly(server, &mut got[1..]).context("the server's first bytes")?;
    Ok(Some(got))
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// True for "try again later".
fn blocked(errno: Errno) -> bool {
    errno == Errno::AGAIN || errno == Errno::INTR
}
