//! Non-blocking TCP sockets and the epoll that tells of them; thin over rustix.
//!
//! Invariant: every function that waits gives up after `STALL`.

use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, ipproto, sockopt};

use super::{STALL, blocked};

/// What a socket is waited for.
pub(super) struct Wake;

impl Wake {
    pub(super) const READ: PollFlags = PollFlags::IN;
    pub(super) const WRITE: PollFlags = PollFlags::OUT;
}

/// An epoll, level-triggered: it rings for every socket that still has something.
///
/// It is asked again and again and never sleeps. A sleeping load would have to be woken by the proxy, at the proxy's expense: in a virtual machine that costs
/// more than all else that a proxy does for a small request, and no proxy whose clients are on other hosts pays it.
pub(super) struct Bell {
    epoll: OwnedFd,
    idle: Duration,
}

impl Bell {
    pub(super) fn new() -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).context("cannot create an epoll")?;
        Ok(Self { epoll, idle: Duration::ZERO })
    }

    /// Time in which the load had nothing to do, so far.
    pub(super) fn idle(&self) -> Duration {
        self.idle
    }

    pub(super) fn add(&self, socket: &OwnedFd, token: u64, events: EventFlags) -> Result<()> {
        epoll::add(&self.epoll, socket, EventData::new_u64(token), events).context("cannot watch a socket")
    }

    pub(super) fn change(&self, socket: &OwnedFd, token: u64, events: EventFlags) -> Result<()> {
        epoll::modify(&self.epoll, socket, EventData::new_u64(token), events).context("cannot watch a socket")
    }

    pub(super) fn remove(&self, socket: &OwnedFd) -> Result<()> {
        epoll::delete(&self.epoll, socket).context("cannot stop watching a socket")
    }

    /// Waits for the next events, `STALL` at most.
    pub(super) fn wait(&mut self, events: &mut Vec<Event>) -> Result<()> {
        events.clear();
        let mut began = None;
        while !self.rings(events)? {
            let waited = began.get_or_insert_with(Instant::now).elapsed();
            if waited > STALL {
                bail!("nothing moved for {STALL:?}");
            }
        }
        self.idle += began.map_or(Duration::ZERO, |began| began.elapsed());
        Ok(())
    }

    /// The events that are there now, perhaps none.
    pub(super) fn look(&mut self, events: &mut Vec<Event>) -> Result<()> {
        events.clear();
        let began = Instant::now();
        if !self.rings(events)? {
            self.idle += began.elapsed();
        }
        Ok(())
    }

    fn rings(&self, events: &mut Vec<Event>) -> Result<bool> {
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(events), Some(&at_once)) {
            Ok(count) => Ok(count > 0),
            Err(Errno::INTR) => Ok(false),
            Err(errno) => Err(errno).context("cannot wait"),
        }
    }
}

/// A listener with the longest backlog that the kernel allows. What it accepts inherits NODELAY. Returns where it listens, too: port 0 becomes one.
pub(super) fn listen(address: SocketAddrV4) -> Result<(OwnedFd, SocketAddrV4)> {
    let socket = stream()?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, 65_535)?;
    let address = SocketAddrV4::try_from(rustix::net::getsockname(&socket)?).context("not an IPv4 address")?;
    Ok((socket, address))
}

/// A connection that is perhaps still under way.
pub(super) fn connect(target: SocketAddrV4) -> rustix::io::Result<OwnedFd> {
    let socket = stream()?;
    match rustix::net::connect(&socket, &target) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(errno) => Err(errno),
    }
}

/// The next connection of the listener's queue.
pub(super) fn accept(listener: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    rustix::net::accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)
}

/// The error that the socket keeps, if any.
pub(super) fn error(socket: &OwnedFd) -> rustix::io::Result<()> {
    sockopt::socket_error(socket)?
}

/// Switches Nagle's algorithm off.
pub(super) fn undelay(socket: &OwnedFd) -> Result<()> {
    sockopt::set_tcp_nodelay(socket, true).context("cannot set NODELAY")
}

/// Ends our direction.
pub(super) fn finish(socket: &OwnedFd) -> Result<()> {
    rustix::net::shutdown(socket, Shutdown::Write).context("cannot half-close")
}

/// Sends what goes at once; 0 when nothing does.
pub(super) fn send(socket: &OwnedFd, bytes: &[u8]) -> rustix::io::Result<usize> {
    match rustix::net::send(socket, bytes, SendFlags::NOSIGNAL) {
        Err(errno) if blocked(errno) => Ok(0),
        outcome => outcome,
    }
}

/// Receives what is there: `None` when nothing is, `Some(0)` at the end.
pub(super) fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> rustix::io::Result<Option<usize>> {
    received(rustix::net::recv(socket, buffer, RecvFlags::empty()))
}

/// Like `receive`, but the kernel drops the bytes instead of copying them: they are counted, not seen. The cheapest sink there is.
pub(super) fn discard(socket: &OwnedFd, scrap: &mut [u8]) -> rustix::io::Result<Option<usize>> {
    received(rustix::net::recv(socket, scrap, RecvFlags::TRUNC))
}

fn received(outcome: rustix::io::Result<(usize, usize)>) -> rustix::io::Result<Option<usize>> {
    match outcome {
        Ok((_, length)) => Ok(Some(length)),
        Err(errno) if blocked(errno) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Waits until the socket can be read or written.
pub(super) fn wait(socket: &OwnedFd, wake: PollFlags) -> Result<()> {
    let deadline = Instant::now() + STALL;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).context("deadline")?;
        match poll(&mut [PollFd::from_borrowed_fd(socket.as_fd(), wake)], Some(&left)) {
            Ok(0) => bail!("nothing happened for {STALL:?}"),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).context("cannot wait"),
        }
    }
}

/// Sends all of a few bytes.
pub(super) fn send_all(socket: &OwnedFd, mut bytes: &[u8]) -> Result<()> {
    loop {
        let sent = send(socket, bytes).context("cannot send")?;
        bytes = bytes.get(sent..).unwrap_or_default();
        if bytes.is_empty() {
            return Ok(());
        }
        wait(socket, Wake::WRITE)?;
    }
}

/// Receives exactly as many bytes as the buffer holds.
pub(super) fn receive_exactly(socket: &OwnedFd, mut buffer: &mut [u8]) -> Result<()> {
    while !buffer.is_empty() {
        wait(socket, Wake::READ)?;
        match receive(socket, buffer).context("cannot receive")? {
            None => {}
            Some(0) => bail!("the connection ended {} bytes early", buffer.len()),
            Some(length) => buffer = buffer.get_mut(length..).unwrap_or_default(),
        }
    }
    Ok(())
}

/// Waits for a clean end with nothing before it.
pub(super) fn expect_end(socket: &OwnedFd) -> Result<()> {
    loop {
        wait(socket, Wake::READ)?;
        match receive(socket, &mut [0; 64]).context("cannot receive")? {
            None => {}
            Some(0) => return Ok(()),
            Some(length) => bail!("expected the end, got {length} bytes"),
        }
    }
}

fn stream() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, Some(ipproto::TCP))
}
