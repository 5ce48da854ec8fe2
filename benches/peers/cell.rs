//! One cell: one peer, every shape, in namespaces of its own.
//!
//! Comes in: the `Plan`, one line of JSON on stdin, which then stays open. Goes out: `Report`s on stdout, one line of JSON each.
//!
//! Invariant: a cell ends with its parent: when stdin closes the process ends, and it is the first of its PID namespace, so everything ends with it.
//!
//! On failure: a shape that fails is the cell's last, because it leaves strays behind that would spoil the next.

use std::fs;
use std::io::{self, BufRead, Read, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::account::{self, Usage};
use super::cores::{self, Cores};
use super::load::{Books, Load, Measured, Timing};
use super::namespace::{self, SERVER};
use super::proxy::Proxy;
use super::recipe::{self, Found, Programs};
use super::shape::Shape;

/// What a cell is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) peer: String,
    pub(crate) programs: Programs,
    pub(crate) shapes: Vec<Shape>,
    pub(crate) timing: Timing,
    pub(crate) cores: Cores,
    /// A cgroup for this cell alone, where the peer needs one.
    pub(crate) cgroup: Option<PathBuf>,
}

/// What a cell says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Report {
    Measured {
        shape: Shape,
        measured: Measured,
    },
    Failed {
        error: String,
    },
    /// The last word; without it the cell died.
    Done,
}

/// Be a cell.
pub(crate) fn run() -> Result<bool> {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).context("no plan on stdin")?;
    let plan: Plan = serde_json::from_str(&line).context("the plan on stdin is not one")?;
    std::thread::spawn(end_with_parent);
    if let Err(error) = measure(&plan) {
        say(&Report::Failed { error: format!("{error:#}") })?;
    }
    say(&Report::Done)?;
    Ok(true)
}

fn measure(plan: &Plan) -> Result<()> {
    if let Some(cgroup) = &plan.cgroup {
        fs::write(cgroup.join("cgroup.procs"), "0").context("cannot enter the cell's cgroup")?;
    }
    namespace::furnish()?;
    cores::go_to(plan.cores.load)?;
    let books = Books { usage: Usage::now, resident: account::resident, sockets: account::sockets };
    let found = recipe::find(&plan.peer, &plan.programs)?;
    // The server listens before the peer starts, so that the peer never sees it down.
    let (mut load, proxy) = match &found {
        Found::Missing(reason) => anyhow::bail!("missing: {reason}"),
        Found::Direct => (Load::bind(SERVER, |server| server, books)?, None),
        Found::Proxy { recipe, target } => {
            let mut load = Load::bind(SERVER, |_server| *target, books)?;
            load.half_close = recipe.half_close;
            (load, Some(Proxy::start(recipe, *target, plan.cores, plan.cgroup.as_deref())?))
        }
    };
    let outcome = shapes(plan, &mut load);
    match proxy {
        None => outcome,
        Some(proxy) => {
            let outcome = outcome.with_context(|| format!("the peer's log ends:\n{}", proxy.tail()));
            let stopped = proxy.stop();
            outcome.and(stopped)
        }
    }
}

fn shapes(plan: &Plan, load: &mut Load) -> Result<()> {
    load.verify()?;
    for &shape in &plan.shapes {
        let measured = load.run(shape, plan.timing).with_context(|| shape.name())?;
        say(&Report::Measured { shape, measured })?;
    }
    Ok(())
}

fn say(report: &Report) -> Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{}", serde_json::to_string(report)?)
        .and_then(|()| stdout.flush())
        .context("nobody listens to this cell")
}

/// Waits for the end of stdin, then ends the process however deep the load is in its loop.
#[expect(clippy::exit, reason = "the load's loop is not to be asked on every turn whether it should end")]
fn end_with_parent() {
    // An error means the same as the end: nobody is there.
    let _ = io::stdin().lock().read(&mut [0]);
    std::process::exit(1);
}
