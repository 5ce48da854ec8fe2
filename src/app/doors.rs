//! Binding: every listening socket of the process, by name. Those that were given to it (by a service manager, by the
//! version before) are used where they are what is wanted. The admin port comes first and without `SO_REUSEPORT`, so that a
//! second adit fails at once. What cannot be bound fails the start: never a degraded run.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use thiserror::Error;
use tokio::net::{TcpListener, UnixListener};

use crate::admin::http::HttpListener;
use crate::config::Settings;
use crate::config::settings::{AdminAddr, IdentitySource};
use crate::lifecycle::Inherited;
use crate::net::adopt::{Adopted, adopt_or_bind};
use crate::net::listen::{ListenError, ListenOptions};
use crate::proxy::loops::OwnPorts;
use crate::proxy::worker::WorkerDoor;
use crate::telemetry::Door;

/// A listener that could not be made.
#[derive(Debug, Error)]
pub(super) enum BindError {
    #[error(transparent)]
    Tcp(#[from] ListenError),
    #[error("listener admin cannot listen on unix:{path}: {step}")]
    Unix {
        path: PathBuf,
        step: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("listener {name} cannot be watched")]
    Register {
        name: &'static str,
        #[source]
        source: std::io::Error,
    },
}

/// Everything that is bound.
#[derive(Debug, Default)]
pub(super) struct Doors {
    pub(super) admin: Option<HttpListener>,
    pub(super) metrics: Option<HttpListener>,
    pub(super) readiness: Option<HttpListener>,
    /// One list per worker.
    pub(super) data: Vec<Vec<WorkerDoor>>,
    /// Where each data door really listens (port 0 becomes a port).
    pub(super) addresses: Vec<(Door, SocketAddr)>,
    /// Where the HTTP ports really listen, by name.
    pub(super) http_addresses: Vec<(&'static str, String)>,
    pub(super) own_ports: OwnPorts,
    /// All sockets, for the next version.
    pub(super) handles: Vec<Handle>,
    /// See [`SocketFile`].
    socket_file: Option<SocketFile>,
    /// How many sockets were given and are in use.
    pub(super) taken: usize,
    /// Listeners that were opened by this process.
    pub(super) opened: Vec<&'static str>,
    /// Names of what was given and is of no use.
    pub(super) left: Vec<String>,
}

/// One listening socket, as the next version gets it. Does not keep a data socket open that its door has closed.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) name: &'static str,
    socket: HandleOf,
}

#[derive(Debug)]
enum HandleOf {
    Door(Weak<std::net::TcpListener>),
    Surface(Arc<OwnedFd>),
}

/// A socket that is kept open.
#[derive(Debug)]
pub(super) enum Held {
    Door(Arc<std::net::TcpListener>),
    Surface(Arc<OwnedFd>),
}

impl Handle {
    /// The socket, if it is still open.
    pub(super) fn hold(&self) -> Option<Held> {
        match &self.socket {
            HandleOf::Door(listener) => listener.upgrade().map(Held::Door),
            HandleOf::Surface(socket) => Some(Held::Surface(Arc::clone(socket))),
        }
    }
}

impl AsFd for Held {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        match self {
            Self::Door(listener) => listener.as_fd(),
            Self::Surface(socket) => socket.as_fd(),
        }
    }
}

/// The admin API's socket file. Dropped, it is removed if it is this process's.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    owned: Arc<AtomicBool>,
}

impl SocketFile {
    fn new(path: &Path, owned: bool) -> Self {
        Self { path: path.to_owned(), owned: Arc::new(AtomicBool::new(owned)) }
    }

