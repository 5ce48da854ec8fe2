//! Short text on the stack, for header values: what is made of it later takes one allocation of the exact size.

use std::fmt;

/// Holds at most `N` bytes; what does not fit is refused, piece by piece.
#[derive(Debug)]
pub(super) struct Scratch<const N: usize> {
    bytes: [u8; N],
    used: usize,
}

impl<const N: usize> Scratch<N> {
    pub(super) const fn new() -> Self {
        Self { bytes: [0; N], used: 0 }
    }

    /// `text` has at most `N` bytes: the caller knows its bound.
    pub(super) fn of(text: fmt::Arguments<'_>) -> Self {
        let mut scratch = Self::new();
        let written = fmt::Write::write_fmt(&mut scratch, text);
        debug_assert!(written.is_ok(), "longer than {N} bytes");
        scratch
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.used).unwrap_or_default()
    }
}

impl<const N: usize> fmt::Write for Scratch<N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.bytes.get_mut(self.used..).and_then(|rest| rest.get_mut(..text.len())).ok_or(fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.used += text.len();
        Ok(())
    }
}
