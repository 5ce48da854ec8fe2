//! The inbound half: one program of the network namespace, which the kernel asks who listens. A link keeps it there, and a name in
//! the BPF file system keeps the link. Where that cannot be had, a rule does instead, and [`ByRule`] says why.
//!
//! The program finds adit's doors in a map. Those that listen already are put there by whoever applies, who must see adit for
//! that; later ones come by themselves.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::statfs;
use rustix::io::Errno;
use rustix::net::sockopt::socket_cookie;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::known::{Known, known};
use super::tables::MOST_DOORS;
use crate::net::bpf::{Hook, Link, Map, Program, Refused, links};

/// Where BPF file systems are mounted.
const FILE_SYSTEM: &str = "/sys/fs/bpf";
/// `BPF_FS_MAGIC`.
const MAGIC: i64 = 0xcafe_4a11;

/// Why a rule captures inbound connections, and not the sockets.
#[derive(Debug, thiserror::Error)]
pub enum ByRule {
    #[error("no BPF file system is mounted at {FILE_SYSTEM}")]
    NoFileSystem,
    #[error("the process that listens on port {0} cannot be seen from here")]
    Hidden(u16),
    #[error("the kernel refused the program: {0}")]
    Program(Refused),
    #[error("cannot {doing}: {error}")]
    Kernel { doing: &'static str, error: io::Error },
}

fn kernel(doing: &'static str) -> impl Fn(io::Error) -> ByRule {
    move |error| ByRule::Kernel { doing, error }
}

/// What [`attach`] has changed.
#[derive(Debug)]
pub(super) struct Attached {
    link: Link,
    /// Whose place the program has taken; `None`: the link is new.
    instead_of: Option<Program>,
    namespace: u64,
}

/// Puts what listens at `port` into `doors`, and has the kernel ask `program`.
pub(super) fn attach(
    program: Result<Program, Refused>,
    doors: &Map,
    port: u16,
    namespace: u64,
) -> Result<Attached, ByRule> {
    let program = program.map_err(ByRule::Program)?;
    if !statfs(FILE_SYSTEM).is_ok_and(|found| found.f_type == MAGIC) {
        return Err(ByRule::NoFileSystem);
    }
    enter(&listening(port)?, doors).map_err(kernel("note where adit listens"))?;
    if let Some((link, before)) = find(namespace).map_err(kernel("ask which programs are attached"))? {
        link.update(&program).map_err(kernel("replace the program of this namespace"))?;
        return Ok(Attached { link, instead_of: Some(before.program), namespace });
    }
    let here = File::open("/proc/thread-self/ns/net").map_err(kernel("open this network namespace"))?;
    let link = Link::create(&program, Hook::SocketLookup, here.as_fd()).map_err(kernel("attach the program"))?;
    let pin = pin(namespace);
    // Whatever has this name is no link of this namespace's.
    let _ = fs::remove_file(&pin);
    link.pin(&pin).map_err(kernel("keep the program attached"))?;
    Ok(Attached { link, instead_of: None, namespace })
}

/// Gives a place in `doors` to each of these that has none.
fn enter(sockets: &[OwnedFd], doors: &Map) -> io::Result<()> {
    let (mut known, mut free) = (HashSet::new(), Vec::new());
    for place in 0..MOST_DOORS {
        // What was put there as a descriptor is read as the socket's number.
        match doors.lookup(&place.to_ne_bytes()) {
            Ok(number) => drop(known.insert(number)),
            Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => free.push(place),
            Err(error) => return Err(error),
        }
    }
    for socket in sockets {
        if known.contains(socket_cookie(socket)?.to_ne_bytes().as_slice()) {
            continue;
        }
        let Some(place) = free.pop() else { break };
        let descriptor = u64::try_from(socket.as_raw_fd()).map_err(io::Error::other)?;
        doors.update(&place.to_ne_bytes(), &descriptor.to_ne_bytes())?;
    }
    Ok(())
}

impl Attached {
    /// Back to what there was, as far as it goes.
    pub(super) fn undo(self) {
        let _ = match &self.instead_of {
            Some(before) => self.link.update(before),
            None => detach(&self.link, self.namespace),
        };
    }
}

/// Takes away the program of this namespace. Whether there was one.
pub(super) fn remove(namespace: u64) -> io::Result<bool> {
    match find(namespace)? {
        Some((link, _)) => detach(&link, namespace).map(|()| true),
        None => Ok(false),
    }
}

fn detach(link: &Link, namespace: u64) -> io::Result<()> {
    let detached = link.detach();
    // It may have been made where this file system cannot be seen; then a name stays, of something that does nothing.
    let _ = fs::remove_file(pin(namespace));
    detached
}

/// The name by which the link of a namespace is kept.
fn pin(namespace: u64) -> PathBuf {
    Path::new(FILE_SYSTEM).join(format!("adit-inbound-{namespace}"))
}

fn find(namespace: u64) -> io::Result<Option<(Link, Known)>> {
    let mut ours: Vec<Known> = known(namespace)
        .map_err(io::Error::other)?
        .into_iter()
        .filter(|known| known.hook == Hook::SocketLookup)
        .collect();
    if ours.is_empty() {
        return Ok(None);
    }
    for id in links()? {
        let Some(link) = Link::by_id(id)? else { continue };
        let program = link.program()?;
        if let Some(index) = ours.iter().position(|known| known.id == program) {
            return Ok(Some((link, ours.swap_remove(index))));
        }
    }
    Ok(None)
}

/// The sockets of this namespace that listen at `port`, taken from the processes that have them.
fn listening(port: u16) -> Result<Vec<OwnedFd>, ByRule> {
    let mut wanted = HashSet::new();
    for table in ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"] {
        match fs::read_to_string(table) {
            Ok(text) => wanted.extend(text.lines().filter_map(|line| listener(line, port))),
            // This kernel has no IPv6.
            Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => {}
            Err(error) => return Err(kernel("read who listens")(error)),
        }
    }
    let mut sockets = Vec::new();
    for process in fs::read_dir("/proc").map_err(kernel("read which processes there are"))?.filter_map(Result::ok) {
        if wanted.is_empty() {
            break;
        }
        let pid = process.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        // A process may have ended by now, or be none of ours to look at: then what it has stays wanted.
        let (Some(pid), Ok(descriptors)) = (pid, fs::read_dir(process.path().join("fd"))) else { continue };
        for descriptor in descriptors.filter_map(Result::ok) {
            let Some(inode) = fs::read_link(descriptor.path()).ok().as_deref().and_then(socket) else { continue };
            let number = descriptor.file_name().to_str().and_then(|name| name.parse().ok());
            if let Some(number) = number.filter(|_| wanted.contains(&inode))
                && let Ok(taken) = pidfd_open(pid, PidfdFlags::empty())
                    .and_then(|process| pidfd_getfd(process, number, PidfdGetfdFlags::empty()))
            {
                wanted.remove(&inode);
                sockets.push(taken);
            }
        }
    }
    if wanted.is_empty() { Ok(sockets) } else { Err(ByRule::Hidden(port)) }
}

