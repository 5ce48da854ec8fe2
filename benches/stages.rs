//! What the pure stages cost, in instructions: `cargo bench --profile stages --bench stages`. A gate: unlike time, the count is nearly the same on
//! every run and every machine of one architecture.
//!
//! ```text
//! parent: for each stage, itself under callgrind (callgrind) -> instructions per operation -> compared with the record (limits)
//! child:  prepare the stage (resolve, authorize, balance, parse), once for nothing, then counted_rounds: all that callgrind counts
//! ```
//!
//! Exit code 1: a stage takes more than its record allows, or has none, or a record has no stage. What takes far less is said, so that the record can be
//! lowered. Each operation says whether it ended as it should: what fails early is cheap, and would look like progress.
//!
//! `cargo bench --profile stages --bench stages -- [--record] [BEGINNING OF A NAME ...]`

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a table is what it is for")]

#[path = "stages/authorize.rs"]
mod authorize;
#[path = "stages/balance.rs"]
mod balance;
#[path = "stages/callgrind.rs"]
mod callgrind;
#[path = "stages/limits.rs"]
mod limits;
#[path = "stages/parse.rs"]
mod parse;
#[path = "stages/resolve.rs"]
mod resolve;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use limits::{Limits, Standing};

/// Asks this program for one stage.
const INSIDE: &str = "--inside";

/// Does the operation of that number, and says whether it ended as it should.
type Operation = Box<dyn FnMut(usize) -> bool>;

/// One row of the table.
struct Stage {
    name: &'static str,
    /// Operations that are counted; the mean is what is compared, so that single keys do not matter.
    rounds: usize,
    prepare: fn() -> Result<Operation>,
}

/// In the order of the table.
const STAGES: &[Stage] = &[
    Stage { name: "resolve/service", rounds: 1024, prepare: resolve::service },
    Stage { name: "resolve/workload", rounds: 1024, prepare: resolve::workload },
    Stage { name: "resolve/range", rounds: 1024, prepare: resolve::range },
    Stage { name: "resolve/unknown", rounds: 1024, prepare: resolve::unknown },
    Stage { name: "authorize/none", rounds: 1024, prepare: authorize::none },
    Stage { name: "authorize/one", rounds: 1024, prepare: authorize::one },
    Stage { name: "authorize/late", rounds: 256, prepare: authorize::late },
    Stage { name: "authorize/nobody", rounds: 256, prepare: authorize::nobody },
    Stage { name: "authorize/deny", rounds: 256, prepare: authorize::deny },
    Stage { name: "balance/2", rounds: 1024, prepare: || balance::near(2) },
    Stage { name: "balance/100", rounds: 1024, prepare: || balance::near(100) },
    Stage { name: "balance/10000", rounds: 1024, prepare: || balance::near(10_000) },
    Stage { name: "balance/failover", rounds: 1024, prepare: balance::failover },
    Stage { name: "parse/connect", rounds: 256, prepare: parse::connect },
    Stage { name: "parse/proxy-v1", rounds: 256, prepare: parse::proxy_v1 },
    Stage { name: "parse/proxy-v2", rounds: 256, prepare: parse::proxy_v2 },
    Stage { name: "parse/socks5", rounds: 256, prepare: parse::socks5 },
    Stage { name: "parse/mesh", rounds: 16, prepare: parse::mesh },
    Stage { name: "parse/config", rounds: 4, prepare: parse::config },
];

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool> {
    let mut arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [inside, name] = arguments.as_slice()
        && inside == INSIDE
    {
        let stage = STAGES.iter().find(|stage| stage.name == name).context("an unknown stage")?;
        return perform(stage).map(|()| true);
    }
    let record = arguments.iter().position(|argument| argument == "--record").map(|at| arguments.remove(at)).is_some();
    let chosen = |name: &str| arguments.is_empty() || arguments.iter().any(|beginning| name.starts_with(&**beginning));
    let stages: Vec<&Stage> = STAGES.iter().filter(|stage| chosen(stage.name)).collect();
    ensure!(!stages.is_empty(), "no stage begins with that");

    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("benches/stages/{}.limits", std::env::consts::ARCH));
    let mut limits = Limits::read(&file)?;
    let counted = callgrind::count_all(&stages)?;
    if record {
        limits.replace(&counted, |name| STAGES.iter().any(|stage| stage.name == name));
        limits.write(&file)?;
    }
    Ok(report(&stages, &counted, &limits, chosen))
}

/// The table, and whether everything in it is within its limits.
fn report(stages: &[&Stage], counted: &BTreeMap<&str, u64>, limits: &Limits, chosen: impl Fn(&str) -> bool) -> bool {
    let mut good = true;
    println!("stage              instructions     recorded   change");
    for Stage { name, .. } in stages {
        let Some(instructions) = counted.get(name) else { continue };
        let (standing, recorded) = (limits.standing(name, *instructions), limits.recorded(name));
        let change = recorded.map_or_else(String::new, |recorded| change(*instructions, recorded));
        let recorded = recorded.map_or_else(|| "-".to_owned(), |recorded| recorded.to_string());
        let line = format!("{name:<18} {instructions:>12} {recorded:>12} {change:>8}  {standing}");
        println!("{}", line.trim_end());
        good &= matches!(standing, Standing::Within | Standing::FarBelow);
    }
    for name in limits.names().filter(|name| chosen(name) && !counted.contains_key(name)) {
        println!("{name:<18} is recorded, and there is no such stage");
        good = false;
    }
    if !good {
        eprintln!(
            "error: not within the limits\nhint: if that is meant, run it again with `-- --record` and say why in the commit"
        );
    }
    good
}

fn change(now: u64, before: u64) -> String {
    format!("{:+.1} %", (now as f64 / before.max(1) as f64 - 1.0) * 100.0)
}

/// In the child: once for nothing, so that what is made at first use is made, then for callgrind.
fn perform(stage: &Stage) -> Result<()> {
    let mut operation = (stage.prepare)().with_context(|| stage.name)?;
    let warm = (0..stage.rounds).filter(|round| operation(*round)).count();
    ensure!(warm == stage.rounds, "{warm} of {} operations of {} ended as they should", stage.rounds, stage.name);
    let ended_well = counted_rounds(stage.rounds, &mut operation);
    ensure!(ended_well == stage.rounds, "{} does not do the same twice", stage.name);
    Ok(())
}

/// What callgrind counts, by its name.
#[inline(never)]
fn counted_rounds(rounds: usize, operation: &mut Operation) -> usize {
    (0..rounds).map(|round| usize::from(operation(round))).sum()
}
