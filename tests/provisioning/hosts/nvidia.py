"""Stand-ins for NVIDIA's packages: a signed package source whose programs keep state.

The module counts as loaded only from the next boot, and only with nouveau kept out; the fabric
manager refuses another driver's version, in the words of the real one.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from provisioning import debs
from tests.provisioning.hosts.base import run

STANDINS = Path(__file__).parent / "standins"
OLD, NEW = "580.159.03", "580.173.02"


def program(name: str, version: str) -> str:
    """The text of a stand-in of one driver version."""
    return (STANDINS / name).read_text().replace("@VERSION@", version)


def unit(command: str, kind: str = "simple") -> str:
    """A service's file."""
    after = "RemainAfterExit=yes\n" if kind == "oneshot" else ""
    return (
        f"[Unit]\nStartLimitIntervalSec=0\n[Service]\nType={kind}\n{after}ExecStart={command}\n"
        "[Install]\nWantedBy=multi-user.target\n"
    )


def package_source(folder: Path) -> str:
    """Fill `folder` with both versions of the packages; returns the key they are signed with."""
    folder.mkdir(parents=True)
    for version in (OLD, NEW):
        for name, files, control in driver_packages(version):
            deb(folder, name, f"{version}-{revision(name)}", files, **control)
    dcgm = {
        "usr/bin/dcgmi": (STANDINS / "dcgmi").read_text(),
        "lib/systemd/system/nvidia-dcgm.service": unit("/bin/true", "oneshot"),
    }
    deb(folder, "datacenter-gpu-manager-4-cuda12", "1:4.4.1-1", dcgm)
    exporter = {
        "usr/bin/dcgm-exporter": (STANDINS / "dcgm-exporter").read_text(),
        "lib/systemd/system/nvidia-dcgm-exporter.service": unit("/usr/bin/dcgm-exporter"),
    }
    started = {"postinst": "systemctl enable --now nvidia-dcgm-exporter\n"}
    deb(folder, "datacenter-gpu-manager-exporter", "4.8.2-1", exporter, **started)
    # Ubuntu 22.04's Python 3.10, for a Debian host that bears Ubuntu's name.
    ten = {"Depends": "python3.11", "postinst": "ln -sf python3.11 /usr/bin/python3.10\n"}
    deb(folder, "python3.10", "3.10.12-1", {}, **ten)
    deb(folder, "python3.10-venv", "3.10.12-1", {}, Depends="python3.10, python3.11-venv")
    deb(folder, f"linux-headers-{os.uname().release}", "1", {"usr/src/headers": "stand-in\n"})
    return debs.sign(folder, folder.parent / "source-gpg")


def driver_packages(version: str) -> list[tuple[str, dict[str, str], dict[str, str]]]:
    """Name, files and control fields of what makes up one driver version, on both systems."""
    built = f"mkdir -p /var/lib/fakegpu\necho {version} > /var/lib/fakegpu/dkms\n"
    smi = {"usr/bin/nvidia-smi": program("nvidia-smi", version)}
    daemon = {"lib/systemd/system/nvidia-persistenced.service": unit("/bin/true", "oneshot")}
    manager = {
        "usr/bin/nv-fabricmanager": program("nv-fabricmanager", version),
        "lib/systemd/system/nvidia-fabricmanager.service": unit("/usr/bin/nv-fabricmanager"),
    }
    exact = f"(= {version}-1)"
    return [
        ("nvidia-persistenced", daemon, {}),
        ("nvidia-fabricmanager", manager, {}),
        ("nvidia-kernel-open-dkms", {}, {"postinst": built}),
        ("nvidia-driver-cuda", smi, {"Depends": f"libcuda1 {exact}"}),
        ("libcuda1", {}, {}),
        ("nvidia-dkms-580-open", {}, {"postinst": built}),
        ("nvidia-utils-580", smi, {"Conflicts": "nvidia-driver-cuda"}),
        ("libnvidia-compute-580", {}, {"Conflicts": "libcuda1"}),
    ]


def revision(package: str) -> str:
    """As NVIDIA numbers its packages of the two systems."""
    return "1ubuntu1" if "-580" in package else "1"


