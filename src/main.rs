//! The `adit` binary: arguments, then the command, then the exit code.

use std::process::ExitCode;

use adit::app::{self, Invalid};
use adit::cli::{self, Daemon, Exit, MeshSummary};
use adit::config::{Problems, Settings};

fn main() -> ExitCode {
    let daemon = Daemon {
        run: |sources, settings| exit_of(app::run(sources, settings)),
        demo: |sources| exit_of(app::demo(sources)),
        check_mesh,
    };
    cli::run(std::env::args_os(), daemon)
}

/// The same loader as the daemon's.
fn check_mesh(settings: &Settings) -> Result<MeshSummary, Problems> {
    let summary = adit::mesh::check(settings.mesh.files.clone())?;
    let adit::mesh::Summary { files, workloads, services, policies, dangling } = summary;
    Ok(MeshSummary { files, workloads, services, policies, warnings: dangling })
}

/// The one place where an error of the daemon is consumed: one line with its causes, or a line per problem.
#[expect(clippy::print_stderr, reason = "the log may not exist yet, or no longer")]
fn exit_of(result: anyhow::Result<()>) -> Exit {
    let Err(error) = result else { return Exit::Ok };
    if let Some(Invalid(problems)) = error.downcast_ref() {
        for problem in problems.iter() {
            eprintln!("error: {problem}");
        }
        return Exit::BadConfig;
    }
    eprintln!("error: {error:#}");
    Exit::Failed
}
