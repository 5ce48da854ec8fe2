//! The whole run: every peer in every round, one cell after another, then the table.
//!
//! The order of the peers turns by one with each round, so that slow drifts of the machine do not always meet the same peer.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Stdio};

use adit::net::cgroup;
use anyhow::{Context, Result, bail};

use super::cell::{Plan, Report};
use super::cores::Cores;
use super::options::Options;
use super::recipe::{self, Found};
use super::record::{Peer, Record, Sample};
use super::shape::Shape;
use super::{chart, namespace, table};

/// Runs everything, or reads it from a file. False when a peer failed.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let record = if let Some(path) = &options.from { Record::read(path)? } else { measure(options)? };
    write!(io::stdout().lock(), "{}", table::draw(&record)).context("cannot print the table")?;
    if let Some(path) = &options.json {
        record.write(path)?;
    }
    if let Some(path) = &options.svg {
        fs::write(path, chart::draw(&record)).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(options.from.is_some() || record.failures.is_empty())
}

fn measure(options: &Options) -> Result<Record> {
    let settled = options.settled()?;
    let cores = Cores::choose(&options.cores)?;
    let mut record = Record::new(cores, &settled);
    let programs = options.programs();
    for name in recipe::chosen(&options.peers, &programs)? {
        match recipe::find(&name, &programs)? {
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
        for peer in names {
            for shapes in cells(&settled.shapes, &peer) {
                let (peer, programs) = (peer.clone(), programs.clone());
                let own = recipe::wants_cgroup(&peer).then(OwnCgroup::new).transpose()?;
                let cgroup = own.as_ref().map(|own| own.0.clone());
                cell(&Plan { peer, programs, shapes, timing: settled.timing, cores, cgroup }, round, &mut record)?;
            }
        }
    }
    record.settle();
    Ok(record)
}

/// The shapes that say anything of the peer: in one cell, but for those that need one of their own.
fn cells(shapes: &[Shape], peer: &str) -> Vec<Vec<Shape>> {
    let shapes = shapes.iter().copied().filter(|shape| shape.is_for(recipe::workers(peer)));
    let (alone, together): (Vec<Shape>, Vec<Shape>) = shapes.partition(|shape| shape.is_alone());
    let cells = std::iter::once(together).chain(alone.into_iter().map(|shape| vec![shape]));
    cells.filter(|shapes| !shapes.is_empty()).collect()
}

/// Runs one cell and enters what it says.
fn cell(plan: &Plan, round: u32, record: &mut Record) -> Result<()> {
    let peer = plan.peer.as_str();
    let mut child = start(plan)?;
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

/// A cgroup for one cell, removed once the cell has ended; what is attached to it goes with it.
struct OwnCgroup(PathBuf);

impl OwnCgroup {
    fn new() -> Result<Self> {
        let folder = cgroup::mount()?.join(format!("adit-peers-{}", std::process::id()));
        fs::create_dir(&folder)
            .with_context(|| format!("cannot make the cgroup {}; that takes root", folder.display()))?;
        Ok(Self(folder))
    }
}

impl Drop for OwnCgroup {
    fn drop(&mut self) {
        // A cell that died may not have been left by all; then an empty folder stays.
        let _ = fs::remove_dir(&self.0);
    }
}

fn progress(line: &str) -> Result<()> {
    writeln!(io::stderr().lock(), "{line}").context("cannot report progress")
}
