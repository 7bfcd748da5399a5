#!/usr/bin/env python3
"""preflight.py WANTS: what a host is, and whether it can be provisioned; JSON on stdout.

WANTS is base64 of a JSON object. Reads only, and needs nothing beyond Python 3.8's own library, for
it runs on a bare host. Each finding has a level: `stop` refuses the host, `warn` is only shown.
"""

import base64
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

NVIDIA, NVSWITCH, DISPLAY = "0x10de", "1af1", ("0x0300", "0x0302")
STATE = "var/lib/appliance-provision/state.json"
PINS = "etc/apt/preferences.d/appliance-nvidia"
OURS = ("appliance", "python", "prometheus-node", "prometheus", "dcgm-exporter")


def main(argv):
    """Print the verdict."""
    wants = json.loads(base64.b64decode(argv[1]))
    facts = look(Path("/"))
    findings = judge(facts, wants)
    ok = all(f["ok"] for f in findings if f["level"] == "stop")
    print(json.dumps({"ok": ok, "facts": facts, "findings": findings}))


def look(root):
    """All facts of the host whose file system is at `root`."""
    kernel = os.uname().release
    return {
        "os": read_os(read(root / "etc/os-release")),
        "architecture": os.uname().machine,
        "kernel": kernel,
        "headers": (root / "lib/modules" / kernel / "build").exists()
        or bool(installed(f"linux-headers-{kernel}"))
        or has_candidate(f"linux-headers-{kernel}"),
        "cards": pci_devices(root, DISPLAY),
        "switches": [d for d in pci_devices(root, ("0x0680",)) if d["id"] == NVSWITCH],
        "secure_boot": secure_boot(root),
        "cmdline": read(root / "proc/cmdline").split(),
        "acs": acs_bridges(root),
        "disk_gib": {name: free_gib(root / name) for name in ("opt", "var")},
        "memory_gib": memory_gib(read(root / "proc/meminfo")),
        "run_driver": run_driver(root),
        "held": run("apt-mark", "showhold").split(),
        "ours": recorded(root),
        "pinned": (root / PINS).exists(),
        "unfinished": run("dpkg", "--audit") != "",
        "clock": time.time(),
        "synchronized": run("timedatectl", "show", "-p", "NTPSynchronized", "--value"),
        "ports": listening(root),
        "driver": {
            "installed": driver_installed(),
            "loaded": loaded_version(read(root / "proc/driver/nvidia/version")),
        },
        "fabricmanager": installed("nvidia-fabricmanager"),
        "nouveau": "nouveau" in run("lsmod").split(),
        "train": link_name(root / "opt/appliance/train"),
        "fastdeploy2": link_name(root / "opt/appliance/fastdeploy2"),
        "release": link_name(root / "opt/appliance/release"),
    }


def judge(facts, wants):
    """The findings, a list of objects: check, ok, level, message (with the remedy)."""
    judges = [judge_system, judge_resources, judge_packages]
    judges += [judge_cards, judge_driver, judge_traffic] if wants["cards"] else [judge_idle_cards]
    return [finding for judged in judges for finding in judged(facts, wants)]


def stop(check, ok, message):
    """A finding that refuses the host; the message is for the case that it is not ok."""
    return {"check": check, "ok": bool(ok), "level": "stop", "message": "" if ok else message}


def warn(check, ok, message):
    """A finding that is only shown."""
    return {**stop(check, ok, message), "level": "warn"}


def judge_system(facts, wants):
    """Operating system, architecture and clock."""
    name = facts["os"]
    yield stop(
        "system",
        name in wants["systems"],
        f"the system is {name}; the roles know {' and '.join(wants['systems'])}. Reinstall it.",
    )
    made_for = wants["bundle_system"] or name
    yield stop(
        "bundle",
        name == made_for,
        f"the bundle was made for {made_for}, the host is {name}. Make one on a machine like it.",
    )
    yield stop(
        "architecture",
        facts["architecture"] == "x86_64",
        f"the architecture is {facts['architecture']}; the wheels are for x86_64.",
    )
    off = abs(facts["clock"] - wants["now"])
    yield stop(
        "clock",
        off <= wants["clock_seconds"],
        f"the clock is {off:.0f} s off: signatures would be refused. Set it (timedatectl), "
        "then run again.",
    )
    yield warn(
        "time sync",
        facts["synchronized"] == "yes",
        "the clock is not synchronized; chrony will be set up. Name a reachable time server in "
        "base_ntp_servers if it stays so.",
    )


