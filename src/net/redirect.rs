//! Capture: the rules by which the kernel hands the TCP connections of this network namespace to adit, and takes them away.
//!
//! ```text
//! Options -> rules -> RuleSet -> print                     (a pure function and its text)
//!                             -> apply -> nft, rtnetlink   (of the network namespace of the calling thread)
//!                                confirm, remove
//! ```
//!
//! Everything is one nftables table, `inet adit`, replaced in one transaction, plus the ip rules and the routing table behind
//! the marks 0x111 and 0x112. Applying twice is applying once; [`remove`] takes away everything, also after an `apply` that
//! failed halfway, and nothing that is not adit's. Fails closed: in doubt about the namespace or about adit's
//! readiness, [`apply`] refuses. `docs/capture.md` tells the operator's side.

mod nft;
mod options;
mod readiness;
mod routing;
mod ruleset;

use std::net::SocketAddr;
use std::time::Duration;

use rustix::io::Errno;

pub use nft::{NftError, check, table};
pub use options::{Filter, InvalidMark, InvalidPorts, Kind, MARK_MASK, Mark, Options, Ports, REPLY_MARK, TPROXY_MARK};
pub use readiness::NotReady;
pub use routing::RoutingError;
pub use ruleset::{LocalMark, ROUTE_TABLE, RuleSet, TABLE, rules};

use crate::net::capability;
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
    #[error("neither a mark nor a user id of adit is given: adit would capture itself")]
    NothingExempt,
    #[error(transparent)]
    NotReady(NotReady),
    #[error(transparent)]
    Nft(NftError),
    #[error(transparent)]
    Routing(RoutingError),
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
            Self::NotApplied | Self::RolledBack => "run `adit redirect apply` again",
            Self::Nft(NftError::Run(_)) | Self::Routing(_) => return None,
        })
    }
}

/// Asks at `address` until adit is ready for the rules, no longer than `limit`. What it ends with, [`apply`] finds as well.
pub fn wait_until_ready(address: SocketAddr, limit: Duration) {
    readiness::wait(address, limit);
}

/// Installs the rules of `options` in the network namespace of the calling thread, in place of any there were.
pub fn apply(options: &Options, safeguards: &Safeguards) -> Result<RuleSet, RedirectError> {
    if options.mark.is_none() && options.uids.is_empty() {
        return Err(RedirectError::NothingExempt);
    }
    require_capability()?;
    namespace_allows(&namespace::current(), safeguards.host, options)?;
    if let Some(address) = safeguards.readiness {
        readiness::ask(address).map_err(RedirectError::NotReady)?;
    }
    let rules = rules(options);
    // Routes first: without marks they do nothing, and with marks everything depends on them.
    let added = routing::add(&rules.local_marks).map_err(RedirectError::Routing);
    if let Err(error) = added.and_then(|()| nft::load("the rules", &rules.nft).map_err(RedirectError::Nft)) {
        // Whatever was captured before still is: the transaction failed as a whole.
        if !matches!(table(), Ok(Some(_))) {
            let _ = routing::delete(LocalMark::ALL, true);
        }
        return Err(error);
    }
    let unused: Vec<_> = rules.unused_marks().collect();
    routing::delete(unused, rules.local_marks.is_empty()).map_err(RedirectError::Routing)?;
    Ok(rules)
}

/// Makes an `apply` with a rollback permanent.
pub fn confirm() -> Result<Confirmation, RedirectError> {
    require_capability()?;
    if table().map_err(RedirectError::Nft)?.is_none() {
        return Err(RedirectError::NotApplied);
    }
    let Some(armed) = nft::armed_set().map_err(RedirectError::Nft)? else { return Ok(Confirmation::NothingPending) };
    if !armed.contains("elements") {
        return Err(RedirectError::RolledBack);
    }
    if !armed.contains("expires") {
        return Ok(Confirmation::NothingPending);
    }
    nft::load("the confirmation", &ruleset::confirmation()).map_err(RedirectError::Nft)?;
    Ok(Confirmation::Confirmed)
}

/// Takes away everything that any `apply` installed here. Does all it can before it reports the first failure.
pub fn remove() -> Result<(), RedirectError> {
    require_capability()?;
    let table = nft::load("the removal", &ruleset::removal()).map_err(RedirectError::Nft);
    let routes = routing::delete(LocalMark::ALL, true).map_err(RedirectError::Routing);
    table.and(routes)
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
