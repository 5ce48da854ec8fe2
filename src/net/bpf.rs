//! The few commands of bpf(2) that capture at the socket needs: maps, programs, and where programs are attached.
//!
//! Every command is one argument block, `union bpf_attr` of `linux/bpf.h`, filled in by offset. Blocks borrow what they
//! point to, so it lives through the call; how many bytes the kernel reads or writes there is either said in the block, or
//! the size of a map's keys and values, which is checked here against what was given. What the kernel refuses comes out as
//! its error number, for a program with the words of the verifier.
//!
//! Deliberately absent: object files, and links where there are other ways. Programs stay attached to a cgroup without; a network
//! namespace knows nothing else, and a link wants a pin to stay.

#![expect(unsafe_code, reason = "bpf(2) has no safe wrapper")]

pub mod asm;
mod link;
mod map;
mod program;

use std::ffi::CStr;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

pub use link::{Link, links};
pub use map::{Map, MapKind, MapSpec};
pub use program::{Hook, Program, ProgramInfo, Refused, attached, programs};

#[derive(Debug, Clone, Copy)]
enum Command {
    MapCreate = 0,
    MapLookup = 1,
    MapUpdate = 2,
    MapNextKey = 4,
    ProgLoad = 5,
    Pin = 6,
    ProgAttach = 8,
    ProgDetach = 9,
    ProgNextId = 11,
    ProgById = 13,
    MapById = 14,
    Info = 15,
    ProgQuery = 16,
    BtfLoad = 18,
    LinkCreate = 28,
    LinkUpdate = 29,
    LinkById = 30,
    LinkNextId = 31,
    LinkDetach = 34,
}

/// `union bpf_attr`: zeros but for what is set. Longer than older kernels know it; they accept that of zeros.
struct Block<'a> {
    bytes: [u8; 128],
    borrowed: PhantomData<&'a mut [u8]>,
}

impl<'a> Block<'a> {
    const fn new() -> Self {
        Self { bytes: [0; 128], borrowed: PhantomData }
    }

    fn bytes(mut self, at: usize, value: &[u8]) -> Self {
        self.bytes[at..at + value.len()].copy_from_slice(value);
        self
    }

    fn word(self, at: usize, value: u32) -> Self {
        self.bytes(at, &value.to_ne_bytes())
    }

    fn count(self, at: usize, value: usize) -> Self {
        self.word(at, u32::try_from(value).unwrap_or(u32::MAX))
    }

    fn fd(self, at: usize, fd: BorrowedFd<'_>) -> Self {
        self.word(at, fd.as_raw_fd().cast_unsigned())
    }

    /// A name of at most 15 bytes.
    fn name(self, at: usize, name: &str) -> Self {
        let name = name.as_bytes();
        self.bytes(at, &name[..name.len().min(15)])
    }

    /// What the kernel reads.
    fn input(self, at: usize, memory: &'a [u8]) -> Self {
        self.bytes(at, &(memory.as_ptr() as u64).to_ne_bytes())
    }

    /// What the kernel writes.
    fn output(self, at: usize, memory: &'a mut [u8]) -> Self {
        self.bytes(at, &(memory.as_mut_ptr() as u64).to_ne_bytes())
    }

    fn read(&self, at: usize) -> u32 {
        word_at(&self.bytes, at)
    }

    fn call(&mut self, command: Command) -> io::Result<i32> {
        // SAFETY: the block is a local variable of the size that is given. Whatever its addresses point to is borrowed for as long
        // as the block lives, and at least as long as the kernel believes: the callers below see to that, each next to its block.
        let answer =
            unsafe { libc::syscall(libc::SYS_bpf, command as libc::c_long, self.bytes.as_mut_ptr(), self.bytes.len()) };
        if answer < 0 { Err(io::Error::last_os_error()) } else { i32::try_from(answer).map_err(io::Error::other) }
    }

    fn open(mut self, command: Command) -> io::Result<OwnedFd> {
        let fd = self.call(command)?;
        // SAFETY: these commands return a descriptor that nobody else has.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

fn word_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

/// Up to the first zero.
fn name_at(bytes: &[u8], at: usize) -> String {
    let name = bytes.get(at..).and_then(|bytes| CStr::from_bytes_until_nul(bytes).ok());
    name.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// `BPF_OBJ_GET_INFO_BY_FD`: at most `info.len()` bytes are written.
fn ask(fd: BorrowedFd<'_>, info: &mut [u8]) -> io::Result<()> {
    let bytes = info.len();
    Block::new().fd(0, fd).count(4, bytes).output(8, info).call(Command::Info).map(drop)
}

/// What has this number; `None` when it is gone.
fn by_id(command: Command, id: u32) -> io::Result<Option<OwnedFd>> {
    match Block::new().word(0, id).open(command) {
        Ok(fd) => Ok(Some(fd)),
        Err(error) if is(&error, Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// All that `next` counts up.
fn numbers(next: Command) -> io::Result<Vec<u32>> {
    let mut ids = Vec::new();
    loop {
        let mut block = Block::new().word(0, ids.last().copied().unwrap_or(0));
        match block.call(next) {
            Ok(_) => ids.push(block.read(4)),
            // The last, or a kernel that has none.
            Err(error) if is(&error, Errno::NOENT) || is(&error, Errno::NOSYS) => return Ok(ids),
            Err(error) => return Err(error),
        }
    }
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_end_at_the_first_zero() {
        let block = Block::new().name(28, "a_name_that_is_too_long");
        assert_eq!(name_at(&block.bytes, 28), "a_name_that_is_");
        assert_eq!(name_at(b"no end", 0), "");
    }
}
