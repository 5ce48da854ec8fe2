//! Which network namespace the calling thread is in: one of its own, or the initial one that the whole machine shares.
//!
//! Nothing comes in; a [`Verdict`] goes out. Two sources are asked. The sysctl `net.core.netdev_max_backlog` exists only
//! in the initial network namespace, and `/proc/sys/net` shows the namespace of whoever reads it, so this answer also
//! holds inside a container with a pid namespace of its own. Where `/proc/sys/net` cannot be read, the namespace is compared
//! with that of process 1; that says "private" for certain, but inside a container process 1 may be the container's.
//! Fails closed: what cannot be told is [`Verdict::Unknown`], to be treated like the initial namespace.

use std::fs;
use std::io;
use std::path::Path;

use crate::net::sockopt;

/// Present in the initial network namespace only (`net_core_table` is registered for `init_net`).
const INITIAL_ONLY: &str = "/proc/sys/net/core/netdev_max_backlog";
/// Present in every network namespace.
const EVERYWHERE: &str = "/proc/sys/net/core/somaxconn";

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// A namespace of its own: a pod, a container, `ip netns`.
    Private,
    /// The namespace of the machine itself.
    Initial,
    /// What could not be read.
    Unknown(String),
}

/// The network namespace of the calling thread.
#[must_use]
pub fn current() -> Verdict {
    judge(exists(EVERYWHERE), exists(INITIAL_ONLY), || {
        let ours = fs::read_link("/proc/thread-self/ns/net").map_err(|error| ("/proc/thread-self/ns/net", error))?;
        let first = fs::read_link("/proc/1/ns/net").map_err(|error| ("/proc/1/ns/net", error))?;
        Ok(ours == first)
    })
}

/// The kernel's number for the network namespace of the calling thread; it is never given twice.
///
/// # Errors
/// What the kernel says: ENOPROTOOPT before Linux 5.14.
pub fn cookie() -> io::Result<u64> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    sockopt::netns_cookie(&socket)
}

type Unreadable = (&'static str, io::Error);

fn judge(
    sysctls: bool,
    initial_sysctl: bool,
    shares_with_process_1: impl FnOnce() -> Result<bool, Unreadable>,
) -> Verdict {
    match (sysctls, initial_sysctl) {
        (_, true) => Verdict::Initial,
        (true, false) => Verdict::Private,
        (false, false) => match shares_with_process_1() {
            Ok(true) => Verdict::Unknown("it is the one of process 1, and /proc/sys/net is not readable".to_owned()),
            Ok(false) => Verdict::Private,
            Err((path, error)) => Verdict::Unknown(format!("cannot read {path}: {error}")),
        },
    }
}

fn exists(path: &str) -> bool {
    Path::new(path).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sysctl_decides_and_doubt_is_not_private() {
        let denied = || Err(("/proc/1/ns/net", io::Error::from(io::ErrorKind::PermissionDenied)));
        assert_eq!(judge(true, true, || Ok(false)), Verdict::Initial);
        assert_eq!(judge(true, false, || Ok(true)), Verdict::Private, "process 1 of a container");
        assert_eq!(judge(false, false, || Ok(false)), Verdict::Private);
        assert!(matches!(judge(false, false, || Ok(true)), Verdict::Unknown(_)));
        let Verdict::Unknown(why) = judge(false, false, denied) else { panic!("must be unknown") };
        assert!(why.contains("/proc/1/ns/net"), "{why}");
    }
}
