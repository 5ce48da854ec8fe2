//! The `adit` binary: arguments, then the command, then the exit code.

use std::process::ExitCode;

use adit::app::{self, Invalid};
use adit::cli::{self, Daemon, Exit, MeshSummary, Output};
use adit::config::{Problems, Settings};

fn main() -> ExitCode {
    let daemon = Daemon {
        run: |sources| exit_of(app::run(sources).map(|()| Exit::Ok)),
        supervise: || exit_of(app::supervise().map(Exit::Other)),
        launch: || exit_of(app::launch().map(Exit::Other)),
        demo: |sources| exit_of(app::demo(sources).map(|()| Exit::Ok)),
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

/// The one place where an error of the daemon is consumed: one line with its causes, or a line per problem. The log may not
/// exist yet, or no longer.
fn exit_of(result: anyhow::Result<Exit>) -> Exit {
    let error = match result {
        Ok(exit) => return exit,
        Err(error) => error,
    };
    let (mut stdout, mut stderr) = (std::io::stdout(), std::io::stderr());
    let mut output = Output { data: &mut stdout, messages: &mut stderr };
    if let Some(Invalid(problems)) = error.downcast_ref() {
        return output.problems(problems);
    }
    output.error(format_args!("{error:#}"), None);
    Exit::Failed
}
