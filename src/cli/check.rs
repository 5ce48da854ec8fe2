//! `adit check`: loads what `run` would, with the same loaders, and says everything that is wrong.
//!
//! The mesh files and those of the identity are looked at even if the settings are wrong, as far as the settings say where they are.

use std::time::SystemTime;

use super::{Daemon, Exit, Output};
use crate::config::{self, Problem, Sources};
use crate::identity;

pub(super) const EXAMPLE: &str =
    "Exit codes: 0 all is well, 78 something is wrong; each problem is one line with its place and a hint.
A warning is such a line too, and changes no exit code: a reference that leads nowhere, for example.

Example:
  adit check --config /etc/adit/adit.yaml --config site.yaml";

/// What there was to check in the mesh files.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MeshSummary {
    pub files: usize,
    pub workloads: usize,
    pub services: usize,
    pub policies: usize,
    /// What is allowed and most often a mistake.
    pub warnings: Vec<Problem>,
}

pub(super) fn execute(sources: &Sources, daemon: Daemon, output: &mut Output<'_>) -> Exit {
    let (settings, mut problems) = config::inspect(sources);
    let checked = identity::check::check(&settings, SystemTime::now()).map_err(|wrong| problems.extend(wrong));
    let mesh = (daemon.check_mesh)(&settings).map_err(|wrong| problems.extend(wrong));
    let checked = checked.unwrap_or_default();
    checked.warnings.iter().for_each(|warning| output.warning(warning));
    mesh.iter().flat_map(|mesh| &mesh.warnings).for_each(|warning| output.warning(warning));
    match &mesh {
        Ok(mesh) if problems.is_empty() => {
            output.data(format_args!("ok: {}{}", summary(sources, mesh), who(&checked.about)))
        }
        _ => output.problems(&problems),
    }
}

fn who(about: &str) -> String {
    if about.is_empty() { String::new() } else { format!(", identity {about}") }
}

fn summary(sources: &Sources, mesh: &MeshSummary) -> String {
    let MeshSummary { files, workloads, services, policies, .. } = mesh;
    let policies = if *policies == 1 { "1 policy".to_owned() } else { format!("{policies} policies") };
    format!(
        "{}, {} with {}, {} and {policies}",
        count(sources.files.len(), "settings file"),
        count(*files, "mesh file"),
        count(*workloads, "workload"),
        count(*services, "service"),
    )
}

fn count(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}
