//! What a stream has handed to the HTTP/2 library and the library has not passed on yet.
//!
//! The library queues DATA and drops the queue when the stream is reset, so three things must be known exactly: how
//! many bytes went on, whether everything did, and whether something was dropped. Each [`Chunk`] tells its stream's
//! [`Outbox`] as it is consumed. It does so under the library's locks: nothing here calls back into it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Waker};

use bytes::{Buf, Bytes};

use super::CHUNK_BYTES;
use crate::net::buffers::Buffer;

/// Reads up to this are copied, so that a few bytes do not keep a whole buffer while they wait.
const COPIED: usize = 4 * 1024;
/// What a stream keeps queued at most, in bytes of memory: two buffers, so that one fills while the other goes.
pub(super) const QUEUED: usize = 2 * CHUNK_BYTES;
/// What the library spends on a queued frame beside its bytes, about.
const FRAME: usize = 512;

/// Bytes on their way into a tunnel.
#[derive(Debug)]
pub struct Chunk {
    content: Content,
    start: usize,
    end: usize,
    outbox: Rc<Outbox>,
}

#[derive(Debug)]
enum Content {
    Lent(Buffer),
    Copied(Bytes),
}

impl Chunk {
    /// The first `count` bytes of `buffer`.
    pub(super) fn new(outbox: &Rc<Outbox>, buffer: Buffer, count: usize) -> Self {
        let filled = buffer.get(..count).unwrap_or(&buffer);
        let end = filled.len();
        let content =
            if end <= COPIED { Content::Copied(Bytes::copy_from_slice(filled)) } else { Content::Lent(buffer) };
        Self::queued(outbox, content, end)
    }

    /// Nothing: what carries END_STREAM.
    pub(super) fn empty(outbox: &Rc<Outbox>) -> Self {
        Self::queued(outbox, Content::Copied(Bytes::new()), 0)
    }

    fn queued(outbox: &Rc<Outbox>, content: Content, end: usize) -> Self {
        let chunk = Self { content, start: 0, end, outbox: Rc::clone(outbox) };
        outbox.frames.set(outbox.frames.get() + 1);
        outbox.bytes.set(outbox.bytes.get() + end);
        outbox.weight.set(outbox.weight.get() + chunk.weight());
        chunk
    }

    fn weight(&self) -> usize {
        FRAME
            + match &self.content {
                Content::Lent(buffer) => buffer.len() - FRAME,
                Content::Copied(bytes) => bytes.len(),
            }
    }
}

impl Buf for Chunk {
    fn remaining(&self) -> usize {
        self.end - self.start
    }

    fn chunk(&self) -> &[u8] {
        let bytes: &[u8] = match &self.content {
            Content::Lent(buffer) => buffer,
            Content::Copied(bytes) => bytes,
        };
        bytes.get(self.start..self.end).unwrap_or_default()
    }

    fn advance(&mut self, count: usize) {
        let count = count.min(self.remaining());
        self.start += count;
        self.outbox.bytes.set(self.outbox.bytes.get() - count);
        self.outbox.taken.set(self.outbox.taken.get() + count);
        if count > 0 {
            self.outbox.wake();
        }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        let (outbox, left) = (&self.outbox, self.remaining());
        outbox.frames.set(outbox.frames.get() - 1);
        outbox.weight.set(outbox.weight.get() - self.weight());
        outbox.bytes.set(outbox.bytes.get() - left);
        if left > 0 {
            outbox.dropped.set(true);
        }
        outbox.wake();
    }
}

/// Counts one stream's chunks.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    frames: Cell<usize>,
    bytes: Cell<usize>,
    weight: Cell<usize>,
    taken: Cell<usize>,
    dropped: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Outbox {
    /// Whether the library has passed on, or dropped, all it was given, END_STREAM too.
    pub(super) fn is_empty(&self) -> bool {
        self.frames.get() == 0
    }

    /// Bytes that wait in the library.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.get()
    }

    /// Whether another chunk may be queued.
    pub(super) fn has_room(&self) -> bool {
        self.weight.get() < QUEUED
    }

    /// Bytes passed on since this was last asked.
    pub(super) fn take_moved(&self) -> usize {
        self.taken.replace(0)
    }

    /// Whether bytes were dropped before they were sent.
    pub(super) fn has_dropped(&self) -> bool {
        self.dropped.get()
    }

    /// Wakes the task of `cx` at the next change; once.
    pub(super) fn listen(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        match waker.as_ref() {
            Some(known) if known.will_wake(cx.waker()) => {}
            _ => *waker = Some(cx.waker().clone()),
        }
    }

    fn wake(&self) {
        // Taken out first: waking may run anything.
        let waker = self.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::buffers;

    #[test]
    fn counts_what_is_taken_and_what_is_dropped() {
        let outbox = Rc::new(Outbox::default());
        let mut large = Chunk::new(&outbox, buffers::lend(), 10_000);
        assert_eq!((large.remaining(), outbox.bytes(), outbox.is_empty(), buffers::lent()), (10_000, 10_000, false, 1));
        large.advance(9_000);
        assert_eq!((outbox.take_moved(), outbox.take_moved(), outbox.bytes()), (9_000, 0, 1_000));
        large.advance(1_000);
        assert!(!outbox.is_empty(), "still in the library's hands");
        drop(large);
        assert!(outbox.is_empty() && !outbox.has_dropped());
        drop(Chunk::new(&outbox, buffers::lend(), 1));
        assert!(outbox.is_empty() && outbox.has_dropped());
        assert_eq!((outbox.bytes(), outbox.take_moved(), outbox.weight.get(), buffers::lent()), (0, 1_000, 0, 0));
    }

    #[test]
    fn few_bytes_keep_no_buffer_and_the_room_is_bounded() {
        let outbox = Rc::new(Outbox::default());
        let mut chunks = Vec::new();
        while outbox.has_room() {
            chunks.push(Chunk::new(&outbox, buffers::lend(), 1));
        }
        assert_eq!(buffers::lent(), 0);
        assert!(chunks.len() <= QUEUED.div_ceil(FRAME));
        chunks.clear();
        while outbox.has_room() {
            chunks.push(Chunk::new(&outbox, buffers::lend(), CHUNK_BYTES));
        }
        assert_eq!((chunks.len(), buffers::lent()), (2, 2));
    }
}
