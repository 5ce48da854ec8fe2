//! One direction of a relay: reads from one socket, writes to the other, by copying or by `splice`.
//!
//! Starts by copying through a lent buffer. When large reads follow each other it goes over to `splice` through a lent
//! pipe; when little comes for a while it goes back. A pipe is filled only when it is empty, so that an
//! EAGAIN while filling can only mean an empty socket, and one while emptying only a full one. `SPLICE_F_MORE` is not
//! used: whether more will come is not known, and a wrong guess delays the last bytes.

use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::SendAncillaryBuffer;
use rustix::pipe::{SpliceFlags, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::net::buffers::{self, Buffer};
use crate::net::turns::later;
use crate::proxy::pool::{Pipe, Pool};
use crate::proxy::registry::{Direction, Entry};

/// Bytes moved in one poll before other connections of the worker get their turn. Also what makes bulk cheap with several
/// of them: a socket that is left alone meanwhile is full when its turn comes again.
pub(super) const BYTES_PER_POLL: usize = 1024 * 1024;
/// A read of so much is large. Messages of 16 KiB cost a sixth less when they are spliced; between them and this there is
/// room for a read that comes in two parts. Smaller messages were not tried.
const LARGE_READ_BYTES: usize = 12 * 1024;
/// Large reads in a row after which bytes are spliced.
const LARGE_READS: u8 = 2;
/// A fill below this is small.
const SMALL_FILL_BYTES: usize = 8 * 1024;
/// Small fills in a row after which bytes are copied.
const SMALL_FILLS: u8 = 8;

/// Which of the two sockets failed.
#[derive(Debug)]
pub(super) enum HalfError {
    Read(io::Error),
    Write(io::Error),
}

#[derive(Debug)]
pub(super) struct Half<'a> {
    direction: Direction,
    pub(super) from: &'a TcpStream,
    pub(super) to: &'a TcpStream,
    held: Held,
    mode: Mode,
    end: End,
}

/// Bytes that were read and not yet written.
#[derive(Debug)]
enum Held {
    Nothing,
    Copied { buffer: Buffer, start: usize, end: usize },
    Spliced(Pipe),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Counts large reads in a row.
    Copy { large: u8 },
    /// Counts small fills in a row.
    Splice { small: u8 },
    /// Zero copy is off, or this kernel refused it for these sockets.
    CopyOnly,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Open,
    /// The reading socket has failed: an EOF read from now on is a FIN only if `fin`.
    Broken {
        fin: bool,
    },
    /// All is written; the FIN is not sent yet.
    Ended,
    FinSent,
    /// Cut short: no FIN may follow.
    Truncated,
}

impl<'a> Half<'a> {
    pub(super) fn new(direction: Direction, from: &'a TcpStream, to: &'a TcpStream, zero_copy: bool) -> Self {
        let mode = if zero_copy { Mode::Copy { large: 0 } } else { Mode::CopyOnly };
        Self { direction, from, to, held: Held::Nothing, mode, end: End::Open }
    }

    /// Whether everything up to the FIN has been written.
    pub(super) fn ended(&self) -> bool {
        matches!(self.end, End::Ended | End::FinSent)
    }

    /// The reading socket has failed; `fin`: its peer had sent a FIN before.
    pub(super) fn broken(&mut self, fin: bool) {
        if self.end == End::Open {
            self.end = End::Broken { fin };
        }
    }

    /// Ends the writing side, once.
    pub(super) fn send_fin(&mut self, entry: &Entry) -> io::Result<()> {
        if self.end != End::Ended {
            return Ok(());
        }
        self.end = End::FinSent;
        entry.unsettle(self.direction, Instant::now());
        match rustix::net::shutdown(self.to, rustix::net::Shutdown::Write) {
            // The peer has closed already: its reset or FIN is reported where it is read.
            Ok(()) | Err(Errno::NOTCONN) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Moves what can be moved. Ready when the half has ended or one of the sockets has failed.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, entry: &Entry, pool: &Rc<Pool>) -> Poll<Result<(), HalfError>> {
        let mut read = 0;
        loop {
            if let Err(error) = ready!(self.poll_write(cx, entry)) {
                return Poll::Ready(Err(HalfError::Write(error)));
            }
            if read >= BYTES_PER_POLL {
                // Whoever is next takes the same one, while it is warm.
                self.held = Held::Nothing;
                later(cx);
                return Poll::Pending;
            }
            match self.read(pool) {
                Ok(0) => return Poll::Ready(self.eof()),
                Ok(count) => read += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // Given back before waiting.
                    self.held = Held::Nothing;
                    match ready!(self.from.poll_read_ready(cx)) {
                        Ok(()) => {}
                        Err(error) => return Poll::Ready(Err(HalfError::Read(error))),
                    }
                }
                Err(error) => return Poll::Ready(Err(HalfError::Read(error))),
            }
        }
    }

    fn eof(&mut self) -> Result<(), HalfError> {
        self.held = Held::Nothing;
        if self.end == (End::Broken { fin: false }) {
            self.end = End::Truncated;
            return Err(HalfError::Read(Errno::CONNRESET.into()));
        }
        self.end = End::Ended;
        Ok(())
    }

