//! `adit run`: the settings, and then the daemon.

use super::{Daemon, Exit, Output};
use crate::config::{self, Sources};

pub(super) const EXAMPLE: &str =
    "Settings come from the defaults, each FILE, the environment (ADIT__CONNECT__TIMEOUT=3s) and --set; the later wins.
SIGTERM drains, a second one ends it; SIGHUP reads everything again.

Exit codes: 0 stopped as asked, 1 failed, 64 wrong arguments, 78 wrong settings or mesh files.

Example:
  adit run --config /etc/adit/adit.yaml --config site.yaml --set log.filter=debug";

pub(super) fn execute(sources: Sources, daemon: Daemon, output: &mut Output<'_>) -> Exit {
    match config::load(&sources) {
        Ok(settings) => (daemon.run)(sources, settings),
        Err(problems) => output.problems(&problems),
    }
}
