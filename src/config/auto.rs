//! What `auto` means on this machine: pure functions of a [`Machine`], and the thin reader that fills one.
//!
//! In: affinity, cgroup limits, the descriptor limit, memory. Out: a number of workers and a connection limit together
//! with the term that decided, to be printed at start. What cannot be read counts as unlimited; the results are at
//! least one. Nothing is ever allocated by these numbers.

mod cgroup;

use std::fmt;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::Path;

use super::settings::{ConnectionLimit, Workers};

/// Descriptors that connections may not use: listeners, admin, files.
const RESERVED_FILES: u64 = 64;
/// Two sockets, and one more for a pipe or a connect in flight.
const FILES_PER_CONNECTION: u64 = 3;
/// What a connection may cost in user space and in the kernel.
const BYTES_PER_CONNECTION: u64 = 64 * 1024;

/// What this process may use. `None`: unlimited, or not readable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Machine {
    /// CPUs that the scheduler may run us on.
    pub affinity: Option<NonZeroUsize>,
    /// CPUs' worth of time that the cgroup grants.
    pub cpu_quota: Option<CpuQuota>,
    /// The soft limit of open files.
    pub open_files: Option<u64>,
    pub memory: Option<Memory>,
}

/// Microseconds of CPU time in each period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuQuota {
    pub quota: u64,
    pub period: NonZeroU64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    pub bytes: u64,
    pub source: MemorySource,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemorySource {
    Cgroup,
    Physical,
}

/// A connection limit and why it is what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResolvedLimit {
    /// `None`: no limit.
    pub limit: Option<NonZeroUsize>,
    pub term: LimitTerm,
}

/// The term that decided a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitTerm {
    /// `limits.connections` says so.
    Configured,
    /// `(nofile - 64) / 3`.
    OpenFiles { soft_limit: u64 },
    /// `memory / 64 KiB`.
    Memory(Memory),
    /// Neither is limited.
    Unlimited,
}

/// How many data workers to start: what both affinity and the quota (rounded up) allow.
pub fn workers(setting: Workers, machine: &Machine) -> NonZeroUsize {
    if let Workers::Fixed(count) = setting {
        return count;
    }
    let by_affinity = machine.affinity.unwrap_or(NonZeroUsize::MIN);
    let by_quota = machine.cpu_quota.map(|CpuQuota { quota, period }| {
        usize::try_from(quota.div_ceil(period.get())).ok().and_then(NonZeroUsize::new).unwrap_or(NonZeroUsize::MIN)
    });
    by_quota.map_or(by_affinity, |by_quota| by_quota.min(by_affinity))
}

/// How many connections to carry at once.
pub fn connections(setting: ConnectionLimit, machine: &Machine) -> ResolvedLimit {
    let configured = |limit| ResolvedLimit { limit, term: LimitTerm::Configured };
    match setting {
        ConnectionLimit::Fixed(limit) => return configured(Some(limit)),
        ConnectionLimit::Off => return configured(None),
        ConnectionLimit::Auto => {}
    }
    let by_files = machine.open_files.map(|soft_limit| {
        (soft_limit.saturating_sub(RESERVED_FILES) / FILES_PER_CONNECTION, LimitTerm::OpenFiles { soft_limit })
    });
    let by_memory = machine.memory.map(|memory| (memory.bytes / BYTES_PER_CONNECTION, LimitTerm::Memory(memory)));
    let least = by_files.into_iter().chain(by_memory).min_by_key(|(limit, _)| *limit);
    let Some((limit, term)) = least else { return ResolvedLimit { limit: None, term: LimitTerm::Unlimited } };
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    ResolvedLimit { limit: Some(NonZeroUsize::new(limit).unwrap_or(NonZeroUsize::MIN)), term }
}

impl Machine {
    /// Reads what applies to this process now. Raise the soft limit of open files before.
    pub fn read() -> Self {
        let cgroup = cgroup::Limits::read(Path::new("/proc/self/cgroup"), Path::new("/sys/fs/cgroup"));
        let in_cgroup = cgroup.memory.map(|bytes| Memory { bytes, source: MemorySource::Cgroup });
        let physical = std::fs::read_to_string("/proc/meminfo")
            .ok()
            .and_then(|text| physical_memory(&text))
            .map(|bytes| Memory { bytes, source: MemorySource::Physical });
        Self {
            affinity: affinity(),
            cpu_quota: cgroup.cpu,
            open_files: rustix::process::getrlimit(rustix::process::Resource::Nofile).current,
            memory: in_cgroup.into_iter().chain(physical).min_by_key(|memory| memory.bytes),
        }
    }
}

