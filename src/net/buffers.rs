//! Copy buffers that a worker lends while bytes are in flight; relays, streams and TLS share one list per thread.
//!
//! What was returned last is lent first (it is warm in the cache). The list keeps a bounded number and lets the rest go.
//! A buffer goes back to the list of the thread that drops it, so it may travel into libraries, and holds no handle.

use std::cell::{Cell, RefCell};
use std::ops::{Deref, DerefMut};

/// Large enough that a full read means bulk, small enough to stay in the second-level cache; four TLS records of the
/// largest size that anybody sends, and the beginning of a fifth.
pub const BUFFER_BYTES: usize = 72 * 1024;
/// For bulk inside tunnels, where fewer and larger frames and reads save more than the cache does: sixteen records, and the
/// beginning of another.
pub const LARGE_BYTES: usize = 272 * 1024;
/// What lies idle at most: a little more than 2 MiB per worker of each kind.
const IDLE_BUFFERS: usize = 32;
const IDLE_LARGE: usize = 8;

thread_local! {
    static IDLE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
    static IDLE_OF_LARGE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
    static LENT: Cell<usize> = const { Cell::new(0) };
}

/// Lends a buffer of [`BUFFER_BYTES`]. Its content is whatever the last user left.
#[must_use]
pub fn lend() -> Buffer {
    let bytes = IDLE.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; BUFFER_BYTES].into_boxed_slice());
    LENT.set(LENT.get() + 1);
    Buffer(bytes)
}

/// Lends a buffer of [`LARGE_BYTES`] to whoever has just filled a smaller one.
#[must_use]
pub fn lend_large() -> Buffer {
    let bytes = IDLE_OF_LARGE.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; LARGE_BYTES].into_boxed_slice());
    LENT.set(LENT.get() + 1);
    Buffer(bytes)
}

/// Lets go of half of what lies idle; called by the sweep, so a burst's memory is returned within seconds.
pub fn shrink() {
    for list in [&IDLE, &IDLE_OF_LARGE] {
        list.with_borrow_mut(|idle| idle.truncate(idle.len() / 2));
    }
}

/// How many buffers of this thread wait to be lent.
#[must_use]
pub fn idle() -> usize {
    IDLE.with_borrow(Vec::len) + IDLE_OF_LARGE.with_borrow(Vec::len)
}

/// How many buffers of this thread are in use.
#[must_use]
pub fn lent() -> usize {
    LENT.get()
}

/// A lent buffer; goes back when dropped.
#[derive(Debug)]
pub struct Buffer(Box<[u8]>);

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.0);
        // Fails only while the thread ends: then the memory just goes.
        let _ = LENT.try_with(|lent| lent.set(lent.get().saturating_sub(1)));
        let (list, most) = match bytes.len() {
            LARGE_BYTES => (&IDLE_OF_LARGE, IDLE_LARGE),
            _ => (&IDLE, IDLE_BUFFERS),
        };
        let _ = list.try_with(|idle| {
            let mut idle = idle.borrow_mut();
            if idle.len() < most {
                idle.push(bytes);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_returned_is_lent_again_and_the_rest_is_let_go() {
        let mut buffer = lend();
        assert_eq!((buffer.len(), lent(), idle()), (BUFFER_BYTES, 1, 0));
        buffer[0] = 42;
        drop(buffer);
        assert_eq!(lend()[0], 42);
        let many: Vec<_> = (0..2 * IDLE_BUFFERS).map(|_| lend()).collect();
        assert_eq!((lent(), idle()), (2 * IDLE_BUFFERS, 0));
        drop(many);
        assert_eq!((lent(), idle()), (0, IDLE_BUFFERS));
        shrink();
        assert_eq!(idle(), IDLE_BUFFERS / 2);
        let many: Vec<_> = (0..2 * IDLE_LARGE).map(|_| lend_large()).collect();
        assert!(many.iter().all(|buffer| buffer.len() == LARGE_BYTES));
        drop(many);
        assert_eq!((lent(), idle(), lend().len()), (0, IDLE_BUFFERS / 2 + IDLE_LARGE, BUFFER_BYTES));
        (0..6).for_each(|_| shrink());
        assert_eq!(idle(), 0);
    }

    #[test]
    fn a_buffer_may_end_on_another_thread() {
        let buffer = lend();
        let there = std::thread::spawn(move || {
            drop(buffer);
            (lent(), idle())
        });
        assert_eq!(there.join().expect("thread"), (0, 1));
    }
}
