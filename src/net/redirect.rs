//! Capture: the rules by which the kernel hands the TCP connections of this network namespace to adit, and takes them away.
//!
//! ```text
//! Options -> rules -> RuleSet -> print                          (a pure function and its text)
//!                             -> apply -> nft, rtnetlink, bpf   (of the network namespace of the calling thread)
//!                                confirm, remove
//! ```
//!
//! Everything is one nftables table, `inet adit`, replaced in one transaction, plus the ip rules and the routing table behind
//! the marks 0x111 and 0x112; with [`Kind::Connect`] programs of a cgroup and of the namespace take their place. Applying twice
//! is applying once; [`remove`] takes away everything, also after an `apply` that failed halfway, and nothing that is not adit's.
//! Fails closed: in doubt about the namespace or about adit's readiness, [`apply`] refuses. `docs/capture.md` tells the
//! operator's side.

mod connect;
mod nft;
mod options;
mod readiness;
mod routing;
mod ruleset;

use std::net::SocketAddr;
use std::time::Duration;

use rustix::io::Errno;

pub use connect::{ByRule, ConnectError};
pub use nft::{NftError, check, table};
pub use options::{CLIENT_MARK, Filter, InvalidMark, InvalidPorts, Kind, MARK_MASK, Mark, Options, Ports, TPROXY_MARK};
pub use readiness::NotReady;
pub use routing::RoutingError;
pub use ruleset::{LocalMark, ROUTE_TABLE, RuleSet, TABLE, rules};

use crate::net::capability;
use crate::net::cgroup::CgroupError;
use crate::net::namespace::{self, Verdict};

/// What [`apply`] asks before it leads traffic anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Safeguards {
    /// Whether the machine's own network namespace may be captured.
    pub host: bool,
    /// Where adit says whether it is ready; `None`: do not ask.
    pub readiness: Option<SocketAddr>,
}

/// What [`confirm`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confirmation {
    /// Capture stays.
    Confirmed,
    /// No rollback was pending.
    NothingPending,
}

#[derive(Debug, thiserror::Error)]
pub enum RedirectError {
    #[error("missing CAP_NET_ADMIN: the rules of this network namespace cannot be changed")]
    MissingCapability,
    #[error("this is the network namespace of the whole machine")]
    InitialNamespace,
    #[error("cannot tell whether this is the network namespace of the whole machine: {0}")]
    UnknownNamespace(String),
    #[error("--host without a list of inbound ports would capture every port of this machine")]
    InboundPortsNotListed,
    #[error("--cgroup is for --kind connect")]
    CgroupWithoutConnect,
    #[error("neither a mark nor a user id of adit is given: adit would capture itself")]
    NothingExempt,
    #[error(transparent)]
    NotReady(NotReady),
    #[error(transparent)]
    Nft(NftError),
    #[error(transparent)]
    Routing(RoutingError),
    #[error(transparent)]
    Connect(ConnectError),
    #[error("nothing to confirm: no capture rules are applied here")]
    NotApplied,
    #[error("too late: the rollback has already happened")]
    RolledBack,
}

impl RedirectError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::MissingCapability => "run as root, or with CAP_NET_ADMIN in the user namespace that owns this one",
            Self::InitialNamespace | Self::UnknownNamespace(_) => {
                "run it inside the workload's namespace (`nsenter --net=...`), or add --host with --include-inbound-ports"
            }
            Self::InboundPortsNotListed => "add --include-inbound-ports 8080,8443 (or none)",
            Self::CgroupWithoutConnect => "add --kind connect, or leave --cgroup out",
            Self::NothingExempt => "give --mark or --exclude-uid",
            Self::NotReady(_) => {
                "start adit first, or let it --wait 10s; name its readiness port with --readiness, or use --force"
            }
            Self::Nft(NftError::Missing) => "install the package nftables",
            Self::Nft(NftError::Refused { .. }) => {
                "the kernel needs nf_tables with nat, fib and tproxy (see docs/capture.md)"
            }
            Self::Routing(error) if error.errno() == Errno::NETDOWN => {
                "bring the loopback interface up: ip link set lo up"
            }
            Self::Connect(error) if error.is_denied() => {
                "--kind connect wants CAP_SYS_ADMIN in the first user namespace: run it as root on the host, inside the \
                 workload's network namespace (`nsenter --net=...`)"
            }
            Self::Connect(ConnectError::Cgroup(CgroupError::NotMounted)) => {
                "mount it (`mount -t cgroup2 none /sys/fs/cgroup`), or use --kind redirect"
            }
            Self::Connect(ConnectError::Cgroup(CgroupError::NotACgroup(_))) => {
                "give --cgroup a folder below the mount of cgroup2"
            }
            Self::Connect(ConnectError::Hidden) => {
                "run it where that cgroup is visible: on the host, by `nsenter --net=...` (`ip netns exec` hides all cgroups)"
            }
            Self::Connect(ConnectError::Program { .. }) => {
                "the kernel needs BPF programs at cgroups (see docs/capture.md); --kind redirect does without"
            }
            Self::NotApplied | Self::RolledBack => "run `adit redirect apply` again",
            Self::Nft(NftError::Run(_)) | Self::Routing(_) | Self::Connect(_) => return None,
        })
    }
}

/// Asks at `address` until adit is ready for the rules, no longer than `limit`. What it ends with, [`apply`] finds as well.
pub fn wait_until_ready(address: SocketAddr, limit: Duration) {
    readiness::wait(address, limit);
}

