"""`python -m serving` and `appliance serve` as processes: ready line, ports, SIGTERM."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from appliance.errors import DeployError, EngineFailed
from serving.client import RestClient, RpcClient
from serving.server import Options, listen, resolve, running
from tests.serving.conftest import NEVER_ENDS

ROOT = Path(__file__).parents[2]
READY = re.compile(r"ready: (\S+) on (http://\S+) \(REST\) and (\S+) \(gRPC\)\n")


@contextlib.contextmanager
def server(
    *arguments: str | Path, program: tuple[str, ...] = ("-m", "serving")
) -> Iterator[subprocess.Popen[str]]:
    """A serving process, ended at the end of the block."""
    process = subprocess.Popen(
        [sys.executable, *program, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=30)


def addresses(process: subprocess.Popen[str]) -> tuple[str, str, str]:
    """Name, REST address and gRPC address, from the ready line."""
    assert process.stdout is not None
    line = process.stdout.readline()
    found = READY.fullmatch(line)
    assert found, line or process.communicate(timeout=30)
    return found[1], found[2], found[3]


FREE = ("--rest-port", "0", "--grpc-port", "0", "--threads", "1")
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize(
    ("engine", "program"),
    [
        ("onnxruntime", ("-m", "serving")),
        ("onnxruntime", ("-m", "appliance.cli", "serve")),
        pytest.param(
            "fastdeploy",
            ("-m", "serving"),
            marks=pytest.mark.skipif(
                sys.version_info >= (3, 11), reason="FastDeploy has wheels for Python 3.10 alone"
            ),
        ),
    ],
    ids=["onnxruntime", "verb", "fastdeploy"],
)
def test_both_doors_of_a_process_answer(
    tiny_bundle: Path, engine: str, program: tuple[str, ...]
) -> None:
    flags = (*FREE, "--engine", engine, "--name", "mine")
    with server(tiny_bundle, *flags, program=program) as process:
        name, rest, rpc = addresses(process)
        assert name == "mine"
        with RestClient(rest) as one, RpcClient(rpc) as other:
            answers = [c.chat(HELLO, temperature=0, max_completion_tokens=20) for c in (one, other)]
            assert answers[0].choices == answers[1].choices
            assert answers[0].usage.completion_tokens > 0
            assert one.models() == other.models()
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert out == "stopping: running requests have 30 seconds; Ctrl-C ends them at once\n"
    assert f"checking the seal of {tiny_bundle}" in err
    assert f"loading tiny into {engine}" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_running_answers_end(long_bundle: Path, number: signal.Signals) -> None:
    flags = (*FREE, "--engine", "onnxruntime", "--max-length", "4096")
    with server(long_bundle, *flags) as process:
        _, rest, rpc = addresses(process)
        wanted = {"max_completion_tokens": 600, "logit_bias": NEVER_ENDS}
        with RestClient(rest) as one, RpcClient(rpc) as other:
            streams = [one.generate_stream("a", **wanted), other.generate_stream("a", **wanted)]
            for stream in streams:
                next(stream)
            process.send_signal(number)
            usages = [list(stream)[-1].usage for stream in streams]
        assert [u.completion_tokens for u in usages if u] == [600, 600]
        assert process.wait(timeout=20) == 0


def test_a_second_ctrl_c_ends_it_at_once(long_bundle: Path) -> None:
    flags = (*FREE, "--engine", "onnxruntime", "--max-length", "4096")
    with server(long_bundle, *flags) as process:
        _, rest, _ = addresses(process)
        with RestClient(rest) as client:
            stream = client.generate_stream("a", max_completion_tokens=4000, logit_bias=NEVER_ENDS)
            next(stream)
            process.send_signal(signal.SIGINT)
            assert process.stdout is not None
            assert "Ctrl-C ends them at once" in process.stdout.readline()
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=5) == -signal.SIGINT
            with pytest.raises(EngineFailed, match="broke off"):
                list(stream)


@pytest.mark.skipif(sys.version_info >= (3, 11), reason="FastDeploy has wheels for Python 3.10")
def test_an_engine_that_is_killed_fails_what_it_held_and_serves_the_next(long_bundle: Path) -> None:
    wanted = {"max_completion_tokens": 4000, "logit_bias": NEVER_ENDS}
    with server(long_bundle, *FREE, "--max-length", "4096", "--slots", "2") as process:
        _, rest, rpc = addresses(process)
        with RestClient(rest) as one, RpcClient(rpc) as other:
            expected = one.chat(HELLO, temperature=0, max_completion_tokens=20).choices
            streams = [one.generate_stream("a", **wanted), other.generate_stream("a", **wanted)]
            for stream in streams:
                next(stream)
            (worker,) = psutil.Process(process.pid).children()
            worker.kill()
            for stream in streams:
                with pytest.raises(EngineFailed, match="ended with exit code -9"):
                    list(stream)
            assert other.chat(HELLO, temperature=0, max_completion_tokens=20).choices == expected
            assert one.ready() and other.ready()


def test_sigterm_has_a_deadline(long_bundle: Path) -> None:
    flags = (*FREE, "--engine", "onnxruntime", "--max-length", "4096", "--drain", "0.2")
    with server(long_bundle, *flags) as process:
        _, rest, _ = addresses(process)
        with RestClient(rest) as client:
            wanted = {"n": 4, "max_completion_tokens": 4000, "logit_bias": NEVER_ENDS}
            stream = client.generate_stream("a", **wanted)
            next(stream)
            process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            with pytest.raises(Exception, match=r"stopp|clos|shut"):
                list(stream)
            assert process.wait(timeout=20) == 0
            assert time.monotonic() - began < 5


def test_ports_are_free_again_at_once(tiny_bundle: Path) -> None:
    ports = FREE
    for _ in range(2):
        with server(tiny_bundle, *ports, "--engine", "onnxruntime") as process:
            _, rest, rpc = addresses(process)
            ports = ("--rest-port", rest.rsplit(":")[-1], "--grpc-port", rpc.rsplit(":")[-1])
            with RestClient(rest) as one, RpcClient(rpc) as other:
                assert one.models() == other.models()
                process.send_signal(signal.SIGTERM)
                assert process.wait(timeout=20) == 0


@pytest.mark.parametrize("door", ["REST", "gRPC"])
def test_a_taken_port_ends_it_at_once(tiny_bundle: Path, door: str) -> None:
    with listen("127.0.0.1", 0) as held:
        port = str(held.getsockname()[1])
        flag = {"REST": "--rest-port", "gRPC": "--grpc-port"}[door]
        with server(tiny_bundle, *FREE, flag, port) as process:
            out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert out == ""
    assert f"{door} cannot listen on 127.0.0.1 port {port}" in err
    assert flag in err
    assert "already in use\n" in err
    assert err.startswith("error: "), "nothing of gRPC's own"
    assert "Traceback" not in err


def test_a_second_server_does_not_start_on_the_same_port(tiny_bundle: Path) -> None:
    with server(tiny_bundle, *FREE, "--engine", "onnxruntime") as first:
        _, _, rpc = addresses(first)
        port = rpc.rsplit(":", 1)[1]
        with server(tiny_bundle, *FREE, "--grpc-port", port) as second:
            _, err = second.communicate(timeout=60)
        assert second.returncode == 2
        assert port in err


def test_a_taken_port_is_said_before_the_bundle_is_read(tmp_path: Path) -> None:
    with listen("127.0.0.1", 0) as held:
        port = held.getsockname()[1]
        with (
            pytest.raises(DeployError, match=f"gRPC cannot listen on 127.0.0.1 port {port}"),
            running(Options(tmp_path / "no bundle", rest_port=0, grpc_port=port)),
        ):
            pass


def test_a_name_stands_for_one_address(tiny_bundle: Path) -> None:
    """gRPC would take `localhost`'s other address where the port of the first is another's."""
    with listen("127.0.0.1", 0) as held:
        port = held.getsockname()[1]
        with (
            pytest.raises(DeployError, match=f"gRPC cannot listen on 127.0.0.1 port {port}"),
            running(Options(tiny_bundle, host="localhost", rest_port=0, grpc_port=port)),
        ):
            pass


def test_a_name_of_no_address() -> None:
    with pytest.raises(DeployError, match=r"--host 'nowhere\.invalid' is no address"):
        resolve("nowhere.invalid")
    with pytest.raises(DeployError, match="no address"):
        resolve("")  # to sockets, all interfaces
    assert resolve("localhost") == "127.0.0.1"
    assert resolve("0.0.0.0") == "0.0.0.0"
    assert resolve("::1") == "::1"


SAME = ("--rest-port", "7171", "--grpc-port", "7171")


@pytest.mark.parametrize(
    "wrong", [("--rest-port", "70000"), ("--slots", "0"), ("--name", " "), SAME]
)
def test_options_that_cannot_be(tiny_bundle: Path, wrong: tuple[str, ...]) -> None:
    with server(tiny_bundle, *FREE, *wrong) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert wrong[0] in err
    assert "Traceback" not in err


def test_an_address_of_another_machine() -> None:
    with pytest.raises(DeployError, match=r"192\.0\.2\.1"):
        listen("192.0.2.1", 0)


def test_a_changed_bundle_is_not_served(tiny_bundle: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    config = changed / "generation_config.json"
    config.chmod(0o644)
    config.write_text(config.read_text() + " ")
    with server(changed, *FREE) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert out == ""
    assert "generation_config.json" in err


def test_no_connection_is_taken_before_it_can_be_served(tiny_bundle: Path) -> None:
    """A client that comes while the model is loaded waits, and is answered."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    flags = ("--rest-port", str(port), "--grpc-port", "0", "--engine", "onnxruntime")
    with server(tiny_bundle, *flags) as process:
        ready = threading.Event()
        reader = threading.Thread(target=lambda: (addresses(process), ready.set()))
        reader.start()
        deadline = time.monotonic() + 30
        with RestClient(f"127.0.0.1:{port}") as client:
            while True:
                with contextlib.suppress(DeployError):
                    assert client.ready()
                    break
                assert time.monotonic() < deadline
                time.sleep(0.02)
        assert ready.wait(timeout=10)
        reader.join()


def test_only_this_machine_reaches_it_by_default(tiny_bundle: Path) -> None:
    with server(tiny_bundle, *FREE, "--engine", "onnxruntime") as process:
        _, rest, rpc = addresses(process)
        ports = {int(address.rsplit(":", 1)[1]) for address in (rest, rpc)}
        sockets = psutil.Process(process.pid).net_connections("inet")
        listening = [s.laddr for s in sockets if s.status == psutil.CONN_LISTEN]
    assert {where.port for where in listening} == ports
    assert {where.ip.removeprefix("::ffff:") for where in listening} == {"127.0.0.1"}