def judge_resources(facts, wants):
    """Disk, memory, ports."""
    for name, free in facts["disk_gib"].items():
        yield stop(
            f"disk /{name}",
            free >= wants["disk_gib"],
            f"/{name} has {free:.1f} GiB free, {wants['disk_gib']} are needed. Make room, or put "
            "it on a larger disk.",
        )
    yield stop(
        "memory",
        facts["memory_gib"] >= wants["memory_gib"],
        f"the host has {facts['memory_gib']:.1f} GiB of memory, the profile asks for "
        f"{wants['memory_gib']}. Choose a smaller profile.",
    )
    for port, owner in sorted(facts["ports"].items()):
        if int(port) in wants["ports"]:
            yield stop(
                f"port {port}",
                owner.startswith(OURS),
                f"port {port} is taken by {owner}. Stop that service, or change the port "
                "(appliance_rest_port, appliance_grpc_port).",
            )


def judge_packages(facts, wants):
    """What apt and earlier installers left."""
    ours = wants["managed"] if facts["pinned"] else []
    foreign = [p for p in facts["held"] if is_driver(p) and p not in ours]
    yield stop(
        "held packages",
        not foreign,
        f"held by someone else: {', '.join(foreign)}. Release them: apt-mark unhold "
        f"{' '.join(foreign)}",
    )
    yield warn(
        "package state",
        not facts["unfinished"],
        "dpkg was interrupted; it will be completed first (dpkg --configure -a).",
    )
    if wants["cards"]:
        yield stop(
            "earlier .run driver",
            not facts["run_driver"],
            f"a driver came from a .run file ({facts['run_driver']}), which packages would "
            "mix with. Remove it: nvidia-uninstall --silent",
        )


def judge_idle_cards(facts, wants):
    """Cards under a profile without."""
    if facts["cards"]:
        yield warn(
            "cards",
            False,
            f"{len(facts['cards'])} NVIDIA cards are here, but the profile "
            "has none: they will lie idle. Choose a profile with cards to use them.",
        )


def judge_cards(facts, wants):
    """Whether cards and switches are those of the profile."""
    right = [card for card in facts["cards"] if card["id"] in wants["card_ids"]]
    wrong = sorted({card["id"] for card in facts["cards"]} - set(wants["card_ids"]))
    yield stop(
        "cards",
        len(right) == wants["cards"] and not wrong,
        f"the PCI bus shows {len(right)} cards of 10de:{'/'.join(wants['card_ids'])}"
        + (f" and others ({', '.join(wrong)})" if wrong else "")
        + f", the profile has {wants['cards']}. Choose the profile that fits, or have the missing "
        "cards reseated.",
    )
    yield stop(
        "NVSwitch",
        len(facts["switches"]) == wants["switches"],
        f"the PCI bus shows {len(facts['switches'])} NVSwitches, the profile has "
        f"{wants['switches']}. Choose the profile that fits the board.",
    )


def judge_driver(facts, wants):
    """What keeps the driver's module from being built and loaded."""
    level = warn if wants.get("secure_boot_enrolled") else stop
    yield level(
        "Secure Boot",
        not facts["secure_boot"],
        "Secure Boot is on: the kernel would refuse the driver's module. Turn it off in the "
        "firmware, or enrol DKMS's key (mokutil --import /var/lib/dkms/mok.pub) and set "
        "preflight_secure_boot_enrolled: true.",
    )
    package = f"linux-headers-{facts['kernel']}"
    found = package in wants["debs"] or (facts["headers"] and not wants["offline"])
    yield stop(
        "kernel headers",
        found or bool(installed(package)),
        f"{package} is neither installed nor in the "
        f"{'bundle' if wants['offline'] else 'package sources'}: the module could not be built. "
        "Boot a kernel whose headers are at hand"
        + (f", or make the bundle with --package {package}." if wants["offline"] else "."),
    )


def judge_traffic(facts, wants):
    """What slows traffic between cards."""
    translating = [w for w in facts["cmdline"] if w in ("intel_iommu=on", "amd_iommu=on")]
    yield warn(
        "IOMMU",
        not translating or "iommu=pt" in facts["cmdline"],
        f"{' '.join(translating)} without iommu=pt slows traffic between cards; it will be set.",
    )
    yield warn(
        "ACS",
        not facts["acs"],
        f"PCIe access control is on at {', '.join(facts['acs'][:4])}: traffic between cards goes "
        "through the root and NCCL may hang. Turn ACS off in the firmware.",
    )


def is_driver(package):
    """Whether the driver roles would change this package."""
    return bool(re.match(r"(lib)?(nvidia|nvsdm)|cuda-drivers|datacenter-gpu-manager", package))


def read_bytes(path):
    """A file's bytes; none where it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def read(path):
    """A file's text; empty where it cannot be read."""
    return read_bytes(path).decode(errors="replace")


