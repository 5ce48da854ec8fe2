//! The manual pages, as a package would make and check them.

use std::fs;
use std::process::Command;

use crate::program::{need, wait};

#[test]
fn a_formatter_finds_nothing_wrong_with_them() {
    need(&["mandoc"]);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("made/man");
    let made = wait(Command::new(env!("CARGO_BIN_EXE_adit")).arg("man").arg("--out").arg(&out)).ok();
    let files: Vec<_> = fs::read_dir(&out).expect("it was made").map(|entry| entry.expect("an entry").path()).collect();
    assert!(files.len() > 20 && made.starts_with(&format!("{} pages in ", files.len())), "{made}");
    for file in &files {
        let lint = wait(Command::new("mandoc").args(["-T", "lint", "-W", "warning"]).arg(file));
        // There is none, so that two builds write the same.
        let complaints: Vec<&str> = lint.out.lines().filter(|line| !line.contains("missing date")).collect();
        assert!(complaints.is_empty() && lint.err.is_empty(), "{complaints:#?}{}", lint.err);
        let shown = wait(Command::new("mandoc").args(["-T", "ascii"]).arg(file)).ok();
        assert!(shown.contains("adit manual") && shown.lines().count() > 15, "{shown}");
    }
}

#[test]
fn a_folder_that_cannot_be_made_is_one_line() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("file");
    fs::write(&file, "").expect("a writable folder");
    let done = wait(Command::new(env!("CARGO_BIN_EXE_adit")).arg("man").arg("--out").arg(file.join("in")));
    assert_eq!(done.code, Some(1), "{}", done.out);
    assert!(done.err.starts_with("error: cannot write to ") && done.err.lines().count() == 1, "{}", done.err);
}
