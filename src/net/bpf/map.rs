//! Maps: how they are made, found again, read and written. Keys and values come in and go out as bytes of exactly the size that
//! the kernel has for the map.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::io::Errno;

use super::{Block, Command, ask, by_id, is, name_at, word_at};

/// What a map is, with the number that the kernel has for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapKind {
    Array = 2,
    /// Keeps what was used last.
    LruHash = 9,
    /// Sockets by number; one that is closed leaves it.
    Sockets = 15,
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
        // The kernel wants to know the types of this kind, and of no other.
        let types = (kind == MapKind::SocketStorage).then(|| load_types(&words_of(value_bytes))).transpose()?;
        if let Some(types) = &types {
            block = block.fd(48, types.as_fd()).word(52, KEY_TYPE).word(56, VALUE_TYPE);
        }
        Self::opened(block.open(Command::MapCreate)?)
    }

    /// The map with this number; `None` when it is gone.
    ///
    /// # Errors
    /// What the kernel says: EPERM without CAP_SYS_ADMIN.
    pub fn by_id(id: u32) -> io::Result<Option<Self>> {
        by_id(Command::MapById, id)?.map(Self::opened).transpose()
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
}
