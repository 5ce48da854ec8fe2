//! Why a file or folder could not be read: one fault per path, in words for an operator.

use std::io;
use std::path::{Path, PathBuf};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {fault}", .path.display())]
pub struct FileError {
    pub path: PathBuf,
    pub fault: FileFault,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FileFault {
    #[error("no such file or folder")]
    Missing,
    #[error("the folder has no *.yaml or *.yml in it")]
    EmptyFolder,
    #[error("not a regular file")]
    NotAFile,
    #[error("larger than {limit} bytes")]
    TooLarge { limit: u64 },
    #[error("more than {limit} bytes together with the files before it")]
    TooMuch { limit: u64 },
    #[error("more than {limit} files")]
    TooMany { limit: usize },
    #[error("changes while it is being read")]
    Unstable,
    #[error("cannot {action}: {error}")]
    Io { action: &'static str, error: String },
}

impl FileError {
    pub(super) fn new(path: &Path, fault: FileFault) -> Self {
        Self { path: path.to_owned(), fault }
    }

    pub(super) fn io(path: &Path, action: &'static str, error: &io::Error) -> Self {
        let fault = match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => FileFault::Missing,
            _ => FileFault::Io { action, error: error.to_string() },
        };
        Self::new(path, fault)
    }

    /// Whether there is nothing there, as opposed to something that cannot be read.
    #[must_use]
    pub fn is_absence(&self) -> bool {
        matches!(self.fault, FileFault::Missing | FileFault::EmptyFolder)
    }
}
