"""T2: nvcc of CUDA 11.8 as an option, with Debian's real packages of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.provisioning.conftest import Command, Vendor, make_gpu_bundle, unpacked
from tests.provisioning.hosts import Lab, Settings
from tests.provisioning.hosts.lab import GATEWAY
from tests.provisioning.hosts.mirror import Mirror

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]
KERNEL = "__global__ void twice(float *x) { x[threadIdx.x] *= 2.0f; }"


@pytest.fixture(scope="module")
def toolkit_bundle(
    command: Command, vendor: Vendor, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A bundle with the toolkit, from sources that have Debian's non-free part (1.6 GB)."""
    path = tmp_path_factory.mktemp("toolkit") / "gpu.tar"
    parts = "main contrib non-free"
    make_gpu_bundle(command, vendor, path, "a100-40g-x4", parts, cuda_runtime_toolkit=True)
    return path


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
    host.root(f"echo '{KERNEL}' > /var/tmp/twice.cu")
    host.root("cd /var/tmp && nvcc -arch=sm_80 -c twice.cu -o twice.o", timeout=120)
    assert "sm_80" in host.root("cuobjdump --list-elf /var/tmp/twice.o")
    lab.remove(host)
