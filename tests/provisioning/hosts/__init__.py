"""Test hosts: Debian with systemd as PID 1, a real sshd and a network of their own, on one machine.

Each host is an overlay over one debootstrapped base, in namespaces (mount, UTS, IPC, PID, cgroup,
network). What the kernel shares between namespaces - modules, the clock, the `vm.*` and
`kernel.*` settings - is kept away from them: read-only, or a private copy.
"""

from tests.provisioning.hosts.host import Host, Settings
from tests.provisioning.hosts.lab import Lab

__all__ = ["Host", "Lab", "Settings"]
