//! Capture at the socket: BPF programs of a cgroup, which lead what the processes of this network namespace connect to adit's
//! outbound door, before there is a packet; and one of the namespace, which leads inbound connections to adit's other door ([`inbound`]).
//! Nothing is translated, so nothing needs to be tracked; the application is told who its clients are.
//!
//! ```text
//! Options, addresses, cgroup -> Tables (maps) -> programs -> attach -> the kernel
//!                                                 undo, finish, confirm, remove
//! ```
//!
//! Programs run for all processes of the cgroup and look at those of one network namespace only, so the cgroup may be that
//! of the whole machine. They stay when the process that attached them ends, and are found again ([`known()`]). An `apply`
//! takes the place of an earlier one hook by hook and goes on with its maps, so that connections under way find their
//! destination.
//! Needs CAP_SYS_ADMIN in the first user namespace.

mod inbound;
mod known;
mod programs;
mod tables;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use super::Rollback;
use super::options::Options;
use crate::net::bpf::asm::AsmError;
use crate::net::bpf::{Hook, Map, Program, Refused};
use crate::net::cgroup::{self, Cgroup, CgroupError};
use crate::net::{local, namespace};
pub use inbound::ByRule;
use known::{Found, Known, find, known, under_way};
use programs::Plan;
use tables::{PENDING, ROW, State, Tables, UnderWay};

/// In the order in which they are attached: nothing is led to adit before adit can ask where it was going.
const HOOKS: [(Hook, &str); 8] = [
    (Hook::GetSockOpt, "adit_getsockopt"),
    (Hook::PeerName4, "adit_peername4"),
    (Hook::PeerName6, "adit_peername6"),
    (Hook::SockOps, "adit_sockops"),
    (Hook::Connect4, "adit_connect4"),
    (Hook::Connect6, "adit_connect6"),
    (Hook::Bind4, "adit_bind4"),
    (Hook::Bind6, "adit_bind6"),
];

/// Of the network namespace, not of a cgroup.
const LOOKUP: (Hook, &str) = (Hook::SocketLookup, "adit_lookup");

/// Whether `options` want something done there.
fn wants(options: &Options, hook: Hook) -> bool {
    match hook {
        Hook::GetSockOpt | Hook::Connect4 | Hook::Connect6 => options.outbound.captures(),
        Hook::Bind4 | Hook::Bind6 => options.tells_clients(),
        Hook::SocketLookup => options.captures_inbound_at_sockets(),
        Hook::PeerName4 | Hook::PeerName6 | Hook::SockOps => true,
    }
}

