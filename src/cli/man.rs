//! `adit man`: the manual pages. One for each command, made from the definition of the command line, and `adit.yaml(5)`, made from
//! the reference of the settings; so neither can be out of date.
//!
//! Without a date, so that two builds of one source write the same bytes.

use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, Command};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, italic, roman};

use super::{Exit, Output};
use crate::config::reference::{Accepted, Reference, Row, Section, reference};

pub(super) const EXAMPLE: &str =
    "Writes adit.1, a page for each command (adit-run.1, adit-certs-issue-leaf.1), and adit.yaml.5.

Example:
  adit man --out debian/tmp/usr/share/man";

const MANUAL: &str = "adit manual";
const SOURCE: &str = concat!("adit ", env!("CARGO_PKG_VERSION"));

#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// The folder to write to; made if it is not there
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// A page: its file name and its text.
type Page = (String, Vec<u8>);

pub(super) fn execute(args: &ManArgs, command: Command, output: &mut Output<'_>) -> Exit {
    match pages(command).and_then(|pages| write(&args.out, &pages).map(|()| pages.len())) {
        Ok(count) => output.data(format_args!("{count} pages in {}", args.out.display())),
        Err(error) => {
            output.error(format_args!("cannot write to {}: {error}", args.out.display()), None);
            Exit::Failed
        }
    }
}

fn write(folder: &Path, pages: &[Page]) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    pages.iter().try_for_each(|(name, text)| std::fs::write(folder.join(name), text))
}

/// All pages.
pub(super) fn pages(command: Command) -> io::Result<Vec<Page>> {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    add(&command, "adit.yaml(5)", &mut pages)?;
    pages.push(("adit.yaml.5".to_owned(), settings(reference())?));
    Ok(pages)
}

/// The page of `command` and those of the commands in it. `see`: what else to read.
fn add(command: &Command, see: &str, pages: &mut Vec<Page>) -> io::Result<()> {
    let man = Man::new(command.clone());
    let own = command.get_display_name().unwrap_or_else(|| command.get_name());
    let mut head = Roff::new();
    title(&mut head, own, "1");
    let mut page = Vec::new();
    head.to_writer(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    let inner = || command.get_subcommands().filter(|inner| !inner.is_hide_set());
    if inner().next().is_some() {
        man.render_subcommands_section(&mut page)?;
    }
    let mut rest = Roff::new();
    if let Some(notes) = command.get_after_long_help().or_else(|| command.get_after_help()) {
        after_help(&mut rest, &notes.to_string());
    }
    exit_status(&mut rest);
    rest.control("SH", ["SEE ALSO"]);
    rest.text([roman(see)]);
    rest.to_writer(&mut page)?;
    pages.push((man.get_filename(), tidy(&page)));
    let own = format!("{own}(1)");
    inner().try_for_each(|command| add(command, &own, pages))
}

/// An empty date has to be quoted, and the library does not.
fn title(roff: &mut Roff, name: &str, section: &str) {
    roff.control("TH", [&*name.to_uppercase(), section, "\"\"", SOURCE, MANUAL]);
}

fn exit_status(roff: &mut Roff) {
    roff.control("SH", ["EXIT STATUS"]);
    for exit in Exit::ALL {
        roff.control("TP", []);
        roff.text([bold(exit.code().to_string())]);
        roff.text([roman(exit.meaning())]);
    }
}

/// Each section that the library makes has its preamble, spaces at the ends of lines and empty lines, which are vertical space.
fn tidy(page: &[u8]) -> Vec<u8> {
    let preamble = Roff::new().render();
    let text = String::from_utf8_lossy(page).replace(&preamble, "");
    let mut out = preamble;
    let mut last = "";
    for line in text.lines().map(str::trim_end).filter(|line| !line.is_empty()) {
        if !(line == ".br" && last == ".br") {
            out.push_str(line);
            out.push('\n');
        }
        last = line;
    }
    out.into_bytes()
}

/// What help says below the options: examples, and what else there is to say. Indented lines are kept as they are.
fn after_help(roff: &mut Roff, text: &str) {
    let mut section = "";
    for paragraph in text.split("\n\n") {
        let is_example = paragraph.starts_with("Example");
        let wanted = if is_example || section == "EXAMPLES" { "EXAMPLES" } else { "NOTES" };
        if wanted == section {
            roff.control("PP", []);
        } else {
            roff.control("SH", [wanted]);
            section = wanted;
        }
        // The heading says it already.
        let said = usize::from(is_example);
        lines(roff, paragraph.lines().skip(said));
    }
}

/// Lines of prose, and indented ones as they are.
fn lines<'a>(roff: &mut Roff, lines: impl Iterator<Item = &'a str>) {
    let mut kept = false;
    for line in lines {
        let indented = line.starts_with("  ");
        if indented != kept {
            for request in if indented { ["RS", "nf"] } else { ["fi", "RE"] } {
                roff.control(request, []);
            }
            kept = indented;
        }
        if line.is_empty() {
            roff.control("PP", []);
        } else {
            roff.text([roman(line.strip_prefix("  ").unwrap_or(line))]);
        }
    }
    if kept {
        roff.control("fi", []);
        roff.control("RE", []);
    }
}

