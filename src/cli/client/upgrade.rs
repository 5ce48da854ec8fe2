//! `adit upgrade`: let the program that is installed now take over from the one that runs.

use std::io::{self, Write};
use std::time::Duration;

use clap::Args;
use hyper::Method;

use crate::admin::api::UpgradeReport;
use crate::cli::client::{AdminArgs, ClientError, run, table};
use crate::cli::{Exit, Output};

/// The daemon itself gives up earlier.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// Replace the running daemon by the program that is installed now, without losing a connection
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:
  install -m 755 adit-new /usr/local/bin/adit && adit upgrade

The running daemon starts the program at its own path with its own arguments, and hands its
listening sockets over. Once the new one accepts, the old one finishes its connections
(shutdown.deadline) and ends; connections do not move. Exits with 1 when the new one could not
serve: then nothing has changed.")]
pub struct UpgradeArgs {
    #[command(flatten)]
    pub admin: AdminArgs,

    /// Print the daemon's answer as JSON
    #[arg(long)]
    pub json: bool,
}

impl UpgradeArgs {
    /// Blocks until it is done.
    pub fn run(&self, output: &mut Output<'_>) -> Exit {
        run(output, |out, _| self.run_on(out))
    }

    pub(super) fn run_on(&self, out: &mut dyn Write) -> Result<Exit, ClientError> {
        let timeout = self.admin.timeout.unwrap_or(DEFAULT_TIMEOUT);
        let answer = self.admin.admin.ask(Method::POST, "/upgrade", timeout)?;
        let report: UpgradeReport = answer.success()?;
        let written = if self.json { out.write_all(answer.body()) } else { write(&report, out) };
        written.map_err(ClientError::Output)?;
        Ok(Exit::Ok)
    }
}

fn write(report: &UpgradeReport, out: &mut dyn Write) -> io::Result<()> {
    let UpgradeReport { from, to, moved, opened, left, connections, until } = report;
    let mut line = |name: &str, value: &str| writeln!(out, "{name:<12} {}", table::shown(value));
    line("from", &format!("pid {}, version {}", from.pid, from.version))?;
    line("to", &format!("pid {}, version {}", to.pid, to.version))?;
    line("moved", &format!("{moved} listening sockets"))?;
    for (name, listeners) in [("opened", opened), ("not moved", left)] {
        if !listeners.is_empty() {
            line(name, &listeners.join(", "))?;
        }
    }
    let until = until.as_ref().map_or_else(|| "until the last has ended".to_owned(), |until| format!("until {until}"));
    line("draining", &format!("{connections} connections in pid {}, {until}", from.pid))
}
