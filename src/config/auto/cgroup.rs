//! The limits of this process's control groups, version 2 and version 1, its ancestors' included: the tightest counts.
//!
//! In a container the path that the kernel reports is often not visible under the mount; then the levels that are
//! visible count, down to the mount itself. Whatever cannot be read or parsed is no limit.

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use super::CpuQuota;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Limits {
    pub(super) cpu: Option<CpuQuota>,
    /// In bytes.
    pub(super) memory: Option<u64>,
}

impl Limits {
    /// `membership` is `/proc/self/cgroup`, `mount` is `/sys/fs/cgroup`.
    pub(super) fn read(membership: &Path, mount: &Path) -> Self {
        let mut limits = Self::default();
        for line in std::fs::read_to_string(membership).unwrap_or_default().lines() {
            // `0::/path` is version 2, `4:cpu,cpuacct:/path` version 1.
            let mut parts = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
            if controllers.is_empty() {
                for group in levels(mount, path) {
                    limits.tighten(cpu_max(&group), number(&group.join("memory.max")));
                }
                continue;
            }
            for group in levels(&mount.join(controllers), path) {
                let has = |name| controllers.split(',').any(|controller| controller == name);
                let cpu = if has("cpu") { cfs(&group) } else { None };
                let memory = if has("memory") { number(&group.join("memory.limit_in_bytes")) } else { None };
                limits.tighten(cpu, memory);
            }
        }
        limits
    }

    fn tighten(&mut self, cpu: Option<CpuQuota>, memory: Option<u64>) {
        // a/b < c/d, without dividing.
        let share = |a: &CpuQuota, b: &CpuQuota| {
            let left = u128::from(a.quota) * u128::from(b.period.get());
            left.cmp(&(u128::from(b.quota) * u128::from(a.period.get())))
        };
        self.cpu = self.cpu.into_iter().chain(cpu).min_by(share);
        self.memory = self.memory.into_iter().chain(memory).min();
    }
}

/// The group's folder and all above it, up to the mount.
fn levels(mount: &Path, path: &str) -> Vec<PathBuf> {
    let inside = Path::new(path.trim_start_matches('/'));
    // Outside the cgroup namespace the path climbs (`/../other`): what is up there is not ours to see.
    if inside.components().any(|part| part == std::path::Component::ParentDir) {
        return vec![mount.to_owned()];
    }
    inside.ancestors().map(|level| mount.join(level)).collect()
}

/// Version 2: `max 100000` or `QUOTA PERIOD`.
fn cpu_max(group: &Path) -> Option<CpuQuota> {
    let text = std::fs::read_to_string(group.join("cpu.max")).ok()?;
    let (quota, period) = text.trim().split_once(' ')?;
    Some(CpuQuota { quota: quota.parse().ok()?, period: period.parse().ok().and_then(NonZeroU64::new)? })
}

/// Version 1: a quota of -1 is none.
fn cfs(group: &Path) -> Option<CpuQuota> {
    let quota = number(&group.join("cpu.cfs_quota_us"))?;
    let period = number(&group.join("cpu.cfs_period_us")).and_then(NonZeroU64::new)?;
    Some(CpuQuota { quota, period })
}

/// A number in a file of its own; `max` and negative ones are none.
fn number(file: &Path) -> Option<u64> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(membership: &str, files: &[(&str, &str)]) -> Limits {
        let folder = tempfile::tempdir().unwrap();
        let mount = folder.path().join("mount");
        for (name, text) in files {
            let file = mount.join(name);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        }
        let file = folder.path().join("membership");
        std::fs::write(&file, membership).unwrap();
        Limits::read(&file, &mount)
    }

    fn limits(cpu: Option<(u64, u64)>, memory: Option<u64>) -> Limits {
        let cpu = cpu.map(|(quota, period)| CpuQuota { quota, period: NonZeroU64::new(period).unwrap() });
        Limits { cpu, memory }
    }

    #[test]
    fn version_2_takes_the_tightest_level() {
        let files = [
            ("a/cpu.max", "200000 100000\n"),
            ("a/b/cpu.max", "400000 100000\n"),
            ("a/memory.max", "max\n"),
            ("a/b/memory.max", "1048576\n"),
        ];
        assert_eq!(read("0::/a/b\n", &files), limits(Some((200_000, 100_000)), Some(1_048_576)));
    }

    #[test]
    fn a_container_sees_its_own_group_at_the_mount() {
        let files = [("cpu.max", "50000 100000\n"), ("memory.max", "4096\n")];
        for membership in ["0::/\n", "0::/../../kubepods/pod1\n", "0::/kubepods/pod1\n"] {
            assert_eq!(read(membership, &files), limits(Some((50_000, 100_000)), Some(4096)), "{membership}");
        }
    }

    #[test]
    fn version_1_has_a_folder_for_each_controller() {
        let files = [
            ("cpu,cpuacct/docker/x/cpu.cfs_quota_us", "150000\n"),
            ("cpu,cpuacct/docker/x/cpu.cfs_period_us", "100000\n"),
            ("cpu,cpuacct/cpu.cfs_quota_us", "-1\n"),
            ("cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
            ("memory/docker/x/memory.limit_in_bytes", "2097152\n"),
            ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("pids/docker/x/memory.limit_in_bytes", "1\n"),
        ];
        let membership = "5:pids:/docker/x\n4:cpu,cpuacct:/docker/x\n3:memory:/docker/x\n0::/docker/x\n";
        assert_eq!(read(membership, &files), limits(Some((150_000, 100_000)), Some(2_097_152)));
    }

    #[test]
    fn no_or_broken_limits_are_none() {
        let none = limits(None, None);
        assert_eq!(Limits::read(Path::new("/nonexistent"), Path::new("/nonexistent")), none);
        assert_eq!(read("", &[]), none);
        assert_eq!(read("garbage\n0:\n:::\n", &[]), none);
        for cpu in ["max 100000", "", "1", "1 0", "-1 100000", "x y"] {
            assert_eq!(read("0::/a\n", &[("a/cpu.max", cpu), ("a/memory.max", "max")]), none, "{cpu}");
        }
    }
}
