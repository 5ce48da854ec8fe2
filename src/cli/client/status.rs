//! `adit status`: how the daemon is.

use std::io::{self, Write};

use clap::Args;
use hyper::Method;

use crate::admin::api::{DrainingVersion, SourceStatus, Status};
use crate::cli::client::{AdminArgs, ClientError, run, table};
use crate::cli::{Exit, Output};

/// Show how the running daemon is
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:\n  adit status --json | jq .ready")]
pub struct StatusArgs {
    #[command(flatten)]
    pub admin: AdminArgs,

    /// Print the daemon's answer as JSON
    #[arg(long)]
    pub json: bool,
}

impl StatusArgs {
    /// Blocks until it is done.
    pub fn run(&self, output: &mut Output<'_>) -> Exit {
        run(output, |out, _| self.run_on(out))
    }

    pub(super) fn run_on(&self, out: &mut dyn Write) -> Result<Exit, ClientError> {
        let answer = self.admin.ask(Method::GET, "/status")?;
        let status: Status = answer.success()?;
        let written = if self.json { out.write_all(answer.body()) } else { write(&status, out) };
        written.map_err(ClientError::Output)?;
        Ok(Exit::Ok)
    }
}

fn write(status: &Status, out: &mut dyn Write) -> io::Result<()> {
    let mut line = |name: &str, value: &str| writeln!(out, "{name:<12} {}", table::shown(value));
    line("version", &status.version)?;
    line("pid", &status.pid.to_string())?;
    line("mode", &status.mode)?;
    line("up", &table::age(status.uptime_ms))?;
    line("phase", &status.phase)?;
    line("ready", if status.ready { "yes" } else { "no" })?;
    for blocker in &status.blockers {
        let error = blocker.error.as_deref().unwrap_or("waiting");
        line("  blocked by", &format!("{} since {}: {error}", blocker.name, blocker.since))?;
    }
    line("workers", &status.workers.to_string())?;
    line("connections", &count(status.connections.open, status.connections.limit))?;
    for listener in &status.connections.listeners {
        let open = count(listener.open, listener.limit);
        line(&format!("  {}", listener.name.as_str()), &format!("{open} on {}", listener.address))?;
    }
    if let Some(tunnels) = &status.tunnels {
        line("tunnels", &(tunnels.to_peers.tunnels + tunnels.from_peers.tunnels).to_string())?;
        for (name, of) in [("to peers", tunnels.to_peers), ("from peers", tunnels.from_peers)] {
            line(&format!("  {name}"), &format!("{}, open streams {}", of.tunnels, of.streams))?;
        }
    }
    source(&mut line, "config", &status.config)?;
    source(&mut line, "mesh", &status.mesh)?;
    for version in &status.draining {
        let connections = version.connections.map_or_else(|| "some".to_owned(), |count| count.to_string());
        let until = version.until.as_ref().map_or_else(String::new, |until| format!(", until {until}"));
        let DrainingVersion { pid, version, .. } = version;
        line("draining", &format!("{connections} connections in pid {pid}, version {version}{until}"))?;
    }
    if !status.refused_keys.is_empty() {
        line("restart for", &status.refused_keys.join(", "))?;
    }
    Ok(())
}

fn source(line: &mut impl FnMut(&str, &str) -> io::Result<()>, name: &str, source: &SourceStatus) -> io::Result<()> {
    let mut value = if source.source.is_empty() { "none".to_owned() } else { source.source.join(", ") };
    for (what, count) in &source.counts {
        value.push_str(&format!(", {count} {what}"));
    }
    if let Some(applied_at) = &source.applied_at {
        value.push_str(&format!(", applied {applied_at}"));
    }
    if !source.hash.is_empty() {
        value.push_str(&format!(", hash {}", source.hash));
    }
    line(name, &value)?;
    if let Some(rejection) = &source.rejected {
        for error in &rejection.errors {
            line("  rejected", &format!("{}: {error}", rejection.at))?;
        }
    }
    Ok(())
}

fn count(open: u64, limit: Option<u64>) -> String {
    limit.map_or_else(|| open.to_string(), |limit| format!("{open} of {limit}"))
}
