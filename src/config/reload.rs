//! What a reload may change. Pure: two settings in, a plan out.
//!
//! The rooms get [`ReloadPlan::applied`], which differs from what runs only in keys that apply live; every other change
//! is refused by key name and reported until a restart. Cross checks hold for `applied` because no check looks at both
//! live and restart keys (a test says so).

use serde::Serialize;
use serde_json::Value;

use super::render::{self, Shown};
use super::schema::Reload;
use super::settings::{Identity, Log, Settings};

/// The outcome of comparing what runs with what is wanted.
#[derive(Debug, Clone, PartialEq)]
pub struct ReloadPlan {
    /// What to run with from now on.
    pub applied: Settings,
    /// Wanted changes that need a restart, with the value that stays.
    pub refused: Vec<RefusedKey>,
    /// Keys that did change.
    pub changed: Vec<&'static str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RefusedKey {
    pub key: &'static str,
    pub running: Value,
    pub wanted: Value,
}

/// Compares `running` with `wanted`, both as they came from the loader.
pub fn diff(running: &Settings, wanted: &Settings) -> ReloadPlan {
    let applied = Settings {
        egress: wanted.egress,
        socks5_allow_local: wanted.socks5_allow_local,
        identity: Identity {
            trust_domain_aliases: wanted.identity.trust_domain_aliases.clone(),
            ..running.identity.clone()
        },
        policy: wanted.policy,
        inbound: wanted.inbound.clone(),
        balance: wanted.balance,
        on_endpoint_removed: wanted.on_endpoint_removed,
        tunnel: wanted.tunnel.clone(),
        connect: wanted.connect.clone(),
        relay: wanted.relay.clone(),
        keepalive: wanted.keepalive,
        limits: wanted.limits,
        shutdown: wanted.shutdown,
        metrics: wanted.metrics.clone(),
        log: Log { format: running.log.format, filter: wanted.log.filter.clone(), access: wanted.log.access },
        ..running.clone()
    };
    let (mut refused, mut changed) = (Vec::new(), Vec::new());
    for (running, wanted) in render::flat(running).into_iter().zip(render::flat(wanted)) {
        let Shown { key, reload, value } = wanted;
        match reload {
            _ if value == running.value => {}
            Reload::Live => changed.push(key),
            Reload::Restart => refused.push(RefusedKey { key, running: running.value, wanted: value }),
        }
    }
    ReloadPlan { applied, refused, changed }
}
