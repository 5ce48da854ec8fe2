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
    /// Those of adit's own.
    pub const ALL: [Self; 4] = [Self::Ok, Self::Failed, Self::Usage, Self::BadConfig];

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

    /// For the manual.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Ok => "It was done; a daemon has ended as it was told to, whether or not connections had to be cut.",
            Self::Failed => "It was tried and did not work.",
            Self::Usage => "The arguments make no sense.",
            Self::BadConfig => "Settings, mesh files or the identity are not valid.",
            Self::Other(_) => "What another process has said in its place.",
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}
