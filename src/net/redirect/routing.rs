//! The routes behind the marks, by rtnetlink: a table that delivers everything to this namespace, and one ip rule per mark
//! that leads there, for IPv4 and IPv6. What comes in is a list of marks; what goes out is the kernel's routing state.
//!
//! Only adit's own are touched: the routing table [`ROUTE_TABLE`], and rules that match mark, mask, priority and
//! that table. Adding what is there and deleting what is not are both fine. Where the kernel has no IPv6, its half is
//! left out. Messages are built by hand because there are four of them.

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::options::MARK_MASK;
use super::ruleset::{LocalMark, ROUTE_TABLE};

/// What could not be done, and why.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action}")]
pub struct RoutingError {
    action: String,
    source: Errno,
}

impl RoutingError {
    pub(super) const fn errno(&self) -> Errno {
        self.source
    }
}

const FAMILIES: [(u8, &str); 2] = [(2, "IPv4"), (10, "IPv6")];
const IPV6: u8 = 10;

/// rtnetlink message types.
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
/// Flags: request, with an answer; create, and say if it exists.
const REQUEST_ACK: u16 = 0x1 | 0x4;
const CREATE_EXCL: u16 = 0x400 | 0x200;
/// Attributes of rules and of routes.
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const RTA_OIF: u16 = 4;
const RTA_TABLE: u16 = 15;
/// Values: what `ip` writes as "boot", "local" and "host".
const RTPROT_BOOT: u8 = 3;
const RTN_LOCAL: u8 = 2;
const RT_SCOPE_HOST: u8 = 254;
const RT_SCOPE_NOWHERE: u8 = 255;
const FR_ACT_TO_TABLE: u8 = 1;
/// `lo` has index 1 in every network namespace.
const LO: u32 = 1;
/// More equal rules than this are not ours.
const MAX_DUPLICATES: usize = 64;

/// Adds the route and the rules of `marks`; nothing when there are none.
pub(super) fn add(marks: &[LocalMark]) -> Result<(), RoutingError> {
    if marks.is_empty() {
        return Ok(());
    }
    let mut netlink = Netlink::open()?;
    for (family, name) in FAMILIES {
        match netlink.request(RTM_NEWROUTE, CREATE_EXCL, &route(family, RTPROT_BOOT, RT_SCOPE_HOST)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) if absent(family, errno) => continue,
            Err(source) => return Err(failed(format!("add the {name} route of table {ROUTE_TABLE}"), source)),
        }
        for mark in marks {
            match netlink.request(RTM_NEWRULE, CREATE_EXCL, &rule(family, *mark)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(source) => return Err(failed(format!("add the {name} rule `{mark}`"), source)),
            }
        }
    }
    Ok(())
}

/// Deletes the rules of `marks` and, if `route`, the route; goes on after a failure and returns the first.
pub(super) fn delete<'a>(marks: impl IntoIterator<Item = &'a LocalMark>, with_route: bool) -> Result<(), RoutingError> {
    let mut netlink = Netlink::open()?;
    let mut first = Ok(());
    let marks: Vec<&LocalMark> = marks.into_iter().collect();
    for (family, name) in FAMILIES {
        for mark in &marks {
            let message = rule(family, **mark);
            let action = || format!("delete the {name} rule `{mark}`");
            first =
                first.and(netlink.delete_all(RTM_DELRULE, &message, family).map_err(|errno| failed(action(), errno)));
        }
        if with_route {
            let message = route(family, 0, RT_SCOPE_NOWHERE);
            let action = || format!("delete the {name} route of table {ROUTE_TABLE}");
            first =
                first.and(netlink.delete_all(RTM_DELROUTE, &message, family).map_err(|errno| failed(action(), errno)));
        }
    }
    first
}

const fn failed(action: String, source: Errno) -> RoutingError {
    RoutingError { action, source }
}

/// Whether the kernel, or this namespace, has no IPv6.
fn absent(family: u8, errno: Errno) -> bool {
    family == IPV6 && matches!(errno, Errno::AFNOSUPPORT | Errno::OPNOTSUPP | Errno::ACCESS | Errno::NODEV)
}

