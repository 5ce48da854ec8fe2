//! What `adit demo` runs on: two files of `config/demo/`, built into the binary and otherwise like anybody's.

use std::path::PathBuf;

use super::sources::BuiltIn;

/// The mesh of the demo, as text: what belongs at `mesh.yaml` in the base folder of [`settings`].
pub const MESH: &str = include_str!("../../config/demo/mesh.yaml");

/// Where the mesh says that the demo's echo server listens.
pub const ECHO_PORT: u16 = 18080;

/// The settings of the demo, as the weakest layer after the defaults; they name `mesh.yaml` in `base`.
pub fn settings(base: PathBuf) -> BuiltIn {
    BuiltIn { name: "config/demo/adit.yaml", text: include_str!("../../config/demo/adit.yaml"), base }
}
