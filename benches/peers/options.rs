//! The command line of the bench.
//!
//! Invariant: `settled` is the only reader of `--quick` and of the defaults that it changes.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use super::load::Timing;
use super::recipe::Programs;
use super::shape::{self, Crowds, Shape};

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
    /// Only these peers [default: direct,haproxy,nginx,envoy,adit,adit-2,envoy-tunnel,adit-tunnel]
    #[arg(long, value_name = "PEER,...", value_delimiter = ',')]
    pub(crate) peers: Vec<String>,
    /// Write every sample and the medians to FILE
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Draw CPU time per unit, against adit's, to FILE
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    /// Measure nothing: print, and draw, the run that an earlier --json wrote to FILE
    #[arg(long, value_name = "FILE", conflicts_with_all = ["rounds", "seconds", "only", "peers", "json", "quick"])]
    pub(crate) from: Option<PathBuf>,
    /// Measure this adit binary instead of the one cargo just built
    #[arg(long, value_name = "PATH", default_value = env!("CARGO_BIN_EXE_adit"))]
    adit: PathBuf,
    /// Measure this ztunnel too, alone and through a tunnel to itself (that needs a build with its feature `testing`)
    #[arg(long, value_name = "PATH")]
    ztunnel: Option<PathBuf>,
    /// Idle connections [default: 2000, quick: 200]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=9000))]
    idle: Option<u32>,
    /// Connections of a burst, and of spread [default: 1000, quick: 200]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(10..=9000))]
    burst: Option<u32>,
    /// The proxy's core and the load's core [default: two cores that share no SMT sibling]
    #[arg(long, value_name = "PROXY,LOAD", value_delimiter = ',', num_args = 2)]
    pub(crate) cores: Vec<usize>,
    /// A smoke run of about a minute: one short round; the figures mean little
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
    pub(crate) timing: Timing,
    pub(crate) shapes: Vec<Shape>,
}

impl Options {
    /// The programs that were named. Absolute, because they run in other folders.
    pub(crate) fn programs(&self) -> Programs {
        let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_no_folder| path.clone());
        Programs { adit: absolute(&self.adit), ztunnel: self.ztunnel.as_ref().map(absolute) }
    }

    /// Fills the defaults in. Fails on a filter that matches nothing.
    pub(crate) fn settled(&self) -> anyhow::Result<Settled> {
        let quick = self.quick;
        let or =
            |asked: Option<u32>, quick_default, default| asked.unwrap_or(if quick { quick_default } else { default });
        let length = self.seconds.unwrap_or(Duration::from_millis(if quick { 300 } else { 1500 }));
        let settle = Duration::from_secs(if quick { 6 } else { 60 });
        let crowds = Crowds { idle: or(self.idle, 200, 2000), burst: or(self.burst, 200, 1000) };
        Ok(Settled {
            rounds: or(self.rounds, 1, 3),
            timing: Timing { warm_up: length / 5, length, settle },
            shapes: shape::chosen(&self.only, crowds)?,
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
