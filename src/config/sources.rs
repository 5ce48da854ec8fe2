//! Where settings come from, as a value: the loader reads the files named here and nothing else, so it can be tested.
//!
//! This is the one place that reads the process environment.

use std::ffi::OsString;
use std::path::PathBuf;

/// All layers, weakest first: built-in defaults, `built_in`, `files` in order, `environment`, `flags` in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sources {
    pub built_in: Option<BuiltIn>,
    pub files: Vec<PathBuf>,
    /// Only names that begin with `ADIT__`, in any case, are settings; `XDG_STATE_HOME` and `HOME` say where the default
    /// of `identity.dev.folder` is.
    pub environment: Vec<(OsString, OsString)>,
    /// Key path and value of each `--set`.
    pub flags: Vec<(String, String)>,
    /// What relative paths of the environment and the flags, and of relative `files`, start from.
    pub working_dir: PathBuf,
    /// The default of `node`.
    pub host_name: String,
}

/// A settings file that is part of the binary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuiltIn {
    /// Its path in the source tree, for messages.
    pub name: &'static str,
    pub text: &'static str,
    /// What its relative paths start from.
    pub base: PathBuf,
}

impl Sources {
    /// These files and flags, with the environment of this process.
    pub fn of_process(files: Vec<PathBuf>, flags: Vec<(String, String)>) -> Self {
        Self {
            built_in: None,
            files,
            environment: process_environment(),
            flags,
            // Without a working directory relative paths stay relative, and fail where they are used.
            working_dir: std::env::current_dir().unwrap_or_default(),
            host_name: host_name(),
        }
    }
}

impl Sources {
    /// Where adit keeps what outlives the process for the user; nothing if the environment does not say.
    pub(super) fn state_folder(&self) -> Option<PathBuf> {
        let variable = |name: &str| {
            let (_, value) = self.environment.iter().find(|(known, _)| known == name)?;
            Some(PathBuf::from(value)).filter(|path| path.is_absolute())
        };
        let state = variable("XDG_STATE_HOME").or_else(|| Some(variable("HOME")?.join(".local/state")));
        state.map(|state| state.join("adit"))
    }
}

/// The host name as the kernel has it; in a pod that is the pod's.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[expect(clippy::disallowed_methods, reason = "this is the place")]
fn process_environment() -> Vec<(OsString, OsString)> {
    std::env::vars_os().collect()
}
