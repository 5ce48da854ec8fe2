//! `cargo bench --bench peers`: adit beside its peers, the same shapes of load through each in turn.
//!
//! Comes in: the command line (`-- --help`). Goes out: one table on stdout, progress on stderr, a JSON file and a chart when asked. What is measured and how to read it
//! is in `docs/performance.md`.
//!
//! How it is built: the parent (`rounds`) runs one *cell* per peer and round. A cell is this program again, in fresh network, PID and mount namespaces, so no
//! peer meets the TIME_WAIT sockets, conntrack entries or rules of another, and nothing a peer started outlives its cell. The cell pins itself to one core and
//! the peer to another, starts the peer (`recipe`, `proxy`), runs every shape (`load`), and reports one line of JSON per shape.
//!
//! Invariants: every byte that the load received is counted and compared with what was sent; a peer that is missing or fails is named, in the table's place
//! and on stderr, and a failure makes the exit code 1.
//!
//! Deliberately absent: async. The load generator and the echo server are one thread on one epoll, because they must cost less than any proxy.

/// The rooms of the bench; each file is one of them.
mod peers {
    pub(super) mod account;
    pub(super) mod cell;
    pub(super) mod chart;
    pub(super) mod cores;
    pub(super) mod load;
    pub(super) mod namespace;
    pub(super) mod options;
    pub(super) mod proxy;
    pub(super) mod recipe;
    pub(super) mod record;
    pub(super) mod rounds;
    pub(super) mod shape;
    pub(super) mod stats;
    pub(super) mod table;
}

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use peers::options::Options;

fn main() -> ExitCode {
    let options = Options::parse();
    let outcome = if options.cell { peers::cell::run() } else { peers::rounds::run(&options) };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // Nobody is left to hear of a failure to say so.
            let _ = writeln!(std::io::stderr(), "peers: {error:#}");
            ExitCode::FAILURE
        }
    }
}
