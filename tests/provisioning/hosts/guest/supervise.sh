#!/bin/bash
# supervise.sh FOLDER NETNS CGROUP: boot the host in FOLDER, again after each reboot, until it
# powers off. unshare ends with 129 where the guest's PID 1 asked for a reboot (SIGHUP).
folder=$1 netns=$2 cgroup=$3 child=
here=$(dirname "$0")
trap '[ -n "$child" ] && kill -9 "$child" 2>/dev/null; exit 0' TERM INT
mkdir -p "$cgroup"
while :; do
    (
        echo "$BASHPID" > "$cgroup/cgroup.procs"
        exec ip netns exec "$netns" unshare --mount --uts --ipc --pid --cgroup --fork --kill-child \
            -- /bin/bash "$here/init.sh" "$folder"
    ) >> "$folder/console.log" 2>&1 < /dev/null &
    child=$!
    echo "$child" > "$folder/pid"
    wait "$child"
    status=$?
    echo "$(date +%T) ended with $status" >> "$folder/console.log"
    [ "$status" = 129 ] || break
    echo reboot >> "$folder/boots"
done
rm -f "$folder/pid"