def deb(
    folder: Path, name: str, version: str, files: dict[str, str], postinst: str = "", **control: str
) -> None:
    """Build one package."""
    root = folder / "building"
    (root / "DEBIAN").mkdir(parents=True)
    fields = {
        "Package": name,
        "Version": version,
        "Architecture": "amd64",
        "Maintainer": "Test hosts <test@localhost>",
        "Description": f"stand-in for {name}",
        **control,
    }
    text = "".join(f"{key}: {value}\n" for key, value in fields.items())
    (root / "DEBIAN/control").write_text(text)
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content)
        (root / path).chmod(0o755 if "/bin/" in path else 0o644)
    if postinst:
        (root / "DEBIAN/postinst").write_text(f"#!/bin/sh\nset -e\n{postinst}")
        (root / "DEBIAN/postinst").chmod(0o755)
    file = f"{name}_{version.replace(':', '%3a')}_amd64.deb"
    run(["dpkg-deb", "--build", "--root-owner-group", "-Znone", str(root), str(folder / file)])
    shutil.rmtree(root)


def wheelhouse(folder: Path) -> Path:
    """Small wheels that stand for the gigabytes of a GPU environment; returns their lock.

    The libraries are real ones of this machine under CUDA's names, so that opening them works.
    """
    folder.mkdir(parents=True)
    library = next(Path("/lib/x86_64-linux-gnu").glob("libz.so.1")).resolve().read_bytes()
    lines = ["--no-index\n", f"--find-links {folder}\n"]
    contents: dict[str, dict[str, str | bytes]] = {
        "onnxruntime-1.20.0": {"onnxruntime/__init__.py": "\n"},
        "nvidia_cudnn_cu11-8.9.6.50": {"nvidia/cudnn/lib/libcudnn.so.8": library},
        "nvidia_nccl_cu11-2.19.3": {"nvidia/nccl/lib/libnccl.so.2": library},
        "nvidia_cuda_nvrtc_cu11-11.8.89": {"nvidia/cuda_nvrtc/lib/libnvrtc.so.11.2": library},
    }
    for name, files in contents.items():
        wheel = write_wheel(folder, name, files)
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        package, version = name.rsplit("-", 1)
        lines.append(f"{package.replace('_', '-')}=={version} --hash=sha256:{digest}\n")
    lock = folder / "lock.txt"
    lock.write_text("".join(lines))
    return lock


def paddle_index(folder: Path) -> None:
    """Paddle's own index: cu118/ and cu126/ as pip asks them, links/ as a page of links."""
    paddle: dict[str, str | bytes] = {
        str(path.relative_to(STANDINS)): path.read_text()
        for path in sorted((STANDINS / "paddle").rglob("*.py"))
    }
    needs = {"fastdeploy/__init__.py": "import flash_mask\n"}
    write_wheel(folder / "cu118/paddlepaddle-gpu", "paddlepaddle_gpu-3.1.1", paddle)
    write_wheel(folder / "cu126/paddlepaddle-gpu", "paddlepaddle_gpu-3.3.1", paddle)
    write_wheel(folder / "cu126/fastdeploy-gpu", "fastdeploy_gpu-2.5.0", needs, ["flash-mask>=4"])
    write_wheel(folder / "cu126/flash-mask", "flash_mask-4.0", {"flash_mask.py": "\n"})
    one = {"fastdeploy/__init__.py": "\n"}
    write_wheel(folder / "links", "fastdeploy_gpu_python-1.0.7", one)


def served_lock(lock: Path, url: str, target: Path) -> Path:
    """The same lock, with its wheels at an address that the hosts reach."""
    target.write_text(lock.read_text().replace(str(lock.parent), url))
    return target


def write_wheel(
    folder: Path, name: str, files: Mapping[str, str | bytes], requires: Sequence[str] = ()
) -> Path:
    """A wheel of these files (PEP 427)."""
    folder.mkdir(parents=True, exist_ok=True)
    package, version = name.rsplit("-", 1)
    info = f"{name}.dist-info"
    metadata = [
        f"Name: {package}",
        f"Version: {version}",
        *(f"Requires-Dist: {r}" for r in requires),
    ]
    whole = {
        **files,
        f"{info}/METADATA": "\n".join(["Metadata-Version: 2.1", *metadata, ""]),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    path = folder / f"{name}-py3-none-any.whl"
    record = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, content in whole.items():
            data = content.encode() if isinstance(content, str) else content
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record.append(f"{file},sha256={digest},{len(data)}\n")
            archive.writestr(file, data)
        archive.writestr(f"{info}/RECORD", "".join(record) + f"{info}/RECORD,,\n")
    return path
