//! Binding: every listening socket of the process, by name. The admin port comes first and without `SO_REUSEPORT`, so
//! that a second adit fails at once. What cannot be bound fails the start: never a degraded run.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use thiserror::Error;
use tokio::net::{TcpListener, UnixListener};

use crate::admin::http::HttpListener;
use crate::config::Settings;
use crate::config::settings::{AdminAddr, Capture, IdentitySource};
use crate::net::listen::{ListenError, ListenOptions, bind};
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
    /// Removed when this is dropped.
    _socket_file: Option<SocketFile>,
}

#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Doors {
    /// Binds all doors that are on, for `workers` data workers. Must run inside the control runtime.
    ///
    /// # Errors
    /// The first listener that could not be made.
    pub(super) fn bind(settings: &Settings, workers: usize) -> Result<Self, BindError> {
        let mut doors = Self { data: (0..workers).map(|_| Vec::new()).collect(), ..Self::default() };
        let mut own_ports = Vec::new();
        match &settings.listen.admin {
            None => {}
            Some(AdminAddr::Tcp(address)) => {
                let (listener, bound) = http("admin", *address)?;
                own_ports.push(bound.port());
                doors.http_addresses.push(("admin", bound.to_string()));
                doors.admin = Some(listener);
            }
            Some(AdminAddr::Unix(path)) => {
                let (listener, file) = unix(path)?;
                doors.http_addresses.push(("admin", format!("unix:{}", path.display())));
                doors.admin = Some(listener);
                doors._socket_file = Some(file);
            }
        }
        for (name, address, slot) in [
            ("metrics", settings.listen.metrics, &mut doors.metrics),
            ("readiness", settings.listen.readiness, &mut doors.readiness),
        ] {
            if let Some(address) = address {
                let (listener, bound) = http(name, address)?;
                doors.http_addresses.push((name, bound.to_string()));
                *slot = Some(listener);
            }
        }
        for (door, address) in [
            (Door::Outbound, settings.listen.outbound),
            (Door::Inbound, settings.listen.inbound),
            (Door::Socks5, settings.listen.socks5),
            (Door::Hbone, settings.listen.hbone.filter(|_| settings.identity.source != IdentitySource::None)),
        ] {
            if let Some(address) = address {
                let bound = doors.bind_data(door, address, settings, workers)?;
                own_ports.push(bound.port());
                doors.addresses.push((door, bound));
            }
        }
        doors.own_ports = OwnPorts::new(own_ports);
        Ok(doors)
    }

    fn bind_data(
        &mut self,
        door: Door,
        address: SocketAddr,
        settings: &Settings,
        workers: usize,
    ) -> Result<SocketAddr, BindError> {
        let captures = matches!(door, Door::Outbound | Door::Inbound);
        let transparent = captures && settings.capture == Capture::Tproxy;
        // Not under tproxy: there the answers of an accepted connection come from a foreign address, and with the mark
        // the rules would take them for a connection that adit opens from a client's address.
        let mark = settings.packet_mark.filter(|_| captures && !transparent).map(std::num::NonZeroU32::get);
        let options = ListenOptions { sockets: workers, mark, transparent, keepalive: Some(settings.keepalive) };
        let listeners = bind(door.as_str(), address, options)?;
        let bound = listeners.first().and_then(|listener| listener.local_addr().ok()).unwrap_or(address);
        for (worker, listener) in self.data.iter_mut().zip(listeners) {
            worker.push(WorkerDoor { door, listener });
        }
        Ok(bound)
    }
}

fn http(name: &'static str, address: SocketAddr) -> Result<(HttpListener, SocketAddr), BindError> {
    let register = |source| BindError::Register { name, source };
    let mut listeners = bind(name, address, ListenOptions::PLAIN)?;
    let listener = TcpListener::from_std(listeners.remove(0)).map_err(register)?;
    let bound = listener.local_addr().map_err(register)?;
    Ok((HttpListener::Tcp(listener), bound))
}

/// A socket file of mode 0600. A file that nobody listens on any more is replaced; a live one is not.
fn unix(path: &Path) -> Result<(HttpListener, SocketFile), BindError> {
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
    let file = SocketFile(path.to_owned());
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(|error| fail("chmod", error))?;
    Ok((HttpListener::Unix(listener), file))
}
