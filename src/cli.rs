//! The command line: arguments in, a command done, an exit code out. One file per subcommand.
//!
//! Data goes to stdout, everything else to stderr; an error is one line and a `hint:`. Exit codes are [`Exit`]'s.
//! Deliberately absent: the daemon itself. `run` and `demo` check the settings here and hand them to [`Daemon`], which
//! `main` fills in.

mod certs;
mod check;
pub mod client;
mod completions;
mod demo;
mod exit;
mod explain;
mod man;
mod output;
mod redirect;
mod reference;
mod run;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory as _, Parser, Subcommand};

use crate::config::{Problems, Settings, Sources};

pub use check::MeshSummary;
pub use exit::Exit;
pub use output::Output;

/// What the commands call that lives above this room.
#[derive(Debug, Clone, Copy)]
pub struct Daemon {
    /// Runs until told to stop. A reload reads the sources again.
    pub run: fn(Sources) -> Exit,
    /// Runs this command again, in a child, until the last version of that has ended.
    pub supervise: fn() -> Exit,
    /// Starts a later version for the daemon that runs, and waits.
    pub launch: fn() -> Exit,
    /// As `run`, with the demo's own files and echo server; the sources have no settings file of the demo yet.
    pub demo: fn(Sources) -> Exit,
    /// Loads the mesh files as `run` would, and everything that is wrong with them.
    pub check_mesh: fn(&Settings) -> Result<MeshSummary, Problems>,
}

/// A transparent TCP proxy for workloads: captures and resolves their connections, carries them in the clear or in mutual TLS
/// tunnels (HBONE), and accounts for them.
#[derive(Debug, Parser)]
#[command(name = "adit", version, args_conflicts_with_subcommands = true, max_term_width = 100, after_help = EXAMPLE)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: run::RunArgs,
}

const EXAMPLE: &str = "Without a command: run.

Examples:
  adit demo
  adit check --config adit.yaml && adit --config adit.yaml";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon
    #[command(after_help = run::EXAMPLE)]
    Run(run::RunArgs),
    /// Say everything that is wrong with the settings, the mesh files and the identity
    #[command(after_help = check::EXAMPLE)]
    Check(ConfigArgs),
    /// Run a small mesh on loopback to try things out; needs no privileges
    #[command(after_help = demo::EXAMPLE)]
    Demo(ConfigArgs),
    /// Say step by step what adit would do with a connection
    #[command(after_help = explain::EXAMPLE)]
    Explain(Box<explain::ExplainArgs>),
    Certs(certs::CertsArgs),
    Redirect(redirect::RedirectArgs),
    /// Show how a running daemon is
    Status(client::status::StatusArgs),
    /// List the connections of a running daemon
    Connections(client::connections::ConnectionsArgs),
    /// Make a running daemon read its settings and mesh files again
    Reload(client::reload::ReloadArgs),
    /// Make a running daemon finish its connections and stop
    Drain(client::drain::DrainArgs),
    /// Replace a running daemon by the program that is installed now, without losing a connection
    Upgrade(client::upgrade::UpgradeArgs),
    /// Exit with 0 when a running daemon is ready
    Healthcheck(client::healthcheck::HealthcheckArgs),
    /// Print a completion script for a shell
    #[command(after_help = completions::EXAMPLE)]
    Completions(completions::CompletionsArgs),
    /// Write the manual pages, for packages
    #[command(hide = true, after_help = man::EXAMPLE)]
    Man(man::ManArgs),
    /// Print the reference of all settings as Markdown
    #[command(hide = true, after_help = reference::EXAMPLE)]
    Reference,
}

/// Where settings come from, beside the environment.
#[derive(Debug, Clone, Default, Args)]
pub struct ConfigArgs {
    /// A settings file; of several the later wins, key by key
    #[arg(long, value_name = "FILE")]
    config: Vec<PathBuf>,
    /// One setting, such as connect.timeout=3s; wins over files and environment
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
}

impl ConfigArgs {
    /// These, in the surroundings of this process.
    fn sources(self, process: &Sources) -> Sources {
        Sources { files: self.config, flags: self.set, ..process.clone() }
    }
}

/// Does what the process was asked for.
pub fn run(args: impl IntoIterator<Item = OsString>, daemon: Daemon) -> ExitCode {
    let (mut stdout, mut stderr) = (std::io::stdout(), std::io::stderr());
    let mut output = Output { data: &mut stdout, messages: &mut stderr };
    run_in(args, daemon, &Sources::of_process(Vec::new(), Vec::new()), &mut output).into()
}

/// As [`run()`], with nothing taken from the process.
fn run_in(
    args: impl IntoIterator<Item = OsString>,
    daemon: Daemon,
    process: &Sources,
    output: &mut Output<'_>,
) -> Exit {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => return refuse(&error, output),
    };
    match cli.command.unwrap_or(Command::Run(cli.run)) {
        Command::Run(args) => run::execute(args, process, daemon),
        Command::Check(config) => check::execute(&config.sources(process), daemon, output),
        Command::Demo(config) => demo::execute(config.sources(process), daemon),
        Command::Explain(args) => explain::execute(&args, process, output),
        Command::Certs(args) => args.run(output),
        Command::Redirect(args) => args.run(output),
        Command::Status(args) => args.run(output),
        Command::Connections(args) => args.run(output),
        Command::Reload(args) => args.run(output),
        Command::Drain(args) => args.run(output),
        Command::Upgrade(args) => args.run(output),
        Command::Healthcheck(args) => args.run(output),
        Command::Completions(args) => completions::execute(&args, &mut Cli::command(), output),
        Command::Man(args) => man::execute(&args, Cli::command(), output),
        Command::Reference => output.data(reference::markdown().trim_end()),
    }
}

/// Help and version are data; anything else is one line and a hint.
fn refuse(error: &clap::Error, output: &mut Output<'_>) -> Exit {
    let text = error.render().to_string();
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        return output.data(text.trim_end());
    }
    // clap says: what is wrong, perhaps on several lines; a tip; the usage; where to find help.
    let mut paragraphs = text.split("\n\n");
    let wrong: Vec<&str> = paragraphs.next().unwrap_or("").split_whitespace().collect();
    let wrong = wrong.join(" ");
    let tip = paragraphs.find_map(|paragraph| paragraph.trim().strip_prefix("tip: "));
    let usage = text.lines().find_map(|line| line.strip_prefix("Usage: "));
    let hint = match (tip, usage) {
        (Some(tip), _) => tip.to_owned(),
        (None, Some(usage)) => format!("usage: {usage}"),
        (None, None) => "see adit --help".to_owned(),
    };
    output.error(wrong.strip_prefix("error: ").unwrap_or(&wrong), Some(&hint));
    Exit::Usage
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE, such as connect.timeout=3s".to_owned()),
    }
}

#[cfg(test)]
mod tests;