/// Installs the rules of `options` in the network namespace of the calling thread, in place of any there were. With
/// [`Kind::Connect`] it returns why a rule captures inbound connections, if not the sockets do.
pub fn apply(options: &Options, safeguards: &Safeguards) -> Result<Option<ByRule>, RedirectError> {
    if options.mark.is_none() && options.uids.is_empty() {
        return Err(RedirectError::NothingExempt);
    }
    if options.cgroup.is_some() && options.kind != Kind::Connect {
        return Err(RedirectError::CgroupWithoutConnect);
    }
    require_capability()?;
    namespace_allows(&namespace::current(), safeguards.host, options)?;
    if let Some(address) = safeguards.readiness {
        readiness::ask(address).map_err(RedirectError::NotReady)?;
    }
    let mut rules = rules(options);
    // First, so that at no time nothing captures: rules that are still there leave alone what goes to adit's door.
    let attached = rules.at_sockets.then(|| connect::attach(options)).transpose().map_err(RedirectError::Connect)?;
    if attached.is_some() && matches!(table(), Ok(Some(_))) {
        connect::let_finish();
    }
    if attached.as_ref().is_some_and(|attached| attached.by_rule().is_none()) {
        rules = ruleset::without_rules();
    }
    if let Err(error) = install(&rules) {
        if let Some(attached) = attached {
            attached.undo();
        }
        return Err(error);
    }
    match attached {
        Some(attached) => attached.finish(),
        None => allowed(connect::remove()).map(|_any| None),
    }
    .map_err(RedirectError::Connect)
}

/// Routes and rules, and nothing of an earlier `apply` that they do not need.
fn install(rules: &RuleSet) -> Result<(), RedirectError> {
    // Routes first: without marks they do nothing, and with marks everything depends on them.
    let added = routing::add(&rules.local_marks).map_err(RedirectError::Routing);
    let load = || match nft::load("the rules", &rules.nft) {
        // There is nothing to load, and without the program there is hardly anything to replace.
        Err(NftError::Missing) if rules.is_empty() => Ok(()),
        loaded => loaded.map_err(RedirectError::Nft),
    };
    if let Err(error) = added.and_then(|()| load()) {
        // Whatever was captured before still is: the transaction failed as a whole.
        if !matches!(table(), Ok(Some(_))) {
            let _ = routing::delete(LocalMark::ALL, true);
        }
        return Err(error);
    }
    let unused: Vec<_> = rules.unused_marks().collect();
    routing::delete(unused, rules.local_marks.is_empty()).map_err(RedirectError::Routing)
}

/// Makes an `apply` with a rollback permanent.
pub fn confirm() -> Result<Confirmation, RedirectError> {
    require_capability()?;
    let programs = allowed(connect::rollback()).map_err(RedirectError::Connect)?.flatten();
    let rules = match rules_rollback() {
        // Without it there are no rules, where only programs capture.
        Err(NftError::Missing) if programs.is_some() => None,
        rules => rules.map_err(RedirectError::Nft)?,
    };
    let both = [rules, programs];
    if both == [None, None] {
        return Err(RedirectError::NotApplied);
    }
    if both.contains(&Some(Rollback::Over)) {
        return Err(RedirectError::RolledBack);
    }
    if !both.contains(&Some(Rollback::Pending)) {
        return Ok(Confirmation::NothingPending);
    }
    if rules == Some(Rollback::Pending) {
        nft::load("the confirmation", &ruleset::confirmation()).map_err(RedirectError::Nft)?;
    }
    if programs == Some(Rollback::Pending) {
        connect::confirm().map_err(RedirectError::Connect)?;
    }
    Ok(Confirmation::Confirmed)
}

/// Takes away everything that any `apply` installed here. Does all it can before it reports the first failure.
pub fn remove() -> Result<(), RedirectError> {
    require_capability()?;
    let programs = allowed(connect::remove());
    let table = match nft::load("the removal", &ruleset::removal()) {
        Err(NftError::Missing) if matches!(programs, Ok(Some(true))) => Ok(()),
        table => table.map_err(RedirectError::Nft),
    };
    let routes = routing::delete(LocalMark::ALL, true).map_err(RedirectError::Routing);
    programs.map(drop).map_err(RedirectError::Connect).and(table).and(routes)
}

/// How it stands with a rollback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rollback {
    NotPending,
    Pending,
    Over,
}

/// That of the rules; `None` when there are none.
fn rules_rollback() -> Result<Option<Rollback>, NftError> {
    if table()?.is_none() {
        return Ok(None);
    }
    Ok(Some(match nft::armed_set()? {
        None => Rollback::NotPending,
        Some(armed) if !armed.contains("elements") => Rollback::Over,
        Some(armed) if !armed.contains("expires") => Rollback::NotPending,
        Some(_) => Rollback::Pending,
    }))
}

/// `None`: whoever asks may not even look at programs, and so has none of its own. That is so in most containers.
fn allowed<T>(asked: Result<T, ConnectError>) -> Result<Option<T>, ConnectError> {
    match asked {
        Err(error) if error.is_denied() => Ok(None),
        // Where nothing tells what is mounted, nothing can be looked at either.
        Err(ConnectError::Cgroup(CgroupError::Mounts(_))) => Ok(None),
        asked => asked.map(Some),
    }
}

fn require_capability() -> Result<(), RedirectError> {
    if capability::can_administer(capability::effective()) { Ok(()) } else { Err(RedirectError::MissingCapability) }
}

fn namespace_allows(verdict: &Verdict, host: bool, options: &Options) -> Result<(), RedirectError> {
    match (verdict, host) {
        (Verdict::Private, false) => Ok(()),
        (Verdict::Initial, false) => Err(RedirectError::InitialNamespace),
        (Verdict::Unknown(why), false) => Err(RedirectError::UnknownNamespace(why.clone())),
        (_, true) if options.inbound.include_ports.is_none() => Err(RedirectError::InboundPortsNotListed),
        (_, true) => Ok(()),
    }
}

#[cfg(test)]
mod tests;
