//! The process as the kernel sees it: `process_*` and the descriptor gauges. The files in `/proc` are opened once and
//! kept, so that the numbers can still be read when there is no descriptor left. Where `/proc` is missing, the
//! families that need it are missing too.

use std::fmt;
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use rustix::fs::RawDir;
use rustix::process::{Resource, getrlimit};

use crate::telemetry::family;

/// Open files on ourselves.
#[derive(Debug)]
pub struct ProcessStats {
    stat: Option<File>,
    /// A position is shared by all readers.
    fds: Option<Mutex<File>>,
    /// Seconds since 1970 at which the system was booted.
    booted: Option<f64>,
}

/// What `/proc/self/stat` says, in its units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    cpu_ticks: u64,
    start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Default for ProcessStats {
    fn default() -> Self {
        Self {
            stat: File::open("/proc/self/stat").ok(),
            fds: File::open("/proc/self/fd").ok().map(Mutex::new),
            booted: std::fs::read_to_string("/proc/stat").ok().as_deref().and_then(parse_boot_time),
        }
    }
}

impl ProcessStats {
    /// Descriptors open now, without opening one.
    #[must_use]
    pub fn fd_open(&self) -> Option<u64> {
        let fds = self.fds.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        // Since Linux 6.2 the folder's size is the number of open descriptors.
        match fds.metadata().map(|metadata| metadata.len()) {
            Ok(0) | Err(_) => count_entries(&fds),
            Ok(open) => Some(open),
        }
    }

    /// The soft limit on descriptors; `None`: unlimited.
    #[must_use]
    pub fn fd_limit(&self) -> Option<u64> {
        getrlimit(Resource::Nofile).current
    }

    /// Memory in use, in bytes.
    #[must_use]
    pub fn resident_bytes(&self) -> Option<u64> {
        Some(self.stat()?.resident_pages.saturating_mul(page_size()))
    }

    fn stat(&self) -> Option<Stat> {
        let mut buffer = [0; 1024];
        let length = self.stat.as_ref()?.read_at(&mut buffer, 0).ok()?;
        parse_stat(std::str::from_utf8(buffer.get(..length)?).ok()?)
    }

    fn encode_descriptors(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        if let Some(open) = self.fd_open() {
            family::gauge(encoder, "process_open_fds", "Number of open file descriptors", open)?;
            family::gauge(encoder, "adit_fd_open", "Descriptors in use", open)?;
        }
        if let Some(limit) = self.fd_limit() {
            family::gauge(encoder, "process_max_fds", "Maximum number of open file descriptors", limit)?;
            family::gauge(encoder, "adit_fd_limit", "The soft limit on descriptors in force", limit)?;
        }
        Ok(())
    }

    fn encode_stat(&self, encoder: &mut DescriptorEncoder<'_>, stat: Stat) -> fmt::Result {
        let memory = stat.resident_pages.saturating_mul(page_size());
        family::gauge(encoder, "process_resident_memory_bytes", "Resident memory size in bytes", memory)?;
        family::gauge(encoder, "process_virtual_memory_bytes", "Virtual memory size in bytes", stat.virtual_bytes)?;
        let help = "Total user and system CPU time spent in seconds";
        encoder
            .encode_descriptor("process_cpu_seconds", help, None, MetricType::Counter)?
            .encode_counter::<NoLabelSet, _, f64>(&seconds(stat.cpu_ticks), None)?;
        let Some(booted) = self.booted else { return Ok(()) };
        let help = "Start time of the process since the Unix epoch in seconds";
        family::gauge(encoder, "process_start_time_seconds", help, booted + seconds(stat.start_ticks))
    }
}

impl Collector for ProcessStats {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.encode_descriptors(&mut encoder)?;
        self.stat().map_or(Ok(()), |stat| self.encode_stat(&mut encoder, stat))
    }
}

fn page_size() -> u64 {
    u64::try_from(rustix::param::page_size()).unwrap_or(4096)
}

#[expect(clippy::cast_precision_loss, reason = "ticks of a process's life fit into the 52 bits of a double")]
fn seconds(ticks: u64) -> f64 {
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

/// Without `.` and `..`.
fn count_entries(folder: &File) -> Option<u64> {
    rustix::fs::seek(folder, rustix::fs::SeekFrom::Start(0)).ok()?;
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut entries = RawDir::new(folder, &mut buffer);
    let mut count = 0;
    while let Some(entry) = entries.next() {
        let is_number = entry.ok()?.file_name().to_bytes().first().is_some_and(u8::is_ascii_digit);
        count += u64::from(is_number);
    }
    Some(count)
}

/// The program's name is in parentheses and may contain anything; what follows the last parenthesis is regular.
fn parse_stat(text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // The first field here is the third of proc(5).
    let number = |index: usize| fields.get(index.checked_sub(3)?)?.parse::<u64>().ok();
    Some(Stat {
        cpu_ticks: number(14)?.saturating_add(number(15)?),
        start_ticks: number(22)?,
        virtual_bytes: number(23)?,
        resident_pages: number(24)?,
    })
}

fn parse_boot_time(stat: &str) -> Option<f64> {
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_confuses_nothing() {
        let text = "7 (a) b (c) S 1 7 7 0 -1 4194304 1 0 0 0 11 5 0 0 20 0 1 0 900 8192 3 18446744073709551615 1";
        assert_eq!(
            parse_stat(text),
            Some(Stat { cpu_ticks: 16, start_ticks: 900, virtual_bytes: 8192, resident_pages: 3 })
        );
        assert_eq!(parse_stat("7 (a) S 1"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn both_ways_of_counting_descriptors_agree() {
        // Other tests open and close files meanwhile: agreement has to be seen once.
        let stats = ProcessStats::default();
        let agree = || {
            let counted = count_entries(&stats.fds.as_ref().expect("proc").lock().expect("lock")).expect("count");
            let told = stats.fd_open().expect("fd_open");
            told == counted
        };
        let limit = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while !agree() {
            assert!(std::time::Instant::now() < limit, "they never agree");
            std::thread::yield_now();
        }
    }

    #[test]
    fn this_process_has_memory_and_a_start() {
        let stats = ProcessStats::default();
        let stat = stats.stat().expect("stat");
        assert!(stat.resident_pages > 0 && stat.virtual_bytes > 0 && stat.start_ticks > 0);
        assert!(stats.resident_bytes().expect("memory") > 100_000);
        assert!(stats.booted.expect("boot time") > 1_000_000_000.0);
        assert!(stats.fd_limit().is_none_or(|limit| limit > 3));
    }
}
