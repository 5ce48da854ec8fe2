//! What a worker lends to connections while bytes are in flight: copy buffers and splice pipes.
//!
//! An idle connection holds neither. Both pools hand out what was returned last (it is warm in the cache), keep a
//! bounded number and let the rest go. A pipe that still holds bytes is never pooled.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::pipe::{PipeFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with};

use crate::net::descriptors::{Budget, Lent};

/// Large enough that a full read means bulk, small enough to stay in the second-level cache.
pub const BUFFER_BYTES: usize = 64 * 1024;
const IDLE_BUFFERS: usize = 16;
/// What a pipe is asked to hold; less is accepted down to [`SMALLEST_PIPE`].
const PIPE_BYTES: usize = 512 * 1024;
/// Below this (the user's `fs.pipe-user-pages-soft` is used up) copying is cheaper.
const SMALLEST_PIPE: usize = 64 * 1024;
const IDLE_PIPES: usize = 32;

/// Both pools of one worker.
#[derive(Debug)]
pub struct Pool {
    buffers: RefCell<Vec<Box<[u8]>>>,
    pipes: RefCell<Vec<RawPipe>>,
    budget: Budget,
}

#[derive(Debug)]
struct RawPipe {
    read: OwnedFd,
    write: OwnedFd,
    size: usize,
    _lent: Lent,
}

impl Pool {
    #[must_use]
    pub fn new(budget: Budget) -> Rc<Self> {
        Rc::new(Self { buffers: RefCell::default(), pipes: RefCell::default(), budget })
    }

    /// Lends a buffer of [`BUFFER_BYTES`].
    #[must_use]
    pub fn buffer(self: &Rc<Self>) -> Buffer {
        let bytes = self.buffers.borrow_mut().pop().unwrap_or_else(|| vec![0; BUFFER_BYTES].into_boxed_slice());
        Buffer { bytes, pool: Rc::clone(self) }
    }

    /// Lends an empty pipe, or none when descriptors or the user's pipe memory are used up.
    #[must_use]
    pub fn pipe(self: &Rc<Self>) -> Option<Pipe> {
        let pooled = self.pipes.borrow_mut().pop();
        let raw = pooled.or_else(|| self.open_pipe())?;
        Some(Pipe { raw: Some(raw), held: 0, pool: Rc::clone(self) })
    }

    fn open_pipe(&self) -> Option<RawPipe> {
        let lent = self.budget.take(2)?;
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
        let size = fcntl_setpipe_size(&write, PIPE_BYTES).or_else(|_| fcntl_getpipe_size(&write)).ok()?;
        (size >= SMALLEST_PIPE).then_some(RawPipe { read, write, size, _lent: lent })
    }

    /// Lets go of half of what lies idle; called by the sweep, so a burst's memory is returned within seconds.
    pub fn shrink(&self) {
        fn halve<T>(idle: &mut Vec<T>) {
            idle.truncate(idle.len() / 2);
        }
        halve(&mut self.buffers.borrow_mut());
        halve(&mut self.pipes.borrow_mut());
    }
}

/// A lent buffer; goes back when dropped. Its content is whatever the last user left.
#[derive(Debug)]
pub struct Buffer {
    bytes: Box<[u8]>,
    pool: Rc<Pool>,
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut buffers = self.pool.buffers.borrow_mut();
        if buffers.len() < IDLE_BUFFERS {
            buffers.push(std::mem::take(&mut self.bytes));
        }
    }
}

/// A lent pipe; goes back when dropped empty, is closed when dropped with bytes inside.
#[derive(Debug)]
pub struct Pipe {
    /// Always there until dropped.
    raw: Option<RawPipe>,
    held: usize,
    pool: Rc<Pool>,
}

impl Pipe {
    /// Bytes inside.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held
    }

    /// How many bytes fit when every page is full.
    #[must_use]
    pub fn size(&self) -> usize {
        self.raw.as_ref().map_or(0, |raw| raw.size)
    }

    /// Runs `splice` from a socket into the write end and accounts for what it moved.
    ///
    /// # Errors
    /// Those of `splice`.
    pub fn fill(&mut self, splice: impl FnOnce(&OwnedFd) -> std::io::Result<usize>) -> std::io::Result<usize> {
        let Some(raw) = &self.raw else { return Ok(0) };
        let moved = splice(&raw.write)?;
        self.held += moved;
        Ok(moved)
    }

    /// Runs `splice` from the read end (given how many bytes are inside) and accounts for what it moved.
    ///
    /// # Errors
    /// Those of `splice`.
    pub fn empty(&mut self, splice: impl FnOnce(&OwnedFd, usize) -> std::io::Result<usize>) -> std::io::Result<usize> {
        let Some(raw) = &self.raw else { return Ok(0) };
        let moved = splice(&raw.read, self.held)?;
        self.held -= moved.min(self.held);
        Ok(moved)
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let mut pipes = self.pool.pipes.borrow_mut();
        if self.held == 0
            && pipes.len() < IDLE_PIPES
            && let Some(raw) = self.raw.take()
        {
            pipes.push(raw);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> Rc<Pool> {
        Pool::new(Budget::new(1000, 0))
    }

    #[test]
    fn what_is_returned_is_lent_again_and_the_rest_is_let_go() {
        let pool = pool();
        let mut buffer = pool.buffer();
        buffer[0] = 42;
        drop(buffer);
        assert_eq!(pool.buffer()[0], 42);
        let many: Vec<_> = (0..2 * IDLE_BUFFERS).map(|_| pool.buffer()).collect();
        drop(many);
        assert_eq!(pool.buffers.borrow().len(), IDLE_BUFFERS);
        pool.shrink();
        assert_eq!(pool.buffers.borrow().len(), IDLE_BUFFERS / 2);
    }

    #[test]
    fn a_pipe_with_bytes_is_closed_and_gives_its_descriptors_back() {
        let pool = pool();
        let mut pipe = pool.pipe().expect("a pipe");
        assert!(pipe.size() >= SMALLEST_PIPE);
        assert_eq!(pool.budget.used(), 2);
        pipe.fill(|fd| Ok(rustix::io::write(fd, b"abc")?)).expect("write");
        assert_eq!(pipe.held(), 3);
        drop(pipe);
        assert_eq!(pool.budget.used(), 0);
        drop(pool.pipe().expect("a pipe"));
        assert_eq!((pool.pipes.borrow().len(), pool.budget.used()), (1, 2));
    }

    #[test]
    fn no_descriptors_no_pipe() {
        assert!(Pool::new(Budget::new(33, 0)).pipe().is_none());
    }
}
