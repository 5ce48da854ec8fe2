#!/bin/sh
# Becomes a systemd that is process 1 of its own PID namespace, on a root of its own: what is written there is gone afterwards.
# $1: a folder whose content is laid over the root. To be started with fresh mount, PID, IPC, UTS and cgroup namespaces.
set -eu
mount --make-rprivate /
cd "$1"
tar -cf - . >"/dev/shm/adit-systemd-root.$$"
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work /mnt/root
root=/mnt/root
tar -xf "/dev/shm/adit-systemd-root.$$" -C "$root" --no-same-owner
rm "/dev/shm/adit-systemd-root.$$"
mount -t proc proc "$root/proc"
# Nothing of the machine itself is to be changed.
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,ro,bind "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
mount --rbind /dev "$root/dev"
mkdir -p "$root/run/systemd/system"
# No service of the machine's own.
for target in sysinit basic shutdown test; do
    printf '[Unit]\nDescription=%s\nDefaultDependencies=no\n' "$target" >"$root/run/systemd/system/$target.target"
done
cd "$root"
exec chroot . env -i container=test PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=test.target --log-target=console