    /// Whether it is this process that serves there: not before it has taken over, not after another one has.
    pub(super) fn owned(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.owned)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.owned.load(Ordering::Relaxed) {
            // Gone already is as good.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Doors {
    /// See [`SocketFile::owned`].
    pub(super) fn owns_socket_file(&self) -> Option<Arc<AtomicBool>> {
        self.socket_file.as_ref().map(SocketFile::owned)
    }

    /// Opens all doors that are on, for `workers` data workers, with what was `given` as far as it fits. Must run inside the
    /// control runtime.
    ///
    /// # Errors
    /// The first listener that could not be made.
    pub(super) fn bind(settings: &Settings, workers: usize, mut given: Inherited) -> Result<Self, BindError> {
        let mut doors = Self { data: (0..workers).map(|_| Vec::new()).collect(), ..Self::default() };
        let mut own_ports = Vec::new();
        match &settings.listen.admin {
            None => {}
            Some(AdminAddr::Tcp(address)) => {
                let (listener, bound) = doors.http("admin", *address, &mut given)?;
                own_ports.push(bound.port());
                doors.admin = Some(listener);
            }
            Some(AdminAddr::Unix(path)) => doors.admin = Some(doors.http_on_file(path, &mut given)?),
        }
        if let Some(address) = settings.listen.metrics {
            doors.metrics = Some(doors.http("metrics", address, &mut given)?.0);
        }
        if let Some(address) = settings.listen.readiness {
            doors.readiness = Some(doors.http("readiness", address, &mut given)?.0);
        }
        for (door, address) in [
            (Door::Outbound, settings.listen.outbound),
            (Door::Inbound, settings.listen.inbound),
            (Door::Socks5, settings.listen.socks5),
            (Door::Hbone, settings.listen.hbone.filter(|_| settings.identity.source != IdentitySource::None)),
        ] {
            if let Some(address) = address {
                let bound = doors.bind_data(door, address, settings, workers, &mut given)?;
                own_ports.push(bound.port());
                doors.addresses.push((door, bound));
            }
        }
        doors.own_ports = OwnPorts::new(own_ports);
        for (name, _closed) in given.into_rest() {
            tracing::warn!(%name, "a socket was given for a listener that is off or that nobody knows: closed");
            doors.left.push(name);
        }
        Ok(doors)
    }

    fn bind_data(
        &mut self,
        door: Door,
        address: SocketAddr,
        settings: &Settings,
        workers: usize,
        given: &mut Inherited,
    ) -> Result<SocketAddr, BindError> {
        let captures = matches!(door, Door::Outbound | Door::Inbound);
        let transparent = match door {
            Door::Outbound => settings.capture.is_transparent_outbound(),
            Door::Inbound => settings.capture.is_transparent_inbound(),
            Door::Hbone | Door::Socks5 => false,
        };
        // Not under tproxy: there the answers of an accepted connection come from a foreign address, and with the mark
        // the rules would take them for a connection that adit opens from a client's address.
        let mark = settings.packet_mark.filter(|_| captures && !transparent).map(std::num::NonZeroU32::get);
        let options = ListenOptions { sockets: workers, mark, transparent, keepalive: Some(settings.keepalive) };
        let name = door.as_str();
        let before = self.taken;
        let listeners = self.open(name, address, options, given)?;
        let adopted = (self.taken > before).then_some(options);
        let first = listeners.iter().flatten().next();
        let bound = first.and_then(|listener| listener.local_addr().ok()).unwrap_or(address);
        let mut seen = std::collections::BTreeSet::new();
        for (worker, listeners) in self.data.iter_mut().zip(listeners) {
            for listener in listeners {
                let listener = Arc::new(listener);
                // A socket that several workers share is handed on once.
                if rustix::fs::fstat(&*listener).map_or(true, |of| seen.insert(of.st_ino)) {
                    self.handles.push(Handle { name, socket: HandleOf::Door(Arc::downgrade(&listener)) });
                }
                worker.push(WorkerDoor { door, listener, adopted });
            }
        }
        Ok(bound)
    }

    fn http(
        &mut self,
        name: &'static str,
        address: SocketAddr,
        given: &mut Inherited,
    ) -> Result<(HttpListener, SocketAddr), BindError> {
        let register = |source| BindError::Register { name, source };
        let listeners = self.open(name, address, ListenOptions::PLAIN, given)?;
        let mut listeners = listeners.into_iter().flatten();
        let listener = listeners.next().ok_or_else(|| register(std::io::ErrorKind::NotFound.into()))?;
        for _closed in listeners {
            self.refuse(name, "there is one already");
        }
        self.surface(name, listener.try_clone().map_err(register)?.into());
        let listener = TcpListener::from_std(listener).map_err(register)?;
        let bound = listener.local_addr().map_err(register)?;
        self.http_addresses.push((name, bound.to_string()));
        Ok((HttpListener::Tcp(listener), bound))
    }

    fn http_on_file(&mut self, path: &Path, given: &mut Inherited) -> Result<HttpListener, BindError> {
        let register = |source| BindError::Register { name: "admin", source };
        self.http_addresses.push(("admin", format!("unix:{}", path.display())));
        for socket in given.take("admin") {
            let listener = std::os::unix::net::UnixListener::from(socket);
            let here = listener.local_addr().is_ok_and(|address| address.as_pathname() == Some(path));
            if !here {
                self.refuse("admin", "it does not listen on that file");
                continue;
            }
            listener.set_nonblocking(true).map_err(register)?;
            self.surface("admin", listener.try_clone().map_err(register)?.into());
            self.taken += 1;
            self.socket_file = Some(SocketFile::new(path, false));
            return Ok(HttpListener::Unix(UnixListener::from_std(listener).map_err(register)?));
        }
        let (listener, file) = unix(path)?;
        self.opened.push("admin");
        self.surface("admin", listener.as_fd().try_clone_to_owned().map_err(register)?);
        self.socket_file = Some(file);
        Ok(HttpListener::Unix(listener))
    }

    /// The sockets of one listener, worker by worker.
    fn open(
        &mut self,
        name: &'static str,
        address: SocketAddr,
        options: ListenOptions,
        given: &mut Inherited,
    ) -> Result<Vec<Vec<std::net::TcpListener>>, BindError> {
        let Adopted { workers, taken, refused } = adopt_or_bind(name, address, options, given.take(name))?;
        for refused in refused {
            self.refuse(name, &refused.why);
        }
        if taken == 0 {
            self.opened.push(name);
        }
        self.taken += taken;
        Ok(workers)
    }

    fn refuse(&mut self, name: &str, why: &str) {
        tracing::warn!(listener = name, why, "a socket that was given is of no use: closed");
        self.left.push(name.to_owned());
    }

    fn surface(&mut self, name: &'static str, socket: OwnedFd) {
        self.handles.push(Handle { name, socket: HandleOf::Surface(Arc::new(socket)) });
    }
}

/// A socket file of mode 0600. A file that nobody listens on any more is replaced; a live one is not.
fn unix(path: &Path) -> Result<(UnixListener, SocketFile), BindError> {
    let fail = |step, source| BindError::Unix { path: path.to_owned(), step, source };
    let is_socket = std::fs::symlink_metadata(path)
        .is_ok_and(|metadata| std::os::unix::fs::FileTypeExt::is_socket(&metadata.file_type()));
    if is_socket {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(fail("another process listens there", std::io::ErrorKind::AddrInUse.into()));
        }
        std::fs::remove_file(path).map_err(|error| fail("remove the stale socket", error))?;
    }
    // Nobody else may connect between bind and chmod.
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(before);
    let listener = listener.map_err(|error| fail("bind", error))?;
    let file = SocketFile::new(path, true);
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(|error| fail("chmod", error))?;
    Ok((listener, file))
}
