//! The splice pipes that a worker lends to connections while bytes are in flight. Copy buffers: [`buffers`].
//!
//! An idle connection holds none. The pool hands out what was returned last (it is warm in the cache), keeps a bounded
//! number and lets the rest go. A pipe that still holds bytes is never pooled.

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::pipe::{PipeFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with};

use crate::net::buffers;
use crate::net::descriptors::{Budget, Lent};

/// What a pipe is asked to hold; less is accepted down to [`SMALLEST_PIPE`].
const PIPE_BYTES: usize = 1024 * 1024;
/// Below this (the user's `fs.pipe-user-pages-soft` is used up) copying is cheaper.
const SMALLEST_PIPE: usize = 64 * 1024;
const IDLE_PIPES: usize = 32;

/// The pipes of one worker.
#[derive(Debug)]
pub struct Pool {
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
        Rc::new(Self { pipes: RefCell::default(), budget })
    }

    /// Lends an empty pipe, or none when descriptors are scarce or the user's pipe memory is used up.
    #[must_use]
    pub fn pipe(self: &Rc<Self>) -> Option<Pipe> {
        let pooled = self.pipes.borrow_mut().pop();
        let raw = pooled.or_else(|| self.open_pipe())?;
        Some(Pipe { raw: Some(raw), held: 0, pool: Rc::clone(self) })
    }

    fn open_pipe(&self) -> Option<RawPipe> {
        // A pipe saves time; a connection that finds no descriptors is refused.
        let lent = self.budget.take_spare(2)?;
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
        let size = fcntl_setpipe_size(&write, PIPE_BYTES).or_else(|_| fcntl_getpipe_size(&write)).ok()?;
        (size >= SMALLEST_PIPE).then_some(RawPipe { read, write, size, _lent: lent })
    }

    /// Lets go of half of what lies idle, buffers too; called by the sweep, so a burst's memory is returned within
    /// seconds.
    pub fn shrink(&self) {
        buffers::shrink();
        let mut pipes = self.pipes.borrow_mut();
        let half = pipes.len() / 2;
        pipes.truncate(half);
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
        // 32 are kept back, and of the rest half is for connections.
        let pool = Pool::new(Budget::new(36, 0));
        let (first, second) = (pool.pipe(), pool.pipe());
        assert_eq!((first.is_some(), second.is_some()), (true, false));
    }
}
