#!/bin/bash
# init.sh FOLDER: within fresh namespaces, lay out the host's file system and become its systemd.
set -e
folder=$1 R=$1/root here=$(cd "$(dirname "$0")" && pwd)
. "$folder/settings"
mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=$BASE,upperdir=$folder/upper,workdir=$folder/work" "$R"
mount -t proc proc "$R/proc"
mount -t sysfs sysfs "$R/sys"
umount -R /sys/fs/cgroup 2>/dev/null || true
mount -t cgroup2 cgroup2 "$R/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$R/run"
mount -t tmpfs tmpfs "$R/tmp"
mount -t tmpfs -o mode=755 tmpfs "$R/dev"
for name in null zero full random urandom tty; do
    touch "$R/dev/$name"
    mount --bind "/dev/$name" "$R/dev/$name"
done
mkdir -p "$R/dev/pts" "$R/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$R/dev/pts"
ln -s pts/ptmx "$R/dev/ptmx"
mount -t tmpfs tmpfs "$R/dev/shm"
ln -s /proc/self/fd "$R/dev/fd"
ln -s fd/0 "$R/dev/stdin"
ln -s fd/1 "$R/dev/stdout"
ln -s fd/2 "$R/dev/stderr"

# A small disk under one folder, where a test asks for one.
if [ -n "$SMALL_DISK" ]; then
    mkdir -p "$R/${SMALL_DISK%%:*}"
    mount -t tmpfs -o "size=${SMALL_DISK##*:}" tmpfs "$R/${SMALL_DISK%%:*}"
fi

# The module that this boot loads: what the initrd and DKMS held at shutdown.
state=$R/run/fakegpu
mkdir -p "$state"
echo "$SECURE_BOOT" > "$state/secure_boot"
: > "$state/modules"
if [ "$CARDS" -gt 0 ]; then
    if ! grep -rqs '^blacklist nouveau' "$R/boot/initrd-modprobe.d"; then
        echo nouveau >> "$state/modules"
    elif [ -s "$R/var/lib/fakegpu/dkms" ]; then
        echo nvidia >> "$state/modules"
        cp "$R/var/lib/fakegpu/dkms" "$state/module_version"
        mount -t tmpfs -o mode=755 tmpfs "$R/proc/driver"
        mkdir -p "$R/proc/driver/nvidia"
        echo "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  $(cat "$state/module_version")" \
            > "$R/proc/driver/nvidia/version"
    fi
fi
echo "BOOT_IMAGE=/boot/vmlinuz root=/dev/vda ro $(cat "$R/boot/cmdline" 2>/dev/null)" > "$state/cmdline"
mount --bind "$state/cmdline" "$R/proc/cmdline"
cat /proc/sys/kernel/random/uuid > "$state/boot_id"

# /proc/sys is the machine's, not the host's: read-only but for its network part, with private
# copies of the settings that the play writes.
mkdir "$state/proc" "$state/sys"
mount -t proc proc "$state/proc"
mount --bind "$R/proc/sys" "$R/proc/sys"
mount -o remount,bind,ro "$R/proc/sys"
mount --bind "$state/proc/sys/net" "$R/proc/sys/net"
umount -l "$state/proc"
mount --bind "$state/boot_id" "$R/proc/sys/kernel/random/boot_id"
for key in $PRIVATE_SYSCTLS; do
    path=${key//.//}
    [ -e "/proc/sys/$path" ] || continue
    cat "/proc/sys/$path" > "$state/sys/$key"
    mount --bind "$state/sys/$key" "$R/proc/sys/$path"
done
if [ -e "$R/proc/sysrq-trigger" ]; then mount --bind "$R/dev/null" "$R/proc/sysrq-trigger"; fi

if [ "$CARDS" -gt 0 ]; then
    mount -t tmpfs -o mode=755 tmpfs "$R/sys/bus"
    for bus in /sys/bus/*; do
        name=${bus##*/}
        [ "$name" = pci ] && continue
        mkdir "$R/sys/bus/$name"
        mount --bind "$bus" "$R/sys/bus/$name"
    done
    "$PYTHON" "$here/fakepci.py" "$R/sys/bus/pci" "$CARD_ID" "$CARDS" "$SWITCHES"
fi
mount -o remount,bind,ro "$R/sys"

hostname "$NAME"
echo "$NAME" > "$R/etc/hostname"
[ -f "$R/etc/.named" ] || printf '127.0.0.1 localhost\n127.0.1.1 %s\n' "$NAME" > "$R/etc/hosts"
touch "$R/etc/.named"
rm -f "$R/etc/resolv.conf"
: > "$R/etc/resolv.conf"
# The network namespace outlives a reboot; a real host's packet filter does not.
chroot "$R" nft flush ruleset 2>/dev/null || true

cd "$R"
mkdir -p .old
pivot_root . .old
umount -l /.old
rmdir /.old
exec env -i container=test-host PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    setpriv --bounding-set -sys_module,-sys_time,-sys_rawio,-wake_alarm,-syslog \
    /lib/systemd/systemd --system --unit=multi-user.target
