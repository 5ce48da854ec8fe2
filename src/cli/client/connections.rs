//! `adit connections`: the table of live connections.

use std::io::Write;
use std::net::SocketAddr;

use clap::Args;
use hyper::Method;

use crate::admin::api::ConnectionList;
use crate::cli::client::table::{self, Align, Table};
use crate::cli::client::{AdminArgs, ClientError, run};
use crate::cli::{Exit, Output};
use crate::telemetry::{ConnectionInfo, ConnectionPeer};

/// List the running daemon's live connections
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:\n  adit connections\n\n\
    FROM CLIENT and TO CLIENT are bytes carried in that direction. Columns without values are left out.")]
pub struct ConnectionsArgs {
    #[command(flatten)]
    pub admin: AdminArgs,

    /// Print the daemon's answer as JSON
    #[arg(long)]
    pub json: bool,
}

const COLUMNS: [(&str, Align); 15] = [
    ("ID", Align::Right),
    ("DIRECTION", Align::Left),
    ("LISTENER", Align::Left),
    ("CLIENT", Align::Left),
    ("DESTINATION", Align::Left),
    ("UPSTREAM", Align::Left),
    ("FROM", Align::Left),
    ("TO", Align::Left),
    ("SERVICE", Align::Left),
    ("IDENTITIES", Align::Left),
    ("FROM CLIENT", Align::Right),
    ("TO CLIENT", Align::Right),
    ("AGE", Align::Right),
    ("IDLE", Align::Right),
    ("STATE", Align::Left),
];

impl ConnectionsArgs {
    /// Blocks until it is done.
    pub fn run(&self, output: &mut Output<'_>) -> Exit {
        run(output, |out, _| self.run_on(out))
    }

    pub(super) fn run_on(&self, out: &mut dyn Write) -> Result<Exit, ClientError> {
        let answer = self.admin.ask(Method::GET, "/connections")?;
        let list: ConnectionList = answer.success()?;
        let written = if self.json {
            out.write_all(answer.body())
        } else if list.connections.is_empty() {
            writeln!(out, "no connections")
        } else {
            let mut table = Table::new(COLUMNS);
            for connection in &list.connections {
                table.row(row(connection));
            }
            table.write(out)
        };
        written.map_err(ClientError::Output)?;
        Ok(Exit::Ok)
    }
}

fn row(connection: &ConnectionInfo) -> [String; COLUMNS.len()] {
    [
        connection.id.to_string(),
        connection.direction.as_str().into(),
        connection.listener.as_str().into(),
        connection.downstream.to_string(),
        address(connection.original_dst),
        address(connection.upstream),
        workload(&connection.source),
        workload(&connection.destination),
        connection.service.clone(),
        identities(connection),
        table::bytes(connection.bytes_from_downstream),
        table::bytes(connection.bytes_from_upstream),
        table::age(connection.age_ms),
        table::age(connection.idle_ms),
        connection.state.as_str().into(),
    ]
}

fn address(address: Option<SocketAddr>) -> String {
    address.map_or_else(String::new, |address| address.to_string())
}

fn workload(peer: &ConnectionPeer) -> String {
    match (peer.namespace.as_str(), peer.workload.as_str()) {
        (_, "") => String::new(),
        ("", workload) => workload.into(),
        (namespace, workload) => format!("{namespace}/{workload}"),
    }
}

fn identities(connection: &ConnectionInfo) -> String {
    let known = |identity: &str| if identity.is_empty() { "-".to_owned() } else { identity.to_owned() };
    match (&connection.source.identity, &connection.destination.identity) {
        (source, destination) if source.is_empty() && destination.is_empty() => String::new(),
        (source, destination) => format!("{} -> {}", known(source), known(destination)),
    }
}
