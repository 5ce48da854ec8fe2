//! What the admin API asks of the daemon, and the documents that it carries. The daemon's wiring implements [`Control`];
//! the command line reads the same documents back.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::lifecycle::Blocker;
use crate::lifecycle::handover::Version;
use crate::telemetry::text::Rfc3339;
use crate::telemetry::{ConnectionInfo, Door, FilterError};

/// An answer that may take a moment. The API gives up on it after a deadline by dropping it.
pub type Reply<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Writes a document of any size; runs on a blocking thread.
pub type Dump = Box<dyn FnOnce(&mut dyn io::Write) -> io::Result<()> + Send>;

/// The daemon, as its operator sees it. Every method is called on the control thread and must not block.
pub trait Control: Send + Sync + 'static {
    /// The settings in force, as the document that an operator would write. Secrets are left out.
    fn config(&self) -> Reply<'_, serde_json::Value>;

    /// The state in force as one JSON object that is valid input: `schemaVersion`, `source`, `hash`, `appliedAt`,
    /// `rejected`, `workloads`, `services`. Secrets are left out.
    fn mesh(&self) -> Dump;

    /// Live connections, oldest first.
    fn connections(&self) -> Reply<'_, Vec<ConnectionInfo>>;

    /// Own certificates, trusted roots, revocation lists; never a key.
    fn certs(&self) -> Reply<'_, serde_json::Value>;

    fn status(&self) -> Reply<'_, Status>;

    /// What the daemon would do with a connection, asked as `from=..&to=..&identity=..`: `text` for a person, and
    /// `explanation`. Or what is wrong with the question.
    fn explain(&self, question: &str) -> Result<serde_json::Value, String>;

    /// Reads everything again, whether or not it seems to have changed.
    fn reload(&self) -> Reply<'_, ReloadReport>;

    /// Starts the drain and returns at once; a second call changes nothing.
    fn drain(&self);

    /// Starts the program anew and lets it take over; on error nothing has changed.
    fn upgrade(&self) -> Reply<'_, Result<UpgradeReport, String>>;

    fn log_filter(&self) -> String;

    /// Until the next reload. On error the old filter stays.
    fn set_log_filter(&self, filter: &str) -> Result<(), FilterError>;
}

/// `GET /status`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    pub version: String,
    pub pid: u32,
    pub mode: String,
    pub uptime_ms: u64,
    /// The word of [`Phase::as_str`](crate::lifecycle::Phase::as_str).
    pub phase: String,
    pub ready: bool,
    pub blockers: Vec<BlockerInfo>,
    pub workers: usize,
    pub connections: ConnectionCounts,
    /// Nothing: there is no identity, so there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tunnels: Option<TunnelCounts>,
    pub config: SourceStatus,
    pub mesh: SourceStatus,
    /// Keys whose new value a reload refused because they need a restart.
    pub refused_keys: Vec<String>,
    /// Versions that this one has followed and that still have connections, the oldest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub draining: Vec<DrainingVersion>,
}

/// A version before this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DrainingVersion {
    pub pid: u32,
    pub version: String,
    /// What it has open; nothing: it has not said so yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<u64>,
    /// RFC 3339, when the rest is cut; nothing: it waits for the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConnectionCounts {
    pub open: u64,
    /// Nothing: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    pub listeners: Vec<ListenerStatus>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListenerStatus {
    pub name: Door,
    pub address: String,
    pub open: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

/// Tunnels by who connected; counted four times a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TunnelCounts {
    pub to_peers: TunnelCount,
    pub from_peers: TunnelCount,
}

/// How many there are, and how many streams are open in them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TunnelCount {
    pub tunnels: u64,
    pub streams: u64,
}

/// Settings or state: what is in force and what was refused last.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SourceStatus {
    /// Files and folders.
    pub source: Vec<String>,
    pub hash: String,
    /// RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub applied_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rejected: Option<Rejection>,
    /// How much there is, for example `workloads` -> 12.
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub counts: std::collections::BTreeMap<String, u64>,
}

/// Content that was not valid; what was in force before still is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejection {
    /// RFC 3339.
    pub at: String,
    pub errors: Vec<String>,
}

/// `POST /reload`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReloadReport {
    pub config: Reloading,
    pub mesh: Reloading,
    #[serde(default)]
    pub refused_keys: Vec<String>,
}

/// `POST /upgrade`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UpgradeReport {
    pub from: Version,
    pub to: Version,
    /// Listening sockets that the new version has taken over.
    pub moved: usize,
    /// Listeners that it has opened itself: new ones, and ones with a changed address.
    pub opened: Vec<String>,
    /// Listeners whose socket it has no use for.
    pub left: Vec<String>,
    /// Connections that stay with the old version.
    pub connections: u64,
    /// RFC 3339, when the old version cuts what is left of them; nothing: it waits for the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
}

/// What became of one source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloading {
    pub result: ReloadResult,
    pub hash: String,
    #[serde(default)]
    pub errors: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReloadResult {
    Applied,
    Unchanged,
    Rejected,
}

/// Why the process is not ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockerInfo {
    pub name: String,
    /// RFC 3339.
    pub since: String,
    pub error: Option<String>,
}

/// `GET /connections`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionList {
    pub connections: Vec<ConnectionInfo>,
}

impl ReloadReport {
    /// The answer of a daemon that is on its way out.
    #[must_use]
    pub fn stopping() -> Self {
        let refused = || Reloading {
            result: ReloadResult::Rejected,
            hash: String::new(),
            errors: vec!["adit is stopping".to_owned()],
        };
        Self { config: refused(), mesh: refused(), refused_keys: Vec::new() }
    }

    #[must_use]
    pub fn is_rejected(&self) -> bool {
        [&self.config, &self.mesh].iter().any(|part| part.result == ReloadResult::Rejected)
    }
}

impl ReloadResult {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Unchanged => "unchanged",
            Self::Rejected => "rejected",
        }
    }
}

impl From<&Blocker> for BlockerInfo {
    fn from(blocker: &Blocker) -> Self {
        Self { name: blocker.name.clone(), since: rfc3339(blocker.since), error: blocker.error.clone() }
    }
}

/// The form that times have in every document.
#[must_use]
pub fn rfc3339(time: SystemTime) -> String {
    Rfc3339(time).to_string()
}