/// How long a removal waits for adit to ask about the connections that are under way.
const UNDER_WAY: Duration = Duration::from_secs(1);
/// How long a process may be kept in the middle of one `connect`.
const BETWEEN: Duration = Duration::from_millis(100);
const PAUSE: Duration = Duration::from_millis(5);

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error(transparent)]
    Cgroup(CgroupError),
    #[error("programs of this namespace are attached to a cgroup that cannot be seen here")]
    Hidden,
    #[error("cannot write the program {name}")]
    Assemble { name: &'static str, source: AsmError },
    #[error("the kernel refused the program {name}")]
    Program { name: &'static str, source: Refused },
    #[error("cannot attach the program {name}")]
    Attach { name: &'static str, source: io::Error },
    #[error("cannot {doing}")]
    Kernel { doing: &'static str, source: io::Error },
}

impl ConnectError {
    /// Whether it was asked by somebody who may not do that, or not even look.
    pub(super) fn is_denied(&self) -> bool {
        let error = match self {
            Self::Cgroup(CgroupError::Mounts(error) | CgroupError::Open { source: error, .. }) => error,
            Self::Attach { source, .. } | Self::Kernel { source, .. } => source,
            Self::Program { source, .. } => &source.source,
            Self::Cgroup(CgroupError::NotMounted | CgroupError::NotACgroup(_))
            | Self::Hidden
            | Self::Assemble { .. } => {
                return false;
            }
        };
        [Errno::PERM, Errno::ACCESS].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
    }
}

fn kernel(doing: &'static str) -> impl Fn(io::Error) -> ConnectError {
    move |source| ConnectError::Kernel { doing, source }
}

/// What an [`attach`] has changed.
pub(super) struct Attached {
    cgroup: Cgroup,
    new: Vec<(Hook, Program)>,
    /// Whose place they have taken.
    replaced: Vec<Found>,
    /// At other cgroups.
    others: Vec<Found>,
    /// Whether the sockets capture inbound connections as well; `None`: nobody wants that.
    inbound: Option<Result<inbound::Attached, ByRule>>,
    namespace: u64,
}

/// Everything, loaded and nowhere attached yet.
struct Loaded {
    hooks: Vec<(Hook, &'static str, Program)>,
    /// With the map of adit's doors.
    lookup: Option<(Result<Program, Refused>, Map)>,
}

/// Loads and attaches everything, in place of what there was at this cgroup; all of it or nothing.
pub(super) fn attach(options: &Options) -> Result<Attached, ConnectError> {
    let cgroup = match &options.cgroup {
        Some(path) => Cgroup::open(path),
        None => cgroup::mount().and_then(|root| Cgroup::open(&root)),
    }
    .map_err(ConnectError::Cgroup)?;
    let namespace = namespace()?;
    let (here, others) = find(namespace)?.into_iter().partition(|found| found.cgroup.is(&cgroup));
    let mut attached = Attached { cgroup, new: Vec::new(), replaced: Vec::new(), others, inbound: None, namespace };
    let Loaded { hooks, lookup } = load(options, namespace, under_way(&here, &attached.others)?)?;
    if let Err(error) = attached.exchange(hooks, here) {
        attached.undo();
        return Err(error);
    }
    // After the others: a door that is opened from here on comes by itself.
    attached.inbound =
        lookup.map(|(program, doors)| inbound::attach(program, &doors, options.inbound_port.get(), namespace));
    Ok(attached)
}

fn load(options: &Options, namespace: u64, under_way: UnderWay) -> Result<Loaded, ConnectError> {
    let own = local::addresses().map_err(kernel("read the addresses of this namespace"))?;
    let plan = Plan {
        door: options.outbound_port.get(),
        inbound_door: options.inbound_port.get(),
        mark: options.mark,
        uids: options.uids.clone(),
        namespace,
        source_v4: source_v4(&own),
        source_v6: source_v6(&own),
    };
    let deadline = options.rollback_after.map(|after| nanoseconds(since_boot().saturating_add(after)));
    let tables = Tables::create(under_way, State { namespace, deadline }, &own, options)
        .map_err(kernel("make the maps of the programs"))?;
    let code = |(hook, name)| {
        programs::program(hook, &plan, &tables).map_err(|source| ConnectError::Assemble { name, source })
    };
    let hooks = HOOKS
        .into_iter()
        .filter(|(hook, _)| wants(options, *hook))
        .map(|(hook, name)| {
            let program = Program::load(name, hook, &code((hook, name))?)
                .map_err(|source| ConnectError::Program { name, source })?;
            Ok((hook, name, program))
        })
        .collect::<Result<_, _>>()?;
    let (hook, name) = LOOKUP;
    let lookup = wants(options, hook).then(|| code(LOOKUP)).transpose()?;
    let lookup = lookup.map(|code| Program::load(name, hook, &code)).zip(tables.inbound.map(|inbound| inbound.doors));
    Ok(Loaded { hooks, lookup })
}

impl Attached {
    fn exchange(&mut self, code: Vec<(Hook, &'static str, Program)>, mut here: Vec<Found>) -> Result<(), ConnectError> {
        for (hook, name, program) in code {
            let old = here.iter().position(|found| found.known.hook == hook).map(|index| here.swap_remove(index));
            program
                .attach(self.cgroup.fd(), hook, old.as_ref().map(|found| &found.known.program))
                .map_err(|source| ConnectError::Attach { name, source })?;
            self.new.push((hook, program));
            self.replaced.extend(old);
        }
        // Not wanted any more, or twice the same, as no `apply` leaves it.
        self.others.append(&mut here);
        Ok(())
    }

    /// Why a rule must capture inbound connections; `None`: it need not.
    pub(super) fn by_rule(&self) -> Option<&ByRule> {
        self.inbound.as_ref().and_then(|inbound| inbound.as_ref().err())
    }

    /// Back to what there was.
    pub(super) fn undo(self) {
        if let Some(Ok(inbound)) = self.inbound {
            inbound.undo();
        }
        for (hook, program) in self.new.iter().rev() {
            let old = self.replaced.iter().find(|found| found.known.hook == *hook);
            // As far as it goes: the reason for it all is reported.
            let _ = match old {
                Some(old) => old.known.program.attach(self.cgroup.fd(), *hook, Some(program)),
                None => program.detach(self.cgroup.fd(), *hook),
            };
        }
    }

    /// Takes away what earlier calls left elsewhere. Why a rule must capture inbound connections, if so.
    pub(super) fn finish(self) -> Result<Option<ByRule>, ConnectError> {
        let (by_rule, left) = match self.inbound {
            Some(Ok(_)) => (None, Ok(false)),
            Some(Err(by_rule)) => (Some(by_rule), inbound::remove(self.namespace)),
            None => (None, inbound::remove(self.namespace)),
        };
        retire(self.others)?;
        left.map_err(kernel("detach a program"))?;
        Ok(by_rule)
    }
}

/// How it stands with the rollback of the programs here; `None` when there are none.
pub(super) fn rollback() -> Result<Option<Rollback>, ConnectError> {
    let now = nanoseconds(since_boot());
    let known = known(namespace()?)?;
    // All programs of an `apply` share one map.
    Ok(known.iter().find_map(Known::state).map(|(_, state)| match state.deadline {
        None => Rollback::NotPending,
        Some(deadline) if now <= deadline => Rollback::Pending,
        Some(_) => Rollback::Over,
    }))
}

/// The programs here capture for good.
pub(super) fn confirm() -> Result<(), ConnectError> {
    for (map, state) in known(namespace()?)?.iter().filter_map(Known::state) {
        map.update(&ROW, &State { deadline: None, ..state }.row()).map_err(kernel("confirm the programs"))?;
    }
    Ok(())
}

/// Takes away every program of this namespace, from all cgroups that are visible here. Whether there were any.
pub(super) fn remove() -> Result<bool, ConnectError> {
    let namespace = namespace()?;
    let inbound = inbound::remove(namespace).map_err(kernel("detach a program"));
    let found = find(namespace)?;
    let any = !found.is_empty();
    retire(found)?;
    inbound.map(|inbound| any || inbound)
}

/// Whoever called `connect` before the programs were there sends its first packet while the rules are.
pub(super) fn let_finish() {
    let start = Instant::now();
    while let Some(left) = BETWEEN.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) {
        thread::park_timeout(left);
    }
}

/// Nothing new is captured from here on, and what is under way still finds its destination.
fn retire(found: Vec<Found>) -> Result<(), ConnectError> {
    let (leading, answering): (Vec<_>, Vec<_>) = found
        .into_iter()
        .partition(|found| matches!(found.known.hook, Hook::Connect4 | Hook::Connect6 | Hook::Bind4 | Hook::Bind6));
    let first = detach(&leading);
    if !leading.is_empty() {
        let start = Instant::now();
        let waiting = |found: &Found| found.known.map(&PENDING).is_some_and(|map| matches!(map.is_empty(), Ok(false)));
        // At first, a connect may be between two of the programs.
        while start.elapsed() < BETWEEN || (start.elapsed() < UNDER_WAY && answering.iter().any(waiting)) {
            thread::park_timeout(PAUSE);
        }
    }
    first.and(detach(&answering))
}

/// Goes on after a failure and returns the first.
fn detach(found: &[Found]) -> Result<(), ConnectError> {
    let mut first = Ok(());
    for found in found {
        let detached = found.known.program.detach(found.cgroup.fd(), found.known.hook);
        first = first.and(detached.map_err(kernel("detach a program")));
    }
    first
}

fn namespace() -> Result<u64, ConnectError> {
    namespace::cookie().map_err(kernel("ask for the number of this network namespace"))
}

/// The address from which this namespace dials others, or any that it has.
fn source_v4(own: &[IpAddr]) -> Option<Ipv4Addr> {
    let towards = source_towards(SocketAddr::from(([192, 0, 2, 1], 9)));
    towards.into_iter().chain(own.iter().copied()).find_map(|ip| if let IpAddr::V4(ip) = ip { Some(ip) } else { None })
}

fn source_v6(own: &[IpAddr]) -> Option<Ipv6Addr> {
    let towards = source_towards(SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 9)));
    towards.into_iter().chain(own.iter().copied()).find_map(|ip| if let IpAddr::V6(ip) = ip { Some(ip) } else { None })
}

/// Nothing is sent by connecting a datagram socket.
fn source_towards(somewhere: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = if somewhere.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(somewhere).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !local::is_loopback_or_link_local(*ip))
}

/// The clock of the programs: it goes on while the machine sleeps.
fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::try_from(now).unwrap_or_default()
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