def run(*command):
    """A command's output; empty where there is no such command or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def read_os(text):
    """`debian 12` from the text of /etc/os-release."""
    fields = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', text, re.M))
    return f"{fields.get('ID', 'unknown')} {fields.get('VERSION_ID', '')}".strip()


def pci_devices(root, classes):
    """NVIDIA's PCI devices of some classes: slot, id, link width and the most it could be."""
    return [
        {
            "slot": folder.name,
            "id": read(folder / "device").strip()[2:],
            "width": read(folder / "current_link_width").strip(),
            "max_width": read(folder / "max_link_width").strip(),
        }
        for folder in sorted((root / "sys/bus/pci/devices").glob("*"))
        if read(folder / "vendor").strip() == NVIDIA
        and read(folder / "class").strip()[:6] in classes
    ]


def acs_bridges(root):
    """Slots of PCI bridges that redirect peer-to-peer traffic (ACS control bits set)."""
    return [
        folder.name
        for folder in sorted((root / "sys/bus/pci/devices").glob("*"))
        if read(folder / "class").startswith("0x0604") and acs_on(read_bytes(folder / "config"))
    ]


def acs_on(config):
    """Whether a PCI configuration space has ACS redirection on.

    PCI Express Base Specification: extended capabilities start at 0x100, each with id (16 bits),
    version (4) and next offset (12); ACS is id 0x000D, its control register at +6, bits 2 and 3
    (request and completion redirect).
    """
    offset, seen = 0x100, set()
    while offset >= 0x100 and offset + 8 <= len(config) and offset not in seen:
        seen.add(offset)
        header = struct.unpack_from("<I", config, offset)[0]
        if header & 0xFFFF == 0x000D:
            return bool(struct.unpack_from("<H", config, offset + 6)[0] & 0b1100)
        offset = header >> 20
    return False


def secure_boot(root):
    """Whether the firmware enforces Secure Boot."""
    said = run("mokutil", "--sb-state")
    if said:
        return "enabled" in said
    for path in (root / "sys/firmware/efi/efivars").glob("SecureBoot-*"):
        return read_bytes(path)[-1:] == b"\x01"
    return False


def free_gib(folder):
    """Free space for root, in GiB, of the file system where a folder lies or would lie."""
    while not folder.exists():
        folder = folder.parent
    return round(shutil.disk_usage(folder).free / 2**30, 2)


def memory_gib(text):
    """Memory in GiB from the text of /proc/meminfo."""
    match = re.search(r"^MemTotal:\s+(\d+) kB", text, re.M)
    return round(int(match.group(1)) / 2**20, 2) if match else 0.0


def run_driver(root):
    """The uninstaller that a .run driver leaves, if no package owns it."""
    path = root / "usr/bin/nvidia-uninstall"
    return "" if not path.exists() or run("dpkg", "-S", str(path)) else str(path)


def recorded(root):
    """What an earlier provisioning recorded; nothing where there was none."""
    try:
        return json.loads(read(root / STATE) or "{}")
    except ValueError:
        return {}


def installed(package):
    """The version of an installed package, without its Debian revision; empty if it is not."""
    line = run("dpkg-query", "-W", "-f", "${db:Status-Status} ${Version}", package)
    status, _, version = line.partition(" ")
    return re.sub(r"^\d+:|-[^-]*$", "", version) if status == "installed" else ""


def driver_installed():
    """The version of the driver packages, of either family."""
    names = ("nvidia-driver-cuda", "nvidia-utils-580")
    return next((version for version in map(installed, names) if version), "")


def has_candidate(package):
    """Whether apt knows a version to install."""
    return bool(re.search(r"Candidate: (?!\(none\))", run("apt-cache", "policy", package)))


def loaded_version(text):
    """The version in /proc/driver/nvidia/version."""
    match = re.search(r"Kernel Module(?: for \S+)?\s+(\d[\d.]+)", text)
    return match.group(1) if match else ""


def link_name(path):
    """The last part of a link's target; empty where there is no link."""
    return os.path.basename(os.readlink(path)) if path.is_symlink() else ""


def listening(root):
    """TCP ports being listened on, each with the name of its process (`?` where it is hidden)."""
    sockets = {}
    for name in ("tcp", "tcp6"):
        for line in read(root / "proc/net" / name).splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                sockets[f"socket:[{fields[9]}]"] = int(fields[1].rsplit(":", 1)[1], 16)
    ports = {str(port): "?" for port in sockets.values()}
    for link in (root / "proc").glob("[0-9]*/fd/*"):
        try:
            target = os.readlink(link)
        except OSError:
            continue
        if target in sockets:
            ports[str(sockets[target])] = read(link.parent.parent / "comm").strip()
    return ports


if __name__ == "__main__":
    main(sys.argv)
