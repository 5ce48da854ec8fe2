//! The program that a later version is started from: its path as it was given at start, so that what has been put there
//! since is what is started, and the arguments of this process.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

/// Says what the link on the standard input is for.
pub const STARTED_BY: &str = "ADIT_STARTED_BY";
/// What a service manager tells the process that it starts, and nobody else.
const NOT_INHERITED: [&str; 4] = ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_PID"];

/// Who starts a process of adit with a link as its standard input: the values of [`STARTED_BY`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Starter {
    Predecessor,
    Supervisor,
    /// It is to start another one in its turn.
    Launcher,
}

impl Starter {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Predecessor => "predecessor",
            Self::Supervisor => "supervisor",
            Self::Launcher => "launcher",
        }
    }

    #[must_use]
    pub fn parse(text: &OsStr) -> Option<Self> {
        [Self::Predecessor, Self::Supervisor, Self::Launcher].into_iter().find(|it| text == it.as_str())
    }
}

/// How this process was started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    path: PathBuf,
    args: Vec<OsString>,
    working_dir: PathBuf,
}

impl Program {
    /// To be called at start: later the file of this process may have another name, or none.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn of_process() -> io::Result<Self> {
        let mut args = std::env::args_os();
        let first = args.next().unwrap_or_default();
        let executable = std::env::current_exe()?;
        let working_dir = std::env::current_dir()?;
        let search = std::env::var_os("PATH").unwrap_or_default();
        let path = named(&first, &working_dir, &search, &executable).unwrap_or_else(|| {
            // Replaced since it was started: then its name is all there is.
            let is_path = first.as_encoded_bytes().contains(&b'/');
            if is_path && !executable.exists() { working_dir.join(&first) } else { executable }
        });
        Ok(Self { path, args: args.collect(), working_dir })
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The same at another path.
    #[must_use]
    pub fn at(&self, path: PathBuf) -> Self {
        Self { path, ..self.clone() }
    }

    /// Starts it with `link` as its standard input.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self, starter: Starter, link: OwnedFd) -> io::Result<Child> {
        self.start_from(&self.path, starter, link)
    }

    /// Starts the program that runs now, whatever lies at its path meanwhile.
    pub(super) fn start_itself(&self, starter: Starter, link: OwnedFd) -> io::Result<Child> {
        self.start_from(Path::new("/proc/self/exe"), starter, link)
    }

    fn start_from(&self, path: &Path, starter: Starter, link: OwnedFd) -> io::Result<Child> {
        let mut command = Command::new(path);
        for variable in NOT_INHERITED {
            command.env_remove(variable);
        }
        command.arg0(&self.path).args(&self.args).current_dir(&self.working_dir);
        if starter == Starter::Supervisor {
            // What a terminal sends to all processes of a group would come to it twice.
            command.process_group(0);
        }
        command.env(STARTED_BY, starter.as_str()).stdin(link).spawn()
    }
}

/// The path that `first`, the name that the program was called by, stands for, if it is the `executable`: a link to it
/// keeps its name, so that a link that is turned to another version is followed.
fn named(first: &OsStr, working_dir: &Path, search: &OsStr, executable: &Path) -> Option<PathBuf> {
    let same = |path: &PathBuf| {
        let (Ok(one), Ok(other)) = (std::fs::metadata(path), std::fs::metadata(executable)) else { return false };
        (one.dev(), one.ino()) == (other.dev(), other.ino())
    };
    if first.as_encoded_bytes().contains(&b'/') {
        return Some(working_dir.join(first)).filter(same);
    }
    std::env::split_paths(search).map(|folder| working_dir.join(folder).join(first)).find(same)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_kept_and_must_be_the_program() {
        let folder = tempfile::tempdir().expect("a folder");
        let (real, link) = (folder.path().join("adit-1"), folder.path().join("adit"));
        std::fs::write(&real, "").expect("written");
        std::fs::write(folder.path().join("other"), "").expect("written");
        std::os::unix::fs::symlink(&real, &link).expect("linked");
        let of = |first: &str| named(OsStr::new(first), folder.path(), folder.path().as_os_str(), &real);
        assert_eq!(of("adit"), Some(link.clone()), "found in the search path");
        assert_eq!(of("./adit"), Some(folder.path().join("./adit")));
        assert_eq!(of(link.to_str().expect("text")), Some(link));
        assert_eq!(of("other"), None, "another file of that name");
        assert_eq!(of("nothing"), None);
        assert_eq!(of(""), None);
    }

    #[test]
    fn only_three_words_are_known() {
        for starter in [Starter::Predecessor, Starter::Supervisor, Starter::Launcher] {
            assert_eq!(Starter::parse(OsStr::new(starter.as_str())), Some(starter));
        }
        assert_eq!(Starter::parse(OsStr::new("init")), None);
    }
}
