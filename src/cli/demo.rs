//! `adit demo`: the daemon on the files of `config/demo/`.

use super::{Daemon, Exit};
use crate::config::Sources;

pub(super) const EXAMPLE: &str =
    "Opens a SOCKS5 door on 127.0.0.1:15080 in front of a mesh of one echo service, which is reached
through a mutual TLS tunnel with adit at both ends. The certificates are made for this run.

Example:
  adit demo
  curl --proxy socks5h://127.0.0.1:15080 http://echo.demo.svc.cluster.local/";

/// No settings are loaded here: the demo's own come first, and only it knows where their mesh file is.
pub(super) fn execute(sources: Sources, daemon: Daemon) -> Exit {
    (daemon.demo)(sources)
}
