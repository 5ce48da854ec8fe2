//! `adit certs` and `adit certs show`: the identity that a running daemon has, whom it trusts, and what each root is
//! still needed for.

use std::io::{self, Write};

use clap::Args;
use hyper::Method;
use serde::Deserialize;

use crate::cli::client::table::{self, Align, Table};
use crate::cli::client::{AdminArgs, ClientError, run};
use crate::cli::{Exit, Output};

#[derive(Debug, Clone, Args)]
pub struct ShowArgs {
    #[command(flatten)]
    pub admin: AdminArgs,

    /// Print the daemon's answer as JSON
    #[arg(long)]
    pub json: bool,
}

/// What this needs of the document of `GET /certs`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Document {
    source: String,
    identity: Option<String>,
    generation: u64,
    published_at: Option<String>,
    blocked: Option<String>,
    chain: Vec<Certificate>,
    root: Option<String>,
    roots: Vec<Certificate>,
    retired_roots: Vec<Certificate>,
    other_roots: Vec<Certificate>,
    failures_in_a_row: u64,
    last_failure: Option<Failure>,
    faults: Vec<Failure>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Certificate {
    subject: String,
    issuer: String,
    serial: String,
    not_before: String,
    not_after: String,
    fingerprint: String,
    signed_own: bool,
    live_peers: u64,
    trusted_until: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Failure {
    at: String,
    reason: String,
    message: String,
}

const CHAIN: [(&str, Align); 5] = [
    ("CHAIN", Align::Left),
    ("ISSUER", Align::Left),
    ("NOT BEFORE", Align::Left),
    ("NOT AFTER", Align::Left),
    ("SERIAL", Align::Left),
];

const ROOTS: [(&str, Align); 6] = [
    ("ROOT", Align::Left),
    ("STATE", Align::Left),
    ("LIVE PEERS", Align::Right),
    ("NEEDED HERE", Align::Left),
    ("NOT AFTER", Align::Left),
    ("FINGERPRINT", Align::Left),
];

impl ShowArgs {
    /// Blocks until it is done.
    pub fn run(&self, output: &mut Output<'_>) -> Exit {
        run(output, |out, _| self.run_on(out))
    }

    pub(super) fn run_on(&self, out: &mut dyn Write) -> Result<Exit, ClientError> {
        let answer = self.admin.ask(Method::GET, "/certs")?;
        let document: Document = answer.success()?;
        let written = if self.json { out.write_all(answer.body()) } else { write(&document, out) };
        written.map_err(ClientError::Output)?;
        Ok(Exit::Ok)
    }
}

fn write(document: &Document, out: &mut dyn Write) -> io::Result<()> {
    let mut line = |name: &str, value: &str| writeln!(out, "{name:<12} {}", table::shown(value));
    line("identity", document.identity.as_deref().unwrap_or("none"))?;
    line("source", &document.source)?;
    if let Some(published_at) = &document.published_at {
        line("generation", &format!("{}, published {published_at}", document.generation))?;
    }
    if let Some(leaf) = document.chain.first() {
        line("serial", &leaf.serial)?;
        line("not before", &leaf.not_before)?;
        line("not after", &leaf.not_after)?;
    }
    if let Some(root) = document.roots.iter().find(|root| Some(&root.fingerprint) == document.root.as_ref()) {
        line("root", &root.subject)?;
    }
    if let Some(blocked) = &document.blocked {
        line("not ready", blocked)?;
    }
    if let Some(Failure { at, reason, message }) = &document.last_failure {
        line("last failure", &format!("{at}: {reason}: {message} ({} in a row)", document.failures_in_a_row))?;
    }
    for Failure { reason, message, .. } in &document.faults {
        line("fault", &format!("{reason}: {message}"))?;
    }
    if !document.chain.is_empty() {
        let mut chain = Table::new(CHAIN);
        for (index, it) in document.chain.iter().enumerate() {
            let whose = if index == 0 { document.identity.as_ref() } else { None }.unwrap_or(&it.subject);
            chain.row([whose, &it.issuer, &it.not_before, &it.not_after, &it.serial].map(String::clone));
        }
        writeln!(out)?;
        chain.write(out)?;
    }
    let mut roots = Table::new(ROOTS);
    let retired = |root: &Certificate| format!("retired, until {}", root.trusted_until.as_deref().unwrap_or("then"));
    let all = document.roots.iter().map(|root| (root, "trusted".to_owned()));
    let all = all.chain(document.retired_roots.iter().map(|root| (root, retired(root))));
    let mut all = all.chain(document.other_roots.iter().map(|root| (root, "not trusted".to_owned()))).peekable();
    if all.peek().is_none() {
        return Ok(());
    }
    for (root, state) in all {
        let peers = root.live_peers.to_string();
        roots.row([root.subject.clone(), state, peers, needed(root), root.not_after.clone(), root.fingerprint.clone()]);
    }
    writeln!(out)?;
    roots.write(out)
}

/// Why the root cannot go yet, as far as this adit knows.
fn needed(root: &Certificate) -> String {
    match (root.signed_own, root.live_peers) {
        (true, 0) => "by the own certificate",
        (true, _) => "by the own certificate and peers",
        (false, 0) => "no",
        (false, _) => "by peers",
    }
    .to_owned()
}
