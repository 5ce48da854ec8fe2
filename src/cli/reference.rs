//! `adit reference`: all settings as Markdown, which is `docs/configuration.md`.

use std::fmt::Write;

use crate::config::reference::{Accepted, Reference, Row, Section, reference};

pub(super) const EXAMPLE: &str = "Example:
  adit reference > docs/configuration.md";

const HEAD: &str = "\
# Configuration

<!-- Made by `cargo run -- reference > docs/configuration.md`, from the types and from the comments of config/adit.yaml: change those. -->

";

const TABLE: &str = "\
| key | takes | default | a change | what it is for |
| --- | --- | --- | --- | --- |
";

pub(super) fn markdown() -> String {
    let Reference { intro, top, sections } = reference();
    let mut out = HEAD.to_owned();
    paragraphs(&mut out, &intro);
    out.push_str("\n[`config/adit.yaml`](../config/adit.yaml) is a file with all of it, to start from.\n\n");
    out.push_str("## Keys of the top level, and sections of one key\n\n");
    table(&mut out, &top);
    for Section { name, about, rows } in sections {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "\n## {name}\n");
        if !about.is_empty() {
            let _ = writeln!(out, "{}\n", linked(&about));
        }
        table(&mut out, &rows);
    }
    out
}

/// Indented lines are kept as they are.
fn paragraphs(out: &mut String, text: &str) {
    let mut code = false;
    for line in text.lines() {
        let indented = line.starts_with("  ");
        if indented != code {
            out.push_str(if indented { "```text\n" } else { "```\n" });
            code = indented;
        }
        out.push_str(if indented { line.get(2..).unwrap_or_default() } else { line });
        out.push('\n');
    }
}

fn table(out: &mut String, rows: &[Row]) {
    out.push_str(TABLE);
    for Row { key, value, about } in rows {
        let about = cell(about);
        // As above.
        let _ = match value {
            Some(Accepted { takes, default, live }) => {
                let change = if *live { "live" } else { "restart" };
                writeln!(out, "| `{key}` | {} | `{default}` | {change} | {about} |", cell(takes))
            }
            None => writeln!(out, "| `{key}` | | | | {about} |"),
        };
    }
}

/// Text that is read as it stands, but that other pages are links.
fn cell(text: &str) -> String {
    linked(&text.replace('|', "\\|").replace('*', "\\*").replace('<', "&lt;"))
}

/// `docs/NAME.md` is a page beside this one.
fn linked(text: &str) -> String {
    let mut pieces = text.split("docs/");
    let mut out = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        // Writing to a String cannot fail.
        let _ = match piece.split_once(".md") {
            Some((page, rest)) => write!(out, "[{page}]({page}.md){rest}"),
            None => write!(out, "docs/{piece}"),
        };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_reference_is_that_of_this_build() {
        let committed = include_str!("../../docs/configuration.md");
        let stale = committed.lines().zip(markdown().lines().map(str::to_owned)).find(|(line, made)| line != made);
        assert!(
            committed == markdown(),
            "docs/configuration.md is stale, first at {stale:#?}; renew it: cargo run -- reference > docs/configuration.md"
        );
    }

    #[test]
    fn nothing_in_a_cell_ends_it() {
        assert_eq!(cell("a | b * c <d>"), "a \\| b \\* c &lt;d>");
        assert_eq!(cell("see docs/a.md. And docs/b.md"), "see [a](a.md). And [b](b.md)");
        for line in markdown().lines().filter(|line| line.starts_with("| `")) {
            let bars = line.replace("\\|", "").matches('|').count();
            assert_eq!(bars, 6, "{line}");
        }
    }
}
