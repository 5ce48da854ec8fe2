//! Links: what keeps a program at a network namespace, for as long as a descriptor or a name in a BPF file system has it, and the
//! namespace lives.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::{Block, Command, Hook, Program, ask, by_id, word_at};

/// A program's place.
#[derive(Debug)]
pub struct Link(OwnedFd);

impl Link {
    /// Runs `program` at `hook` of a network namespace.
    ///
    /// # Errors
    /// What the kernel says: E2BIG when there are 64 already.
    pub fn create(program: &Program, hook: Hook, namespace: BorrowedFd<'_>) -> io::Result<Self> {
        let block = Block::new().fd(0, program.fd()).fd(4, namespace).word(8, hook.attach_type());
        block.open(Command::LinkCreate).map(Self)
    }

    /// The link with this number; `None` when it is gone.
    ///
    /// # Errors
    /// What the kernel says: EPERM without CAP_SYS_ADMIN.
    pub fn by_id(id: u32) -> io::Result<Option<Self>> {
        Ok(by_id(Command::LinkById, id)?.map(Self))
    }

    /// The number of its program.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn program(&self) -> io::Result<u32> {
        let mut info = [0_u8; 64];
        ask(self.0.as_fd(), &mut info)?;
        Ok(word_at(&info, 8))
    }

    /// Another program runs in the place of the one that does, without a moment between.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn update(&self, program: &Program) -> io::Result<()> {
        Block::new().fd(0, self.0.as_fd()).fd(4, program.fd()).call(Command::LinkUpdate).map(drop)
    }

    /// A name for it, which keeps it.
    ///
    /// # Errors
    /// EPERM outside a BPF file system, EEXIST when the name is taken; what the kernel says.
    pub fn pin(&self, path: &Path) -> io::Result<()> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        Block::new().input(0, path.as_bytes_with_nul()).fd(8, self.0.as_fd()).call(Command::Pin).map(drop)
    }

    /// The program runs no more, whoever still has the link.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn detach(&self) -> io::Result<()> {
        Block::new().fd(0, self.0.as_fd()).call(Command::LinkDetach).map(drop)
    }
}

/// The numbers of all links that the kernel has.
///
/// # Errors
/// What the kernel says: EPERM without CAP_SYS_ADMIN in the first user namespace.
pub fn links() -> io::Result<Vec<u32>> {
    super::numbers(Command::LinkNextId)
}
