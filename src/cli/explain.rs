//! `adit explain`: what adit would do with a connection, step by step; from files, or by a running daemon's state.

use clap::Args;
use hyper::Method;
use serde_json::Value;

use super::client::{self, AdminArgs, ClientError};
use super::{ConfigArgs, Exit, Output};
use crate::config::{self, Sources};
use crate::mesh;
use crate::proxy::explain::{Query, explain};

pub(super) const EXAMPLE: &str =
    "Exit codes: 0 it would be let through, 1 it would not (or nobody knows), 78 something is wrong with the files.

Examples:
  adit explain --config adit.yaml --from 10.0.0.5 --to 10.96.0.1:80
  adit explain --live --from 10.0.0.5 --to 10.0.0.9:8080 --identity spiffe://cluster.local/ns/shop/sa/cart --json";

#[derive(Debug, Clone, Args)]
pub(super) struct ExplainArgs {
    /// Who connects: IP or IP:PORT; 127.0.0.1 is the workload that this adit serves
    #[arg(long, value_name = "IP[:PORT]", value_parser = Query::parse_from)]
    from: std::net::IpAddr,

    /// Where to, as the client says it: the address of a workload or a service
    #[arg(long, value_name = "IP:PORT")]
    to: std::net::SocketAddr,

    /// Who the client proves to be in a tunnel [default: what the state says of --from]
    #[arg(long, value_name = "SPIFFE-ID", value_parser = Query::parse_identity)]
    identity: Option<crate::identity::SpiffeId>,

    /// Ask a running daemon, which knows besides which endpoints fail and how much they are in use
    #[arg(long, conflicts_with_all = ["config", "set"])]
    live: bool,

    /// Print all of it as JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    config: ConfigArgs,

    #[command(flatten)]
    admin: AdminArgs,
}

pub(super) fn execute(args: &ExplainArgs, process: &Sources, output: &mut Output<'_>) -> Exit {
    let query = Query { from: args.from, to: args.to, identity: args.identity.clone(), now_ms: None };
    if args.live {
        return live(args, &query, output);
    }
    let settings = match config::load(&args.config.clone().sources(process)) {
        Ok(settings) => settings,
        Err(problems) => return output.problems(&problems),
    };
    let snapshot = match mesh::read(settings.mesh.files.clone()) {
        Ok(snapshot) => snapshot,
        Err(problems) => return output.problems(&problems),
    };
    let explanation = explain(&snapshot, &settings, &query);
    let told = match args.json {
        true => output.data(pretty(&serde_json::to_value(&explanation).unwrap_or_default())),
        false => output.data(&explanation),
    };
    if explanation.verdict.allowed { told } else { Exit::Failed }
}

fn live(args: &ExplainArgs, query: &Query, output: &mut Output<'_>) -> Exit {
    client::run(output, |out, _| {
        let answer = args.admin.ask(Method::GET, &format!("/explain?{}", query.to_query_string()))?;
        let document: Value = answer.success()?;
        let shown = match args.json {
            true => pretty(&document["explanation"]),
            false => document["text"].as_str().unwrap_or_default().to_owned(),
        };
        writeln!(out, "{shown}").map_err(ClientError::Output)?;
        let allowed = document["explanation"]["verdict"]["allowed"].as_bool().unwrap_or_default();
        Ok(if allowed { Exit::Ok } else { Exit::Failed })
    })
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}
