"""T2: nvcc of CUDA 11.8 as an option, with Debian's real packages of it."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from tests.provisioning.conftest import Command, Vendor
from tests.provisioning.hosts import Lab, Settings, base
from tests.provisioning.hosts.lab import GATEWAY
from tests.provisioning.hosts.mirror import Mirror

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]
KERNEL = "__global__ void twice(float *x) { x[threadIdx.x] *= 2.0f; }"


def unpacked(bundle: Path, folder: Path) -> Path:
    """A bundle's files, to be served as a mirror."""
    with tarfile.open(bundle) as tar:
        tar.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def toolkit_bundle(
    command: Command, vendor: Vendor, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A bundle with the toolkit, from sources that have Debian's non-free part (1.6 GB)."""
    folder = tmp_path_factory.mktemp("toolkit")
    sources = folder / "sources.list"
    sources.write_text(
        f"deb [signed-by={vendor.key}] {vendor.url}/nvidia ./\n"
        f"deb {base.mirror()} {base.SUITE} main contrib non-free\n"
    )
    settings = {"provision_lock": vendor.lock, **vendor.settings, "cuda_runtime_toolkit": "true"}
    code, output = command.words(
        "--bundle", str(folder / "gpu.tar"), "--profile", "a100-40g-x4",
        "--apt-sources", str(sources), "--package", f"linux-headers-{os.uname().release}",
        *(word for name, value in settings.items() for word in ("--set", f"{name}={value}")),
        timeout=1800,
    )  # fmt: skip
    assert code == 0, output
    return folder / "gpu.tar"


def test_the_toolkit_compiles_a_kernel_for_the_cards(
    lab: Lab,
    command: Command,
    gpu_bundle: tuple[Path, str],
    toolkit_bundle: Path,
    tmp_path: Path,
) -> None:
    host = lab.add("compiler", Settings(cards=4, card_id="20f1"))
    words = ("--profile", "a100-40g-x4", "--yes", "--mirror")
    with Mirror(unpacked(gpu_bundle[0], tmp_path / "without"), GATEWAY) as mirror:
        done = command([host], *words, mirror.url, cuda_runtime_toolkit=True)
    assert done.code == 1
    cause = " ".join(done.host("compiler")["cause"].split())
    assert "the package sources have no nvidia-cuda-toolkit" in cause
    assert "--set cuda_runtime_toolkit=true" in cause
    with Mirror(unpacked(toolkit_bundle, tmp_path / "with"), GATEWAY) as mirror:
        done = command([host], *words, mirror.url, timeout=1500, cuda_runtime_toolkit=True)
    assert done.code == 0, done.output
    host.root(f"echo '{KERNEL}' > /root/twice.cu")
    host.root("cd /root && nvcc -arch=sm_80 -c twice.cu -o twice.o", timeout=120)
    assert "sm_80" in host.root("cuobjdump --list-elf /root/twice.o")
    lab.remove(host)