fn affinity() -> Option<NonZeroUsize> {
    match rustix::thread::sched_getaffinity(None) {
        Ok(cpus) => usize::try_from(cpus.count()).ok().and_then(NonZeroUsize::new),
        // More than 1024 CPUs do not fit the set.
        Err(_) => std::thread::available_parallelism().ok(),
    }
}

/// `MemTotal` of `/proc/meminfo`, in bytes.
fn physical_memory(meminfo: &str) -> Option<u64> {
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = total.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

impl fmt::Display for LimitTerm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MIB: u64 = 1024 * 1024;
        match self {
            Self::Configured => f.write_str("configured"),
            Self::OpenFiles { soft_limit } => write!(f, "(open files {soft_limit} - 64) / 3"),
            Self::Memory(Memory { bytes, source: MemorySource::Cgroup }) => {
                write!(f, "cgroup memory {} MiB / 64 KiB", bytes / MIB)
            }
            Self::Memory(Memory { bytes, source: MemorySource::Physical }) => {
                write!(f, "physical memory {} MiB / 64 KiB", bytes / MIB)
            }
            Self::Unlimited => f.write_str("unlimited"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(value: usize) -> NonZeroUsize {
        NonZeroUsize::new(value).unwrap()
    }

    fn quota(quota: u64, period: u64) -> Option<CpuQuota> {
        Some(CpuQuota { quota, period: NonZeroU64::new(period).unwrap() })
    }

    #[test]
    fn workers_are_what_affinity_and_quota_allow() {
        for (affinity, cpu_quota, want) in [
            (Some(8), None, 8),
            (Some(8), quota(200_000, 100_000), 2),
            (Some(8), quota(150_000, 100_000), 2),
            (Some(8), quota(1_000, 100_000), 1),
            (Some(8), quota(0, 100_000), 1),
            (Some(2), quota(9_900_000, 100_000), 2),
            (Some(2), quota(u64::MAX, 1), 2),
            (None, None, 1),
        ] {
            let machine = Machine { affinity: affinity.map(count), cpu_quota, ..Machine::default() };
            assert_eq!(workers(Workers::Auto, &machine), count(want), "{machine:?}");
            assert_eq!(workers(Workers::Fixed(count(5)), &machine), count(5));
        }
    }

    #[test]
    fn the_connection_limit_says_what_decided() {
        let memory = |bytes| Some(Memory { bytes, source: MemorySource::Cgroup });
        for (open_files, memory, want, term) in [
            (Some(1024), None, Some(320), "(open files 1024 - 64) / 3"),
            (Some(1024), memory(64 << 20), Some(320), "(open files 1024 - 64) / 3"),
            (Some(1_000_000_000), memory(1 << 30), Some(16384), "cgroup memory 1024 MiB / 64 KiB"),
            (Some(1_000_000_000), None, Some(333_333_312), "(open files 1000000000 - 64) / 3"),
            (None, memory(1 << 30), Some(16384), "cgroup memory 1024 MiB / 64 KiB"),
            (Some(10), memory(1 << 30), Some(1), "(open files 10 - 64) / 3"),
            (Some(1024), memory(1), Some(1), "cgroup memory 0 MiB / 64 KiB"),
            (None, None, None, "unlimited"),
        ] {
            let machine = Machine { open_files, memory, ..Machine::default() };
            let resolved = connections(ConnectionLimit::Auto, &machine);
            assert_eq!(resolved.limit, want.map(count), "{machine:?}");
            assert_eq!(resolved.term.to_string(), term);
        }
    }

    #[test]
    fn a_written_limit_is_taken_as_it_is() {
        let machine = Machine { open_files: Some(1024), ..Machine::default() };
        let fixed = connections(ConnectionLimit::Fixed(count(7)), &machine);
        assert_eq!(fixed, ResolvedLimit { limit: Some(count(7)), term: LimitTerm::Configured });
        assert_eq!(connections(ConnectionLimit::Off, &machine).limit, None);
    }

    #[test]
    fn physical_memory_is_found() {
        assert_eq!(physical_memory("MemFree: 1 kB\nMemTotal:       16384 kB\n"), Some(16_777_216));
        for text in ["", "MemTotal: x kB", "MemTotal: 5", "MemTotal: 99999999999999999999 kB"] {
            assert_eq!(physical_memory(text), None, "{text}");
        }
    }

    #[test]
    fn this_machine_can_be_read() {
        let machine = Machine::read();
        assert!(machine.affinity.is_some(), "{machine:?}");
        assert!(machine.memory.is_some_and(|memory| memory.bytes > 1 << 20), "{machine:?}");
        assert!(connections(ConnectionLimit::Auto, &machine).limit.is_some());
    }
}
