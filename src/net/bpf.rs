//! The few commands of bpf(2) that capture at the socket needs: maps, programs, and where programs are attached.
//!
//! Every command is one argument block, `union bpf_attr` of `linux/bpf.h`, filled in by offset. Blocks borrow what they
//! point to, so it lives through the call; how many bytes the kernel reads or writes there is either said in the block, or
//! the size of a map's keys and values, which is checked here against what was given. What the kernel refuses comes out as
//! its error number, for a program with the words of the verifier.
//!
//! Deliberately absent: object files, links, pins. Programs stay attached to a cgroup without any of them.

#![expect(unsafe_code, reason = "bpf(2) has no safe wrapper")]

pub mod asm;

use std::ffi::CStr;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

/// Long enough for the reason of any refusal; what does not fit, the kernel cuts at the front.
const LOG_BYTES: usize = 64 * 1024;
/// As many programs as one hook of a cgroup can have (`BPF_CGROUP_MAX_PROGS`).
const MAX_ATTACHED: usize = 64;
/// More maps than any of adit's programs has.
const MAX_MAPS: usize = 16;

#[derive(Debug, Clone, Copy)]
enum Command {
    MapCreate = 0,
    MapLookup = 1,
    MapUpdate = 2,
    MapNextKey = 4,
    ProgLoad = 5,
    ProgAttach = 8,
    ProgDetach = 9,
    ProgById = 13,
    MapById = 14,
    Info = 15,
    ProgQuery = 16,
    BtfLoad = 18,
}

/// What a map is, with the number that the kernel has for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapKind {
    Array = 2,
    /// Keeps what was used last.
    LruHash = 9,
    /// By the longest prefix.
    LpmTrie = 11,
    /// A value per socket, which goes with the socket.
    SocketStorage = 24,
}

/// How a map is made.
#[derive(Debug, Clone, Copy)]
pub struct MapSpec {
    /// At most 15 bytes.
    pub name: &'static str,
    pub kind: MapKind,
    pub key_bytes: u32,
    pub value_bytes: u32,
    pub entries: u32,
}

/// A map in the kernel, for as long as a descriptor or a program has it.
#[derive(Debug)]
pub struct Map {
    fd: OwnedFd,
    name: String,
    kind: u32,
    key_bytes: usize,
    value_bytes: usize,
}

/// Where a program runs: one hook of a cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    Connect4,
    Connect6,
    PeerName4,
    PeerName6,
    SockOps,
    GetSockOpt,
}

impl Hook {
    /// `enum bpf_attach_type`.
    const fn attach_type(self) -> u32 {
        match self {
            Self::SockOps => 3,
            Self::Connect4 => 10,
            Self::Connect6 => 11,
            Self::GetSockOpt => 21,
            Self::PeerName4 => 29,
            Self::PeerName6 => 30,
        }
    }