/// `struct fib_rule_hdr` and its attributes.
fn rule(family: u8, mark: LocalMark) -> Vec<u8> {
    let mut message = vec![family, 0, 0, 0, 0, 0, 0, FR_ACT_TO_TABLE, 0, 0, 0, 0];
    for (kind, value) in
        [(FRA_PRIORITY, mark.priority), (FRA_FWMARK, mark.mark), (FRA_FWMASK, MARK_MASK), (FRA_TABLE, ROUTE_TABLE)]
    {
        attribute(&mut message, kind, value);
    }
    message
}

/// `struct rtmsg` of `local default dev lo` and its attributes.
fn route(family: u8, protocol: u8, scope: u8) -> Vec<u8> {
    let mut message = vec![family, 0, 0, 0, 0, protocol, scope, RTN_LOCAL, 0, 0, 0, 0];
    attribute(&mut message, RTA_TABLE, ROUTE_TABLE);
    attribute(&mut message, RTA_OIF, LO);
    message
}

fn attribute(message: &mut Vec<u8>, kind: u16, value: u32) {
    message.extend_from_slice(&8_u16.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&value.to_ne_bytes());
}

struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    fn open() -> Result<Self, RoutingError> {
        rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)
            .map(|socket| Self { socket, sequence: 0 })
            .map_err(|source| failed("open a netlink socket".to_owned(), source))
    }

    /// Sends one message to the kernel and waits for its answer, which the kernel has ready when `send` returns.
    fn request(&mut self, kind: u16, flags: u16, body: &[u8]) -> Result<(), Errno> {
        self.sequence += 1;
        let length = u32::try_from(16 + body.len()).unwrap_or(u32::MAX);
        let mut message = Vec::with_capacity(64);
        message.extend_from_slice(&length.to_ne_bytes());
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(&(REQUEST_ACK | flags).to_ne_bytes());
        message.extend_from_slice(&self.sequence.to_ne_bytes());
        message.extend_from_slice(&0_u32.to_ne_bytes());
        message.extend_from_slice(body);
        rustix::net::send(&self.socket, &message, SendFlags::empty())?;
        let mut answer = [0_u8; 1024];
        let (_, length) = rustix::net::recv(&self.socket, &mut answer[..], RecvFlags::DONTWAIT)?;
        acknowledgement(answer.get(..length).unwrap_or(&answer), self.sequence)
    }

    /// Deletes until there is nothing left to delete.
    fn delete_all(&mut self, kind: u16, body: &[u8], family: u8) -> Result<(), Errno> {
        for _ in 0..MAX_DUPLICATES {
            match self.request(kind, 0, body) {
                Ok(()) => {}
                Err(Errno::NOENT | Errno::SRCH) => return Ok(()),
                Err(errno) if absent(family, errno) => return Ok(()),
                Err(errno) => return Err(errno),
            }
        }
        Err(Errno::LOOP)
    }
}

/// Reads `struct nlmsgerr`: the header, then an error number, negative or 0.
fn acknowledgement(answer: &[u8], sequence: u32) -> Result<(), Errno> {
    const NLMSG_ERROR: u16 = 2;
    let word = |at: usize| answer.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    match (kind, word(8), word(16)) {
        (Some(NLMSG_ERROR), Some(answered), Some(error)) if answered == sequence => match error.cast_signed() {
            0 => Ok(()),
            error => Err(Errno::from_raw_os_error(error.wrapping_neg())),
        },
        _ => Err(Errno::PROTO),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(kind: u16, sequence: u32, error: i32) -> Vec<u8> {
        let mut bytes = 36_u32.to_ne_bytes().to_vec();
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&[0, 0]);
        bytes.extend_from_slice(&sequence.to_ne_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&error.to_ne_bytes());
        bytes
    }

    #[test]
    fn answers_are_read_by_sequence_and_errno() {
        assert_eq!(acknowledgement(&answer(2, 7, 0), 7), Ok(()));
        assert_eq!(acknowledgement(&answer(2, 7, -17), 7), Err(Errno::EXIST));
        assert_eq!(acknowledgement(&answer(2, 7, i32::MIN), 8), Err(Errno::PROTO));
        assert_eq!(acknowledgement(&answer(3, 7, 0), 7), Err(Errno::PROTO));
        for length in 0..20 {
            assert_eq!(acknowledgement(&answer(2, 7, 0)[..length], 7), Err(Errno::PROTO), "{length} bytes");
        }
    }
}
