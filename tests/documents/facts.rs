//! Small facts that pages state and the code knows.

use std::fs;
use std::path::PathBuf;

use adit::cli::Exit;

use crate::blocks::{Page, pages, root};

fn page(name: &str) -> String {
    pages().into_iter().find(|page| page.name == name).map(|page| page.text).unwrap_or_else(|| panic!("no {name}"))
}

fn sources() -> Vec<(PathBuf, String)> {
    let (mut files, mut folders) = (Vec::new(), vec![root().join("src")]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|it| it == "rs") && !path.ends_with("tests.rs") {
                let text = fs::read_to_string(&path).expect("a source file");
                let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned();
                files.push((path, text));
            }
        }
    }
    files
}

/// What stands between `from` and the next quote.
fn quoted<'a>(text: &'a str, from: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(from).skip(1).filter_map(|rest| rest.split('"').next())
}

#[test]
fn operations_has_every_blocker_of_readiness() {
    let operations = page("docs/operations.md");
    let mut blockers = vec!["start".to_owned()];
    for (_, text) in sources() {
        blockers.extend(quoted(&text, "readiness.block(\"").map(str::to_owned));
        blockers.extend(quoted(&text, "BLOCKER: &str = \"").map(str::to_owned));
    }
    blockers.sort();
    blockers.dedup();
    assert!(blockers.len() >= 6, "{blockers:?}");
    for blocker in blockers {
        assert!(
            operations.contains(&format!("\n| `{blocker}` | ")),
            "docs/operations.md does not have the blocker {blocker}"
        );
    }
}

#[test]
fn operations_has_every_exit_code() {
    let operations = page("docs/operations.md");
    for exit in Exit::ALL {
        let row = format!("\n| {} | {} |\n", exit.code(), exit.meaning());
        assert!(operations.contains(&row), "docs/operations.md does not have {row:?}");
    }
}

/// Each word that looks like a metric of ours is one, written as it is scraped.
#[test]
fn every_metric_that_is_named_exists() {
    // A map of the kernel's.
    let mut known = vec!["adit_pending".to_owned()];
    for (_, text) in sources() {
        for kind in ["adit_", "istio_"] {
            known.extend(quoted(&text, &format!("\"{kind}")).map(|rest| format!("{kind}{rest}")));
        }
    }
    let mut count = 0;
    for Page { name, text } in pages() {
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        for word in words
            .filter(|word| word.starts_with("adit_") || word.starts_with("istio_tcp_") || word.starts_with("istio_on_"))
        {
            let family = word.strip_suffix("_total").unwrap_or(word);
            assert!(known.iter().any(|known| known == family), "{name}: there is no metric {word}");
            count += 1;
        }
    }
    assert!(count > 50, "{count}");
}

#[test]
fn security_counts_the_unsafe_blocks() {
    let places: Vec<PathBuf> =
        sources().into_iter().filter(|(_, text)| text.contains("unsafe {")).map(|(path, _)| path).collect();
    let blocks: usize = sources().iter().map(|(_, text)| text.matches("unsafe {").count()).sum();
    let security = page("docs/security.md");
    assert!(
        blocks == 7 && security.contains("denied but for seven lines"),
        "{blocks} in the code, and docs/security.md?"
    );
    for path in places {
        let name = path.strip_prefix(root()).expect("below it").display().to_string();
        assert!(security.contains(&name), "docs/security.md does not name {name}");
    }
}

/// Every page that a page of the manual or a comment of the settings names is there.
#[test]
fn the_settings_name_pages_that_exist() {
    let shipped = fs::read_to_string(root().join("config/adit.yaml")).expect("the shipped file");
    let mut count = 0;
    for rest in shipped.split("docs/").skip(1) {
        let name = rest.split(".md").next().expect("a name");
        assert!(root().join(format!("docs/{name}.md")).exists(), "config/adit.yaml: docs/{name}.md");
        count += 1;
    }
    assert!(count > 2, "{count}");
}
