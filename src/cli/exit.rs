//! What the process says to whoever started it.

use std::process::ExitCode;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Ok,
    /// It was tried and did not work.
    Failed,
    /// The arguments make no sense (`EX_USAGE`).
    Usage,
    /// Settings or mesh files are wrong (`EX_CONFIG`).
    BadConfig,
    /// What another process has said in its place.
    Other(u8),
}

impl Exit {
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Failed => 1,
            Self::Usage => 64,
            Self::BadConfig => 78,
            Self::Other(code) => code,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}