    /// `enum bpf_prog_type`.
    const fn program_type(self) -> u32 {
        match self {
            Self::SockOps => 13,
            Self::GetSockOpt => 25,
            Self::Connect4 | Self::Connect6 | Self::PeerName4 | Self::PeerName6 => 18,
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

impl Map {
    /// # Errors
    /// What the kernel says: EPERM without CAP_BPF in the first user namespace.
    pub fn create(spec: MapSpec) -> io::Result<Self> {
        let MapSpec { name, kind, key_bytes, value_bytes, entries } = spec;
        let mut block = Block::new()
            .word(0, kind as u32)
            .word(4, key_bytes)
            .word(8, value_bytes)
            .word(12, entries)
            // Tries and storage are not made in advance.
            .word(16, u32::from(matches!(kind, MapKind::LpmTrie | MapKind::SocketStorage)))
            .name(28, name);
        if kind == MapKind::SocketStorage {
            // The kernel wants to know its types, as nothing else does.
            let types = load_types(&words_of(value_bytes))?;
            block = block.fd(48, types.as_fd()).word(52, KEY_TYPE).word(56, VALUE_TYPE);
            return Self::opened(block.open(Command::MapCreate)?);
        }
        Self::opened(block.open(Command::MapCreate)?)
    }

    /// The map with this number; `None` when it is gone.
    ///
    /// # Errors
    /// What the kernel says: EPERM without CAP_SYS_ADMIN.
    pub fn by_id(id: u32) -> io::Result<Option<Self>> {
        match Block::new().word(0, id).open(Command::MapById) {
            Ok(fd) => Self::opened(fd).map(Some),
            Err(error) if is(&error, Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The sizes are asked for: what is read and written must have them.
    fn opened(fd: OwnedFd) -> io::Result<Self> {
        let mut info = [0_u8; 80];
        ask(fd.as_fd(), &mut info)?;
        let size = |at| usize::try_from(word_at(&info, at)).map_err(io::Error::other);
        Ok(Self { name: name_at(&info, 24), kind: word_at(&info, 0), key_bytes: size(8)?, value_bytes: size(12)?, fd })
    }

    /// Whether it was made by `spec`, whatever it holds.
    #[must_use]
    pub fn is(&self, spec: &MapSpec) -> bool {
        self.name == spec.name
            && self.kind == spec.kind as u32
            && self.key_bytes == spec.key_bytes as usize
            && self.value_bytes == spec.value_bytes as usize
    }

    /// # Errors
    /// EINVAL for a key or a value of another size; what the kernel says.
    pub fn update(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        if (key.len(), value.len()) != (self.key_bytes, self.value_bytes) {
            return Err(Errno::INVAL.into());
        }
        Block::new().fd(0, self.fd.as_fd()).input(8, key).input(16, value).call(Command::MapUpdate).map(drop)
    }

    /// # Errors
    /// EINVAL for a key of another size, ENOENT for one that is not there; what the kernel says.
    pub fn lookup(&self, key: &[u8]) -> io::Result<Vec<u8>> {
        if key.len() != self.key_bytes {
            return Err(Errno::INVAL.into());
        }
        // A value of a map that is not per CPU takes its size, rounded up to words at most.
        let mut value = vec![0; self.value_bytes.next_multiple_of(8)];
        Block::new().fd(0, self.fd.as_fd()).input(8, key).output(16, &mut value).call(Command::MapLookup)?;
        value.truncate(self.value_bytes);
        Ok(value)
    }

    /// # Errors
    /// What the kernel says.
    pub fn is_empty(&self) -> io::Result<bool> {
        let mut first = vec![0; self.key_bytes];
        match Block::new().fd(0, self.fd.as_fd()).output(16, &mut first).call(Command::MapNextKey) {
            Ok(_) => Ok(false),
            Err(error) if is(&error, Errno::NOENT) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Another descriptor of the same map.
    ///
    /// # Errors
    /// There is none left.
    pub fn try_clone(&self) -> io::Result<Self> {
        let Self { fd, name, kind, key_bytes, value_bytes } = self;
        Ok(Self {
            fd: fd.try_clone()?,
            name: name.clone(),
            kind: *kind,
            key_bytes: *key_bytes,
            value_bytes: *value_bytes,
        })
    }

    /// Valid for as long as the map is.
    pub(super) fn raw_fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }
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
        match Block::new().word(0, id).open(Command::ProgById) {
            Ok(fd) => Ok(Some(Self(fd))),
            Err(error) if is(&error, Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
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

/// `BPF_OBJ_GET_INFO_BY_FD`: at most `info.len()` bytes are written.
fn ask(fd: BorrowedFd<'_>, info: &mut [u8]) -> io::Result<()> {
    let bytes = info.len();
    Block::new().fd(0, fd).count(4, bytes).output(8, info).call(Command::Info).map(drop)
}

/// Types of [`words_of`].
const KEY_TYPE: u32 = 1;
const VALUE_TYPE: u32 = 2;

/// The least of BTF: `u32`, and an array of it that fills `bytes`.
fn words_of(bytes: u32) -> Vec<u8> {
    const STRINGS: &[u8] = b"\0u32\0";
    const INT: u32 = 1 << 24;
    const ARRAY: u32 = 3 << 24;
    let types = [1, INT, 4, 32, 0, ARRAY, 0, KEY_TYPE, KEY_TYPE, bytes / 4].map(u32::to_ne_bytes).concat();
    let length = |part: &[u8]| u32::try_from(part.len()).unwrap_or(u32::MAX);
    let header = [24, 0, length(&types), length(&types), length(STRINGS)].map(u32::to_ne_bytes).concat();
    [&0xeb9f_u16.to_ne_bytes()[..], &[1, 0], &header, &types, STRINGS].concat()
}

fn load_types(btf: &[u8]) -> io::Result<OwnedFd> {
    Block::new().input(0, btf).count(16, btf.len()).open(Command::BtfLoad)
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
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
    fn types_are_laid_out_as_the_kernel_reads_them() {
        let btf = words_of(24);
        assert_eq!(btf.len(), 24 + 40 + 5);
        assert_eq!((word_at(&btf, 4), word_at(&btf, 12), word_at(&btf, 16)), (24, 40, 40));
        // The array's element, index and length end the types.
        assert_eq!([52, 56, 60].map(|at| word_at(&btf, at)), [1, 1, 6]);
    }

    #[test]
    fn the_verifier_is_quoted_from_its_end() {
        assert_eq!(last_lines("a\nb\nc\nR1 invalid mem access\nprocessed 3 insns\n"), "b; c; R1 invalid mem access");
        assert_eq!(last_lines(""), "");
        let refused = Refused { log: String::new(), source: Errno::INVAL.into() };
        assert_eq!(refused.to_string(), "the kernel does not say why");
    }

    #[test]
    fn names_end_at_the_first_zero() {
        let block = Block::new().name(28, "a_name_that_is_too_long");
        assert_eq!(name_at(&block.bytes, 28), "a_name_that_is_");
        assert_eq!(name_at(b"no end", 0), "");
    }
}
