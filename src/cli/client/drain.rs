//! `adit drain`: tell the daemon to finish and exit, as SIGTERM does; for images without a shell.

use std::io::Write;

use clap::Args;
use hyper::Method;

use crate::cli::client::{AdminArgs, ClientError, run};
use crate::cli::{Exit, Output};

/// Make the running daemon finish its connections and exit
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Example:\n  adit drain\n\nReturns once the drain has begun; shutdown.deadline says how long it may take."
)]
pub struct DrainArgs {
    #[command(flatten)]
    pub admin: AdminArgs,
}

impl DrainArgs {
    /// Blocks until it is done.
    pub fn run(&self, output: &mut Output<'_>) -> Exit {
        run(output, |out, _| self.run_on(out))
    }

    pub(super) fn run_on(&self, out: &mut dyn Write) -> Result<Exit, ClientError> {
        let _accepted: serde_json::Value = self.admin.ask(Method::POST, "/drain")?.success()?;
        writeln!(out, "draining").map_err(ClientError::Output)?;
        Ok(Exit::Ok)
    }
}