    /// Reads once; what was read is in `held`, which was empty.
    fn read(&mut self, pool: &Rc<Pool>) -> io::Result<usize> {
        if matches!(self.mode, Mode::Splice { .. }) {
            match self.fill(pool) {
                Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => self.mode = Mode::CopyOnly,
                result => return result,
            }
        }
        let mut buffer = match std::mem::replace(&mut self.held, Held::Nothing) {
            Held::Copied { buffer, .. } => buffer,
            Held::Nothing | Held::Spliced(_) => buffers::lend(),
        };
        let result = receive(self.from, &mut buffer);
        if let Ok(count) = result {
            self.saw_read(count >= LARGE_READ_BYTES);
            self.held = Held::Copied { buffer, start: 0, end: count };
        }
        result
    }

    fn saw_read(&mut self, is_large: bool) {
        if let Mode::Copy { large } = self.mode {
            self.mode = match (is_large, large + 1 >= LARGE_READS) {
                (false, _) => Mode::Copy { large: 0 },
                (true, false) => Mode::Copy { large: large + 1 },
                (true, true) => Mode::Splice { small: 0 },
            };
        }
    }

    /// Splices once from the socket into an empty pipe.
    fn fill(&mut self, pool: &Rc<Pool>) -> io::Result<usize> {
        let mut pipe = match std::mem::replace(&mut self.held, Held::Nothing) {
            Held::Spliced(pipe) => pipe,
            Held::Nothing | Held::Copied { .. } => {
                let Some(pipe) = pool.pipe() else {
                    self.mode = Mode::Copy { large: 0 };
                    return self.read(pool);
                };
                pipe
            }
        };
        let size = pipe.size();
        let from = self.from;
        let count = from.try_io(Interest::READABLE, || {
            pipe.fill(|write| Ok(splice(from, None, write, None, size, SpliceFlags::NONBLOCK | SpliceFlags::MOVE)?))
        })?;
        if let Mode::Splice { small } = self.mode {
            self.mode = match (count < SMALL_FILL_BYTES, small + 1 >= SMALL_FILLS) {
                (false, _) => Mode::Splice { small: 0 },
                (true, false) => Mode::Splice { small: small + 1 },
                (true, true) => Mode::Copy { large: 0 },
            };
        }
        self.held = Held::Spliced(pipe);
        Ok(count)
    }

    /// Writes all that is held. A buffer or pipe that has become empty is kept for the next read of the same poll.
    fn poll_write(&mut self, cx: &mut Context<'_>, entry: &Entry) -> Poll<io::Result<()>> {
        loop {
            let result = match &mut self.held {
                Held::Copied { buffer, start, end } if *start < *end => {
                    let bytes = buffer.get(*start..*end).unwrap_or_default();
                    send(self.to, bytes).inspect(|count| *start += count)
                }
                Held::Spliced(pipe) if pipe.held() > 0 => {
                    let to = self.to;
                    to.try_io(Interest::WRITABLE, || {
                        pipe.empty(|read, held| {
                            Ok(splice(read, None, to, None, held, SpliceFlags::NONBLOCK | SpliceFlags::MOVE)?)
                        })
                    })
                }
                Held::Nothing | Held::Copied { .. } | Held::Spliced(_) => return Poll::Ready(Ok(())),
            };
            match result {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(count) => entry.moved(self.direction, count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    entry.blocked(self.direction);
                    ready!(self.to.poll_write_ready(cx))?;
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

/// Reads what is there. A read that did not fill the buffer has emptied the socket, so its readiness is cleared at once:
/// that spares the read that would only say EAGAIN. (Bytes that arrive in between raise a new event.)
pub(super) fn receive(from: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    let mut short = None;
    let result = from.try_io(Interest::READABLE, || {
        let size = buffer.len();
        let (count, _) = rustix::net::recv(from, &mut *buffer, rustix::net::RecvFlags::empty())?;
        if 0 < count && count < size {
            short = Some(count);
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(count)
    });
    short.map_or(result, Ok)
}

/// Writes what fits of several pieces; else as [`send`].
pub(super) fn send_vectored(to: &TcpStream, pieces: &[io::IoSlice<'_>]) -> io::Result<usize> {
    let mut short = None;
    let result = to.try_io(Interest::WRITABLE, || {
        let mut nothing = SendAncillaryBuffer::default();
        let count = rustix::net::sendmsg(to, pieces, &mut nothing, rustix::net::SendFlags::NOSIGNAL)?;
        if 0 < count && count < pieces.iter().map(|piece| piece.len()).sum() {
            short = Some(count);
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(count)
    });
    short.map_or(result, Ok)
}

/// Writes what fits. A short write has filled the socket; its readiness is cleared at once, as in [`receive`].
fn send(to: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    let mut short = None;
    let result = to.try_io(Interest::WRITABLE, || {
        let count = rustix::net::send(to, bytes, rustix::net::SendFlags::NOSIGNAL)?;
        if 0 < count && count < bytes.len() {
            short = Some(count);
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(count)
    });
    short.map_or(result, Ok)
}
