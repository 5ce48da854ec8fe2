//! What came out of a stream and waits for its socket.
//!
//! Small frames are packed together: one of a few bytes would keep the whole read buffer that it is a slice of, and
//! thousands of them would cost more than they carry. So the memory is a small multiple of the bytes, and the bytes are
//! at most one stream window.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};

/// Frames below this are packed unless the socket takes them at once.
const SMALL: usize = 8 * 1024;
const PACK: usize = 64 * 1024;
/// Pieces written at once.
const PIECES: usize = 16;

#[derive(Debug, Default)]
pub(super) struct Inbox {
    pieces: VecDeque<Bytes>,
    /// Small frames, after all pieces.
    packed: BytesMut,
}

impl Inbox {
    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.packed.is_empty()
    }

    pub(super) fn push(&mut self, bytes: Bytes) {
        if bytes.len() < SMALL && !self.is_empty() {
            self.packed.extend_from_slice(&bytes);
            if self.packed.len() < PACK {
                return;
            }
        }
        let packs = bytes.len() < SMALL && !self.packed.is_empty();
        if !self.packed.is_empty() {
            self.pieces.push_back(std::mem::take(&mut self.packed).freeze());
        }
        if !packs && !bytes.is_empty() {
            self.pieces.push_back(bytes);
        }
    }

    /// Lends the first pieces to `write` and forgets the bytes that it took.
    pub(super) fn write<E>(&mut self, write: impl FnOnce(&[IoSlice<'_>]) -> Result<usize, E>) -> Result<usize, E> {
        let mut slices = [IoSlice::new(&[]); PIECES];
        let mut used = 0;
        let packed = Some(&self.packed[..]).filter(|packed| !packed.is_empty());
        for (slice, piece) in slices.iter_mut().zip(self.pieces.iter().map(|piece| &piece[..]).chain(packed)) {
            *slice = IoSlice::new(piece);
            used += 1;
        }
        let count = write(slices.get(..used).unwrap_or_default())?;
        self.forget(count);
        Ok(count)
    }

    fn forget(&mut self, mut count: usize) {
        while let Some(first) = self.pieces.front_mut() {
            if count < first.len() {
                first.advance(count);
                return;
            }
            count -= first.len();
            self.pieces.pop_front();
        }
        self.packed.advance(count.min(self.packed.len()));
        if self.packed.is_empty() {
            // An idle connection holds no memory for the next burst.
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_back_what_was_put_in_whatever_the_sizes() {
        for seed in 0..50 {
            let mut random = fastrand::Rng::with_seed(seed);
            let (mut inbox, mut put, mut got) = (Inbox::default(), Vec::new(), Vec::new());
            for _ in 0..200 {
                let size = if random.bool() { random.usize(0..100) } else { random.usize(0..30_000) };
                let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(size).collect();
                put.extend_from_slice(&bytes);
                inbox.push(bytes.into());
                if random.u8(..4) == 0 {
                    let take = random.usize(..100_000);
                    let count = inbox.write(|slices| {
                        let all: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).take(take).collect();
                        got.extend_from_slice(&all);
                        Ok::<_, ()>(all.len())
                    });
                    assert!(count.is_ok());
                }
            }
            while !inbox.is_empty() {
                let taken = inbox.write(|slices| {
                    slices.iter().for_each(|slice| got.extend_from_slice(slice));
                    Ok::<_, ()>(slices.iter().map(|slice| slice.len()).sum())
                });
                assert!(taken.is_ok_and(|count| count > 0));
            }
            assert!(got == put, "seed {seed}");
        }
    }

    #[test]
    fn many_tiny_frames_are_few_pieces_and_keep_no_read_buffer() {
        let mut inbox = Inbox::default();
        let read_buffer = Bytes::from(vec![7; 1 << 20]);
        for at in 0..read_buffer.len() {
            inbox.push(read_buffer.slice(at..=at));
        }
        assert!(inbox.pieces.len() <= 1 + read_buffer.len() / PACK, "{}", inbox.pieces.len());
        let kept: usize = inbox.pieces.iter().skip(1).map(Bytes::len).sum::<usize>() + inbox.packed.len();
        assert_eq!(kept, read_buffer.len() - 1);
        inbox.forget(read_buffer.len());
        assert!(inbox.is_empty());
        assert_eq!((inbox.pieces.capacity(), inbox.packed.capacity()), (0, 0));
    }
}
