//! `adit healthcheck`: a probe for containers that have no shell and no curl.

use std::io::Write;
use std::time::Duration;

use clap::Args;
use hyper::{Method, StatusCode};

use crate::admin::api::BlockerInfo;
use crate::cli::client::{Address, ClientError, parse_timeout, run, table};
use crate::cli::{Exit, Output};

/// Exit with 0 if the running daemon is ready, else with 1 and the reasons
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:\n  adit healthcheck --timeout 2s")]
pub struct HealthcheckArgs {
    /// The daemon's readiness port: IP:PORT, localhost:PORT, PORT, or unix:/PATH
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15021")]
    pub readiness: Address,

    /// How long to wait for the answer
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = parse_timeout)]
    pub timeout: Duration,

    /// Ask whether it is alive instead of whether it is ready
    #[arg(long)]
    pub live: bool,
}

impl HealthcheckArgs {
    /// Blocks until it is done.
    pub fn run(&self, output: &mut Output<'_>) -> Exit {
        run(output, |out, err| self.run_on(out, err))
    }

    pub(super) fn run_on(&self, out: &mut dyn Write, err: &mut dyn Write) -> Result<Exit, ClientError> {
        let (path, good, bad) =
            if self.live { ("/healthz/live", "live", "stuck") } else { ("/healthz/ready", "ready", "not ready") };
        let answer = self.readiness.ask(Method::GET, path, self.timeout)?;
        match answer.status {
            StatusCode::OK => writeln!(out, "{good}").map_err(ClientError::Output)?,
            StatusCode::SERVICE_UNAVAILABLE => {
                for blocker in answer.parse::<Vec<BlockerInfo>>()? {
                    let error = blocker.error.as_deref().unwrap_or("waiting");
                    let told = format!("{} since {}: {error}", blocker.name, blocker.since);
                    writeln!(err, "{bad}: {}", table::shown(&told)).map_err(ClientError::Output)?;
                }
                return Ok(Exit::Failed);
            }
            _ => return Err(answer.refused()),
        }
        Ok(Exit::Ok)
    }
}
