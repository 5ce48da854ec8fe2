//! Programs: how the kernel takes them, and at which hooks of which cgroups they run.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use super::{Block, Command, ask, asm, by_id, is, name_at, word_at};

/// Long enough for the reason of any refusal; what does not fit, the kernel cuts at the front.
const LOG_BYTES: usize = 64 * 1024;
/// As many programs as one hook of a cgroup can have (`BPF_CGROUP_MAX_PROGS`).
const MAX_ATTACHED: usize = 64;
/// More maps than any of adit's programs has.
const MAX_MAPS: usize = 16;

/// Where a program runs: one hook of a cgroup or, the last, of a network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    Bind4,
    Bind6,
    Connect4,
    Connect6,
    PeerName4,
    PeerName6,
    SockOps,
    GetSockOpt,
    SocketLookup,
}

impl Hook {
    /// `enum bpf_attach_type`.
    pub(super) const fn attach_type(self) -> u32 {
        match self {
            Self::SockOps => 3,
            Self::Bind4 => 8,
            Self::Bind6 => 9,
            Self::Connect4 => 10,
            Self::Connect6 => 11,
            Self::GetSockOpt => 21,
            Self::PeerName4 => 29,
            Self::PeerName6 => 30,
            Self::SocketLookup => 36,
        }
    }

    /// `enum bpf_prog_type`.
    const fn program_type(self) -> u32 {
        match self {
            Self::SockOps => 13,
            Self::GetSockOpt => 25,
            Self::SocketLookup => 30,
            Self::Bind4 | Self::Bind6 | Self::Connect4 | Self::Connect6 | Self::PeerName4 | Self::PeerName6 => 18,
        }
    }
}

/// A loaded program, for as long as a descriptor or a hook has it.
#[derive(Debug)]
pub struct Program(OwnedFd);

/// What the kernel tells of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramInfo {
    pub name: String,
    pub maps: Vec<u32>,
}

/// The kernel would not take a program.
#[derive(Debug, thiserror::Error)]
#[error("{}", if log.is_empty() { "the kernel does not say why" } else { log })]
pub struct Refused {
    /// The last lines of the verifier.
    pub log: String,
    pub source: io::Error,
}

impl Program {
    /// Has the kernel check `code` (of [`asm::Asm::finish`]) and take it, to run at `hook`.
    ///
    /// # Errors
    /// Why not.
    pub fn load(name: &str, hook: Hook, code: &[u8]) -> Result<Self, Refused> {
        let block = || {
            Block::new()
                .word(0, hook.program_type())
                .count(4, code.len() / asm::INSTRUCTION_BYTES)
                .input(8, code)
                // None of the helpers wants GPL.
                .input(16, b"Apache-2.0\0")
                .name(48, name)
                .word(68, hook.attach_type())
        };
        let error = match block().open(Command::ProgLoad) {
            Ok(fd) => return Ok(Self(fd)),
            Err(error) => error,
        };
        // Again, for the reason. Where it is refused another time, for want of memory say, what there is of a reason is kept.
        let mut log = vec![0; LOG_BYTES];
        let again = block().word(24, 1).count(28, log.len()).output(32, &mut log).open(Command::ProgLoad);
        match again {
            Ok(fd) => Ok(Self(fd)),
            Err(_as_before) => Err(Refused { log: last_lines(&name_at(&log, 0)), source: error }),
        }
    }

    /// The program with this number; `None` when it is gone.
    ///
    /// # Errors
    /// What the kernel says: EPERM without CAP_SYS_ADMIN.
    pub fn by_id(id: u32) -> io::Result<Option<Self>> {
        Ok(by_id(Command::ProgById, id)?.map(Self))
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// # Errors
    /// What the kernel says.
    pub fn info(&self) -> io::Result<ProgramInfo> {
        let mut maps = [0_u8; 4 * MAX_MAPS];
        let address = maps.as_mut_ptr() as u64;
        let mut info = [0_u8; 80];
        // `nr_map_ids` and `map_ids`: the kernel writes so many numbers there and no more.
        info[52..56].copy_from_slice(&u32::try_from(MAX_MAPS).map_err(io::Error::other)?.to_ne_bytes());
        info[56..64].copy_from_slice(&address.to_ne_bytes());
        ask(self.0.as_fd(), &mut info)?;
        let count = usize::try_from(word_at(&info, 52)).map_err(io::Error::other)?.min(MAX_MAPS);
        Ok(ProgramInfo { name: name_at(&info, 64), maps: (0..count).map(|index| word_at(&maps, 4 * index)).collect() })
    }

    /// Runs it at `hook` of `cgroup` beside all others there, or in the place of one of them.
    ///
    /// # Errors
    /// What the kernel says: E2BIG when there are 64 already, EPERM when somebody allows none beside theirs.
    pub fn attach(&self, cgroup: BorrowedFd<'_>, hook: Hook, instead_of: Option<&Self>) -> io::Result<()> {
        const ALLOW_MULTI: u32 = 2;
        const REPLACE: u32 = 4;
        let block = Block::new().fd(0, cgroup).fd(4, self.0.as_fd()).word(8, hook.attach_type());
        let mut block = match instead_of {
            Some(other) => block.word(12, ALLOW_MULTI | REPLACE).fd(16, other.0.as_fd()),
            None => block.word(12, ALLOW_MULTI),
        };
        block.call(Command::ProgAttach).map(drop)
    }

    /// # Errors
    /// ENOENT when it is not there; what the kernel says.
    pub fn detach(&self, cgroup: BorrowedFd<'_>, hook: Hook) -> io::Result<()> {
        Block::new().fd(0, cgroup).fd(4, self.0.as_fd()).word(8, hook.attach_type()).call(Command::ProgDetach).map(drop)
    }
}

/// The numbers of all programs that the kernel has.
///
/// # Errors
/// What the kernel says: EPERM without CAP_SYS_ADMIN in the first user namespace.
pub fn programs() -> io::Result<Vec<u32>> {
    super::numbers(Command::ProgNextId)
}

/// The numbers of the programs at `hook` of `cgroup` itself, in the order in which they run.
///
/// # Errors
/// What the kernel says: EPERM without CAP_NET_ADMIN in the first user namespace.
pub fn attached(cgroup: BorrowedFd<'_>, hook: Hook) -> io::Result<Vec<u32>> {
    let mut ids = [0_u8; 4 * MAX_ATTACHED];
    let mut block = Block::new()
        .fd(0, cgroup)
        .word(4, hook.attach_type())
        // The kernel writes so many numbers and no more.
        .output(16, &mut ids)
        .count(24, MAX_ATTACHED);
    match block.call(Command::ProgQuery) {
        Ok(_) => {}
        // It knows no such hook, or no programs at all.
        Err(error) if is(&error, Errno::INVAL) || is(&error, Errno::NOSYS) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    }
    let count = usize::try_from(block.read(24)).map_err(io::Error::other)?.min(MAX_ATTACHED);
    Ok((0..count).map(|index| word_at(&ids, 4 * index)).collect())
}

/// The reason is at the end, before the verifier's statistics.
fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.lines().filter(|line| !line.starts_with("processed ")).collect();
    lines[lines.len().saturating_sub(3)..].join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verifier_is_quoted_from_its_end() {
        assert_eq!(last_lines("a\nb\nc\nR1 invalid mem access\nprocessed 3 insns\n"), "b; c; R1 invalid mem access");
        assert_eq!(last_lines(""), "");
        let refused = Refused { log: String::new(), source: Errno::INVAL.into() };
        assert_eq!(refused.to_string(), "the kernel does not say why");
    }
}