/// `adit.yaml(5)`.
fn settings(Reference { intro, top, sections }: Reference) -> io::Result<Vec<u8>> {
    let mut roff = Roff::new();
    title(&mut roff, "adit.yaml", "5");
    roff.control("SH", ["NAME"]);
    roff.text([roman("adit.yaml - settings of adit(1)")]);
    roff.control("SH", ["DESCRIPTION"]);
    lines(&mut roff, intro.lines());
    roff.control("SH", ["SETTINGS"]);
    rows(&mut roff, &top);
    for Section { name, about, rows: keys } in sections {
        roff.control("SS", [&*name]);
        lines(&mut roff, about.lines());
        rows(&mut roff, &keys);
    }
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman("adit(1), adit-check(1), adit-reload(1)")]);
    let mut page = Vec::new();
    roff.to_writer(&mut page)?;
    Ok(tidy(&page))
}

fn rows(roff: &mut Roff, rows: &[Row]) {
    for Row { key, value, about } in rows {
        roff.control("TP", []);
        match value {
            Some(Accepted { takes, default, live }) => {
                roff.text([bold(&**key), roman(": "), roman(&**default)]);
                let change = if *live { "live" } else { "restart" };
                roff.text([roman(&**about)]);
                roff.control("br", []);
                roff.text([italic("Takes "), roman(&**takes), italic(format!(". [{change}]"))]);
            }
            None => {
                roff.text([bold(&**key)]);
                roff.text([roman(&**about)]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::Cli;

    fn all() -> Vec<(String, String)> {
        let pages = pages(Cli::command()).expect("memory");
        pages.into_iter().map(|(name, text)| (name, String::from_utf8(text).expect("text"))).collect()
    }

    /// The title is `NAME SECTION DATE SOURCE MANUAL`; two builds differ in nothing, so there is no date.
    #[test]
    fn there_is_a_page_for_each_command_that_is_not_hidden_and_one_for_the_settings() {
        let pages = all();
        let names: Vec<&str> = pages.iter().map(|(name, _)| &**name).collect();
        for name in ["adit.1", "adit-run.1", "adit-certs.1", "adit-certs-issue-leaf.1", "adit-redirect-apply.1"] {
            assert!(names.contains(&name), "{name}: {names:?}");
        }
        assert_eq!(names.last(), Some(&"adit.yaml.5"));
        for hidden in ["man", "reference", "help"] {
            assert!(!names.contains(&&*format!("adit-{hidden}.1")), "{hidden}");
        }
        for (name, page) in &pages {
            let (title, section) = name.rsplit_once('.').expect("a section");
            let title = format!(".TH {} {section} \"\" \"{SOURCE}\" \"{MANUAL}\"\n", title.to_uppercase());
            assert_eq!(page.matches(&title).count(), 1, "{name}");
            assert!(page.contains("\n.SH \"SEE ALSO\"\n"), "{name}");
        }
    }

    #[test]
    fn the_settings_are_all_there() {
        let pages = all();
        let (_, page) = pages.last().expect("the settings");
        assert!(page.contains("\\fBconnect.timeout\\fR: 5s\n"), "{page}");
    }

    #[test]
    fn what_help_says_last_is_kept_as_it_was_laid_out() {
        let mut roff = Roff::new();
        after_help(&mut roff, "It is said.\n\nExamples:\n  one\n    two\n\nMore:\n  three");
        let want = ".SH NOTES\nIt is said.\n.SH EXAMPLES\n.RS\n.nf\none\n  two\n.fi\n.RE\n.PP\nMore:\n.RS\n.nf\nthree\n.fi\n.RE\n";
        assert_eq!(roff.to_roff(), want);
    }
}
