//! The command line of the bench.
//!
//! Invariant: `settled` is the only reader of `--quick` and of the defaults that it changes.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use super::shape::{self, Shape};

/// Run the same load through adit and its peers, side by side.
///
/// Example: cargo bench --bench peers -- --only bulk,short --peers haproxy,adit --rounds 5 --json peers.json
#[derive(Debug, Parser)]
#[command(name = "peers", verbatim_doc_comment)]
pub(crate) struct Options {
    /// Rounds; the table shows medians over them [default: 3, quick: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// Seconds measured per shape, after a warm-up of a fifth of it [default: 1.5, quick: 0.3]
    #[arg(long, value_name = "S", value_parser = seconds)]
    seconds: Option<Duration>,
    /// Only shapes whose name begins so, e.g. bulk,request-128-1
    #[arg(long, value_name = "SHAPE,...", value_delimiter = ',')]
    pub(crate) only: Vec<String>,
    /// Only these peers [default: direct,haproxy,nginx,adit,envoy-tunnel,adit-tunnel]
    #[arg(long, value_name = "PEER,...", value_delimiter = ',')]
    pub(crate) peers: Vec<String>,
    /// Write every sample and the medians to FILE
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Measure this adit binary instead of the one cargo just built
    #[arg(long, value_name = "PATH", default_value = env!("CARGO_BIN_EXE_adit"))]
    pub(crate) adit: PathBuf,
    /// Idle connections [default: 2000, quick: 200]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=9000))]
    idle: Option<u32>,
    /// The proxy's core and the load's core [default: two cores that share no SMT sibling]
    #[arg(long, value_name = "PROXY,LOAD", value_delimiter = ',', num_args = 2)]
    pub(crate) cores: Vec<usize>,
    /// A smoke run of some 30 seconds: one short round; the figures mean little
    #[arg(long)]
    quick: bool,
    /// Set by cargo; changes nothing
    #[arg(long, hide = true)]
    bench: bool,
    /// Set by the bench itself: be a cell, take the plan from stdin
    #[arg(long, hide = true)]
    pub(crate) cell: bool,
}

/// The options with their defaults filled in.
#[derive(Debug)]
pub(crate) struct Settled {
    pub(crate) rounds: u32,
    pub(crate) length: Duration,
    pub(crate) shapes: Vec<Shape>,
}

impl Options {
    /// Fills the defaults in. Fails on a filter that matches nothing.
    pub(crate) fn settled(&self) -> anyhow::Result<Settled> {
        let quick = self.quick;
        Ok(Settled {
            rounds: self.rounds.unwrap_or(if quick { 1 } else { 3 }),
            length: self.seconds.unwrap_or(Duration::from_millis(if quick { 300 } else { 1500 })),
            shapes: shape::chosen(&self.only, self.idle.unwrap_or(if quick { 200 } else { 2000 }))?,
        })
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_not_a_number| "expected a number of seconds".to_owned())?;
    if !(0.05..=600.0).contains(&seconds) {
        return Err("expected 0.05 to 600 seconds".to_owned());
    }
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}
