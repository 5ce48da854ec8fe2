//! Pages and their fenced blocks. Above a block of commands stands, as a comment that readers do not see, who runs it or why
//! nobody does: `<!-- run by tests/NAME.rs -->` or `<!-- not run: REASON -->`.

use std::fs;
use std::path::{Path, PathBuf};

/// A page of the documents.
pub(crate) struct Page {
    /// Below the root of the tree.
    pub(crate) name: String,
    pub(crate) text: String,
}

/// What stands between two fences.
pub(crate) struct Block {
    pub(crate) page: String,
    pub(crate) line: usize,
    /// `sh`, `yaml`, or nothing.
    pub(crate) language: String,
    /// The comment above, without its marks.
    pub(crate) mark: Option<String>,
    pub(crate) code: String,
}

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// README.md and everything in `docs`.
pub(crate) fn pages() -> Vec<Page> {
    let in_docs = fs::read_dir(root().join("docs")).expect("docs").map(|entry| entry.expect("an entry").path());
    let mut files: Vec<PathBuf> = in_docs.filter(|path| path.extension().is_some_and(|it| it == "md")).collect();
    files.sort();
    files.insert(0, root().join("README.md"));
    let page = |path: PathBuf| Page {
        name: path.strip_prefix(root()).expect("below it").display().to_string(),
        text: fs::read_to_string(&path).expect("a page"),
    };
    files.into_iter().map(page).collect()
}

pub(crate) fn blocks() -> Vec<Block> {
    pages().iter().flat_map(blocks_of).collect()
}

fn blocks_of(page: &Page) -> Vec<Block> {
    let (mut blocks, mut open, mut mark): (Vec<Block>, bool, Option<String>) = (Vec::new(), false, None);
    for (index, line) in page.text.lines().enumerate() {
        match (open, line.strip_prefix("```")) {
            (false, Some(language)) => {
                let language = language.trim().to_owned();
                let mark = mark.take();
                blocks.push(Block { page: page.name.clone(), line: index + 1, language, mark, code: String::new() });
                open = true;
            }
            (true, Some(_)) => open = false,
            (true, None) => {
                let block = blocks.last_mut().expect("an open one");
                block.code.push_str(line);
                block.code.push('\n');
            }
            (false, None) => {
                let comment = line.strip_prefix("<!-- ").and_then(|rest| rest.strip_suffix(" -->"));
                mark = comment.map(str::to_owned);
            }
        }
    }
    assert!(!open, "{}: a block without an end", page.name);
    blocks
}

/// The blocks of commands of a page that `runner` runs, one after the other.
pub(crate) fn script(page: &str, runner: &str) -> String {
    let mark = format!("run by {runner}");
    let own = blocks().into_iter().filter(|block| block.page == page && block.mark.as_deref() == Some(&mark));
    let script: String = own.map(|block| block.code).collect();
    assert!(!script.is_empty(), "{page} has no commands for {runner}");
    script
}

#[test]
fn every_block_of_commands_is_run_or_says_why_not() {
    let mut counted = (0, 0);
    for Block { page, line, language, mark, code } in blocks() {
        let place = format!("{page}:{line}");
        match language.as_str() {
            // Of one of these it is known what is in it.
            "yaml" | "text" => {}
            "sh" | "console" => {
                match mark.as_deref().map(|mark| (mark.strip_prefix("run by "), mark.strip_prefix("not run: "))) {
                    Some((Some(runner), _)) => {
                        let runs = fs::read_to_string(root().join(runner))
                            .unwrap_or_else(|error| panic!("{place}: {runner}: {error}"));
                        assert!(runs.contains(".md"), "{place}: {runner} runs no page");
                        counted.0 += 1;
                    }
                    Some((None, Some(reason))) => {
                        assert!(reason.split(' ').count() > 2, "{place}: why not? {reason:?}");
                        counted.1 += 1;
                    }
                    _ => panic!(
                        "{place}: write above it who runs it, or why nobody does, as tests/documents/blocks.rs says:\n{code}"
                    ),
                }
            }
            other => panic!("{place}: what is in a block of {other:?}?"),
        }
    }
    assert!(counted.0 > 10 && counted.1 > 0, "{counted:?}");
}

#[test]
fn every_link_leads_to_a_page_and_a_heading() {
    let pages = pages();
    let anchors = |text: &str| -> Vec<String> {
        let headings = text.lines().filter(|line| line.starts_with('#'));
        headings.map(|line| anchor(line.trim_start_matches('#').trim())).collect()
    };
    let mut count = 0;
    for Page { name, text } in &pages {
        let folder = Path::new(name).parent().expect("a folder");
        let targets = text.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0));
        for target in targets.filter(|target| !target.contains("://") && !target.contains(' ')) {
            let (path, heading) = target.split_once('#').unwrap_or((target, ""));
            let file = if path.is_empty() { PathBuf::from(name) } else { folder.join(path) };
            let text =
                fs::read_to_string(root().join(&file)).unwrap_or_else(|error| panic!("{name}: {target}: {error}"));
            assert!(
                heading.is_empty() || anchors(&text).iter().any(|known| known == heading),
                "{name}: {target}: no such heading"
            );
            count += 1;
        }
    }
    assert!(count > 40, "{count}");
    let readme = &pages.first().expect("README").text;
    for Page { name, .. } in pages.iter().skip(1) {
        assert!(readme.contains(&format!("({name})")), "README.md does not lead to {name}");
    }
}

/// As the usual renderers make it.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}
