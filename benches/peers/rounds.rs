//! The whole run: every peer in every round, one cell after another, then the table.
//!
//! The order of the peers turns by one with each round, so that slow drifts of the machine do not always meet the same peer.

use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::cell::{Plan, Report};
use super::cores::Cores;
use super::load::Timing;
use super::options::{Options, Settled};
use super::recipe::{self, Found};
use super::record::{Peer, Record, Sample};
use super::{namespace, table};

/// Runs everything. False when a peer failed.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let settled = options.settled()?;
    let cores = Cores::choose(&options.cores)?;
    let mut record = Record::new(cores, &settled);
    for name in recipe::chosen(&options.peers)? {
        match recipe::find(&name, &options.adit)? {
            Found::Missing(reason) => {
                progress(&format!("MISSING {name}: {reason}; it is not in the table"))?;
                record.missing.push((name, reason));
            }
            Found::Direct => record.peers.push(Peer { name, version: "no proxy".to_owned() }),
            Found::Proxy { recipe, .. } => record.peers.push(Peer { name, version: recipe.version }),
        }
    }
    for round in 0..settled.rounds {
        let mut names: Vec<String> = record.peers.iter().map(|peer| peer.name.clone()).collect();
        let turns = usize::try_from(round).context("round")? % names.len().max(1);
        names.rotate_left(turns);
        for name in names {
            cell(options, &settled, cores, round, &name, &mut record)?;
        }
    }
    record.settle();
    let mut stdout = io::stdout().lock();
    write!(stdout, "{}", table::draw(&record)).context("cannot print the table")?;
    if let Some(path) = &options.json {
        let json = serde_json::to_string_pretty(&record).context("cannot write JSON")?;
        std::fs::write(path, json + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(record.failures.is_empty())
}

/// Runs one cell and enters what it says.
fn cell(options: &Options, settled: &Settled, cores: Cores, round: u32, peer: &str, record: &mut Record) -> Result<()> {
    let timing = Timing { warm_up: warm_up(settled.length), length: settled.length };
    let plan =
        Plan { peer: peer.to_owned(), adit: options.adit.clone(), shapes: settled.shapes.clone(), timing, cores };
    let mut child = start(&plan)?;
    let stdout = child.stdout.take().context("the cell has no stdout")?;
    let mut done = false;
    for line in BufReader::new(stdout).lines() {
        let line = line.context("cannot hear the cell")?;
        match serde_json::from_str(&line).with_context(|| format!("the cell said {line:?}"))? {
            Report::Measured { shape, measured } => {
                let sample = Sample { round, peer: peer.to_owned(), shape: shape.name(), measured };
                progress(&format!("round {} {peer}: {}", round + 1, table::brief(shape, &sample.measured)))?;
                record.samples.push(sample);
            }
            Report::Failed { error } => {
                progress(&format!("FAILED round {} {peer}: {error}", round + 1))?;
                record.failures.push((peer.to_owned(), format!("round {}: {error}", round + 1)));
            }
            Report::Done => done = true,
        }
    }
    let status = child.wait().context("cannot wait for the cell")?;
    if !done {
        bail!(
            "the cell of {peer} died ({status}); is unshare allowed to make network, PID and mount namespaces here (root, or unprivileged user namespaces)?"
        );
    }
    Ok(())
}

/// Starts a cell and hands it the plan. Its stdin stays open as long as the `Child` lives.
fn start(plan: &Plan) -> Result<Child> {
    let program = std::env::current_exe().context("cannot find my own program")?;
    let mut child = namespace::unshared(&program)
        .arg("--cell")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run unshare (Debian package util-linux)")?;
    let stdin = child.stdin.as_mut().context("the cell has no stdin")?;
    // A cell that could not start is told by its exit, not by this pipe.
    let _ = writeln!(stdin, "{}", serde_json::to_string(plan)?);
    Ok(child)
}

fn warm_up(length: Duration) -> Duration {
    length / 5
}

fn progress(line: &str) -> Result<()> {
    writeln!(io::stderr().lock(), "{line}").context("cannot report progress")
}
