//! `adit run`: the settings, and then the daemon.

use clap::Args;

use super::{ConfigArgs, Daemon, Exit};
use crate::config::Sources;
use crate::lifecycle::program::{STARTED_BY, Starter};

pub(super) const EXAMPLE: &str =
    "Settings come from the defaults, each FILE, the environment (ADIT__CONNECT__TIMEOUT=3s) and --set; the later wins.
SIGTERM drains, a second one ends it; SIGHUP reads everything again; SIGUSR2 upgrades.

Exit codes: 0 stopped as asked, 1 failed, 64 wrong arguments, 78 wrong settings or mesh files.

Example:
  adit run --config /etc/adit/adit.yaml --config site.yaml --set log.filter=debug";

/// Run the daemon
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    pub(super) config: ConfigArgs,

    /// Run the daemon as a child, as is done where this is process 1: so that it can be upgraded where a container ends with
    /// its first process
    #[arg(long)]
    pub(super) supervise: bool,
}

pub(super) fn execute(args: RunArgs, process: &Sources, daemon: Daemon) -> Exit {
    let is_first = std::process::id() == 1 || args.supervise;
    match std::env::var_os(STARTED_BY).as_deref().map(Starter::parse) {
        Some(Some(Starter::Launcher)) => (daemon.launch)(),
        // What a supervisor has started is not to be one.
        Some(_) => (daemon.run)(args.config.sources(process)),
        None if is_first => (daemon.supervise)(),
        None => (daemon.run)(args.config.sources(process)),
    }
}
