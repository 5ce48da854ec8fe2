//! Who has started this process, and what it has brought along: listening sockets by the names of their listeners (from a
//! service manager or from the version before), and the links to whoever started it.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use thiserror::Error;

use super::handover::{self, HandoverError, Version};
use super::link::Link;
use super::program::{STARTED_BY, Starter};
use super::supervisor::{self, Supervised};

/// What a process begins with. The default is that of a program that somebody has called by hand.
#[derive(Debug, Default)]
pub struct Origin {
    /// The version before, which serves until this one can.
    pub predecessor: Option<(Version, Link)>,
    /// Versions before it that still drain.
    pub draining: Vec<(Version, OwnedFd)>,
    /// What is pid 1 for this process.
    pub supervisor: Option<Supervised>,
    /// Listening sockets.
    pub sockets: Inherited,
}

/// Listening sockets that were given to this process, by name.
#[derive(Debug, Default)]
pub struct Inherited {
    sockets: Vec<(String, OwnedFd)>,
}

#[derive(Debug, Error)]
pub enum OriginError {
    #[error("{STARTED_BY} is set, but the standard input is no link to another adit: it is not for setting by hand")]
    NoLink(#[source] io::Error),
    #[error("the sockets of the service manager cannot be taken over")]
    Activation(#[source] io::Error),
    #[error("the version before could not hand over")]
    Handover(#[source] HandoverError),
    #[error("the supervisor did not say what to do")]
    Supervisor(#[source] io::Error),
}

impl Origin {
    /// Takes what there is, once, before any other thread exists.
    ///
    /// # Errors
    /// When something is there and cannot be used.
    pub fn of_process() -> Result<Self, OriginError> {
        match std::env::var_os(STARTED_BY).as_deref().map(Starter::parse) {
            None => Ok(Self { sockets: Inherited::of_service_manager()?, ..Self::default() }),
            Some(None) => Err(OriginError::NoLink(io::ErrorKind::InvalidInput.into())),
            Some(Some(Starter::Predecessor)) => {
                let link = link_of_stdin().map_err(OriginError::NoLink)?;
                Self::default().succeed(link)
            }
            // It never comes this far.
            Some(Some(Starter::Launcher)) => Err(OriginError::NoLink(io::ErrorKind::InvalidInput.into())),
            Some(Some(Starter::Supervisor)) => {
                let link = link_of_stdin().map_err(OriginError::NoLink)?;
                let begin = supervisor::begin(link).map_err(OriginError::Supervisor)?;
                let sockets = Inherited { sockets: begin.sockets };
                let origin = Self { supervisor: Some(begin.supervised), sockets, ..Self::default() };
                match begin.predecessor {
                    Some(link) => origin.succeed(link),
                    None => Ok(origin),
                }
            }
        }
    }

    fn succeed(mut self, link: Link) -> Result<Self, OriginError> {
        match handover::receive(&link) {
            Ok(legacy) => {
                self.predecessor = Some((legacy.from, link));
                self.draining = legacy.draining;
                self.sockets = Inherited { sockets: legacy.sockets };
                Ok(self)
            }
            Err(error) => {
                handover::fail(&link, &error.to_string());
                Err(OriginError::Handover(error))
            }
        }
    }
}

impl Inherited {
    /// What `LISTEN_FDS` names, if it is meant for this process.
    ///
    /// # Errors
    /// When the variables do not agree with each other or with what is open.
    pub fn of_service_manager() -> Result<Self, OriginError> {
        let named = sd_notify::listen_fds_with_names().map_err(OriginError::Activation)?;
        Ok(Self { sockets: named.map(|(number, name)| (name, owned(number))).collect() })
    }

    /// All sockets of that name; they are not here any more then.
    pub fn take(&mut self, name: &str) -> Vec<OwnedFd> {
        self.sockets.extract_if(.., |(known, _)| known == name).map(|(_, socket)| socket).collect()
    }

    /// What has not been taken, name by name.
    pub fn into_rest(self) -> Vec<(String, OwnedFd)> {
        self.sockets
    }
}

#[expect(unsafe_code, reason = "a number in an environment variable is all that a service manager gives")]
fn owned(number: std::os::fd::RawFd) -> OwnedFd {
    use std::os::fd::FromRawFd as _;
    // SAFETY: the service manager has opened it for this process and for nobody else in it: numbers from 3 on, which the
    // library has checked to be open by setting FD_CLOEXEC on each. Called once, before anything else is opened.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// What a launcher has been started with.
///
/// # Errors
/// When there is no such thing.
pub fn launcher_link() -> Result<Link, OriginError> {
    link_of_stdin().map_err(OriginError::NoLink)
}

/// Takes the link, and leaves nothing to read in its place.
fn link_of_stdin() -> io::Result<Link> {
    let link = Link::from_given(io::stdin().as_fd().try_clone_to_owned()?)?;
    rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
    Ok(link)
}