/// The inode of a socket that listens at `port`, of a line of `/proc/net/tcp` or `tcp6`.
fn listener(line: &str, port: u16) -> Option<u64> {
    const LISTEN: &str = "0A";
    let mut fields = line.split_ascii_whitespace();
    let (_, at) = fields.nth(1)?.rsplit_once(':')?;
    let listens = u16::from_str_radix(at, 16) == Ok(port) && fields.nth(1)? == LISTEN;
    let inode = fields.nth(5)?.parse().ok()?;
    listens.then_some(inode)
}

/// What a link in `/proc/PID/fd` says of a socket.
fn socket(link: &Path) -> Option<u64> {
    link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_found_by_port() {
        let listens = "   0: 00000000:3A9E 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 f 100 0 0 10 0";
        assert_eq!(listener(listens, 15006), Some(4711));
        assert_eq!(listener(listens, 15007), None);
        let six = "   1: 00000000000000000000000000000000:3A9E 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 815 1 f 100 0 0 10 0";
        assert_eq!(listener(six, 15006), Some(815));
        assert_eq!(listener(&listens.replace(" 0A ", " 01 "), 15006), None, "a connection");
        assert_eq!(
            listener(
                "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode",
                15006
            ),
            None
        );
        assert_eq!(listener("", 15006), None);
    }

    #[test]
    fn sockets_are_told_from_files() {
        assert_eq!(socket(Path::new("socket:[4711]")), Some(4711));
        assert_eq!(socket(Path::new("pipe:[4711]")), None);
        assert_eq!(socket(Path::new("/tmp/socket:[4711]")), None);
    }
}
