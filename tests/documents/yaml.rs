//! YAML in the pages is what it is shown as: settings that load, or mesh files that do.

use std::fs;

use adit::config::{Settings, Sources, load};

use crate::blocks::{Block, blocks};

/// Whether its first key is a key of the settings.
fn is_settings(code: &str) -> bool {
    let first = code.lines().find(|line| !line.starts_with('#')).and_then(|line| line.split(':').next());
    let settings = Settings::default().to_json();
    first.is_some_and(|key| settings.get(key).is_some())
}

#[test]
fn every_example_loads() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (mut settings, mut meshes) = (0, 0);
    for Block { page, line, code, .. } in blocks().into_iter().filter(|block| block.language == "yaml") {
        let file = folder.path().join("example.yaml");
        fs::write(&file, &code).expect("a writable folder");
        let problems = if is_settings(&code) {
            settings += 1;
            let workload = vec![("workload.name".to_owned(), "any".to_owned())];
            load(&Sources { files: vec![file], flags: workload, ..Sources::default() }).err()
        } else {
            meshes += 1;
            adit::mesh::check(vec![file]).err()
        };
        assert!(problems.is_none(), "{page}:{line}: {}\n{code}", problems.expect("some"));
    }
    assert!(settings >= 2 && meshes >= 4, "{settings} and {meshes}");
}
