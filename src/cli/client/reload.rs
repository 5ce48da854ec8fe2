//! `adit reload`: read settings and state again, now.

use std::io::{self, Write};
use std::time::Duration;

use clap::Args;
use hyper::{Method, StatusCode};

use crate::admin::api::{ReloadReport, Reloading};
use crate::cli::client::{AdminArgs, ClientError, run, table};
use crate::cli::{Exit, Output};

/// Reading a hundred thousand workloads takes a moment.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// Make the running daemon read its settings and its state again
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Example:\n  adit reload\n\nExits with 1 if something was not valid; the old stays in force then."
)]
pub struct ReloadArgs {
    #[command(flatten)]
    pub admin: AdminArgs,

    /// Print the daemon's answer as JSON
    #[arg(long)]
    pub json: bool,
}

impl ReloadArgs {
    /// Blocks until it is done.
    pub fn run(&self, output: &mut Output<'_>) -> Exit {
        run(output, |out, err| self.run_on(out, err))
    }

    pub(super) fn run_on(&self, out: &mut dyn Write, err: &mut dyn Write) -> Result<Exit, ClientError> {
        let timeout = self.admin.timeout.unwrap_or(DEFAULT_TIMEOUT);
        let answer = self.admin.admin.ask(Method::POST, "/reload", timeout)?;
        let report: ReloadReport =
            if answer.status == StatusCode::UNPROCESSABLE_ENTITY { answer.parse()? } else { answer.success()? };
        let written = if self.json { out.write_all(answer.body()) } else { write(&report, out, err) };
        written.map_err(ClientError::Output)?;
        Ok(if report.is_rejected() { Exit::Failed } else { Exit::Ok })
    }
}

fn write(report: &ReloadReport, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<()> {
    part("config", &report.config, out, err)?;
    part("mesh", &report.mesh, out, err)?;
    for key in &report.refused_keys {
        writeln!(err, "warning: {} changes at a restart only", table::shown(key))?;
    }
    Ok(())
}

fn part(name: &str, part: &Reloading, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{name:<7} {:<10} {}", part.result.as_str(), table::shown(&part.hash))?;
    for error in &part.errors {
        // An error's own lines stay lines.
        for line in error.lines() {
            writeln!(err, "{name}: {}", table::shown(line))?;
        }
    }
    Ok(())
}
