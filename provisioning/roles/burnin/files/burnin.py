#!/usr/bin/env python3
"""burnin.py WANTS: whether a provisioned host is sound; JSON on stdout, like preflight's.

WANTS is base64 of a JSON object. Uses Python's own library alone.
"""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

QUERY = (
    "index,driver_version,persistence_mode,mig.mode.current,ecc.mode.current,"
    "ecc.errors.uncorrected.volatile.total,temperature.gpu,pcie.link.gen.current,"
    "pcie.link.width.current,pcie.link.width.max"
)


def main(argv):
    """Print the verdict."""
    wants = json.loads(base64.b64decode(argv[1]))
    findings = []
    figures = {"engine": wants["engine"]}
    if wants["cards"]:
        try_cards(findings, figures, wants)
    if not wants["cards"] or idle(findings):
        try_under_load(findings, figures, wants)
    ok = all(f["ok"] for f in findings if f["level"] == "stop")
    print(json.dumps({"ok": ok, "findings": findings, "figures": figures}))


def idle(findings):
    """Whether no program uses the cards; one that does is not to be disturbed."""
    _, words = run(["nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader"], 60)
    users = words.split()
    message = f"the cards are in use (process {', '.join(users[:4])}): tests under load left out"
    finding(findings, "idle", not users, message, level="warn")
    return not users


def try_under_load(findings, figures, wants):
    """What takes the host, or its cards, for itself."""
    try_paddle(findings, wants)
    if wants["fastdeploy2"]:
        try_fastdeploy2(findings, wants)
    if wants["cards"] and wants["dcgm_level"] and shutil.which("dcgmi"):
        level = ["dcgmi", "diag", "-r", str(wants["dcgm_level"])]
        code, words = run(level, 60 * wants["dcgm_minutes"])
        finding(findings, "dcgmi diag", code == 0, f"dcgmi diag fails: {words[-500:]}")
    if wants["cards"] and wants["busbw_gbps"]:
        try_all_reduce(findings, figures, wants)


def finding(findings, check, ok, message, level="stop"):
    """Add one; the message is for the case that it is not ok."""
    findings.append(
        {"check": check, "ok": bool(ok), "level": level, "message": "" if ok else message}
    )


def run(command, seconds, **environment):
    """Exit code and words of a command; 124 where it ran out of its time."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=seconds,
            env={**os.environ, **environment},
        )
    except FileNotFoundError:
        return 127, f"{command[0]}: not found"
    except subprocess.TimeoutExpired:
        return 124, f"no answer within {seconds} s"
    return done.returncode, (done.stdout + done.stderr).strip()


def try_cards(findings, figures, wants):
    """Driver, modes, memory errors, links, heat, switches."""
    code, words = run(["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"], 60)
    finding(findings, "nvidia-smi", code == 0, f"nvidia-smi fails: {words[-300:]}")
    if code:
        return
    cards = parse_cards(words)
    figures["cards"] = cards
    finding(
        findings,
        "cards",
        len(cards) == wants["cards"],
        f"the driver shows {len(cards)} of {wants['cards']} cards; dmesg | grep -i xid names the "
        "lost ones",
    )
    for card in cards:
        for check, ok, message in judge_card(card, wants):
            finding(
                findings, f"card {card['index']}: {check}", ok, f"card {card['index']}: {message}"
            )
    if wants["switches"]:
        try_fabric(findings)


def parse_cards(text):
    """One object per line of nvidia-smi's CSV; numbers as integers, `[N/A]` as null."""
    names = QUERY.split(",")
    cards = []
    for line in text.splitlines():
        values = [value.strip() for value in line.split(",")]
        if len(values) != len(names):
            continue
        card = {
            name: int(value) if value.isdigit() else None if value.startswith("[") else value
            for name, value in zip(names, values, strict=True)
        }
        cards.append(card)
    return cards


def judge_card(card, wants):
    """Each check of one card: name, whether it holds, what to say if not."""
    errors = card["ecc.errors.uncorrected.volatile.total"]
    width, most = card["pcie.link.width.current"], card["pcie.link.width.max"]
    heat = card["temperature.gpu"]
    return [
        (
            "driver",
            card["driver_version"] == wants["driver"],
            f"runs driver {card['driver_version']}, not {wants['driver']}",
        ),
        (
            "persistence",
            card["persistence_mode"] == "Enabled",
            "persistence mode is off: nvidia-smi -pm 1",
        ),
        (
            "MIG",
            card["mig.mode.current"] != "Enabled",
            "MIG is still on: reset the card (nvidia-smi -r)",
        ),
        ("ECC", card["ecc.mode.current"] != "Disabled", "ECC is off until the next reboot"),
        (
            "memory errors",
            not errors,
            f"{errors} uncorrected memory errors since boot: have it replaced",
        ),
        (
            "temperature",
            heat is None or heat <= wants["temperature"],
            f"{heat} degrees while idle: look at fans and air flow",
        ),
        (
            "link width",
            width == most,
            f"its PCIe link is {width} lanes wide, not {most}: reseat the card or its riser",
        ),
    ]


def try_fabric(findings):
    """NVSwitch: the fabric manager runs and the links between cards are up."""
    code, words = run(["systemctl", "is-active", "nvidia-fabricmanager"], 30)
    finding(
        findings,
        "fabric manager",
        code == 0,
        f"the fabric manager is {words}: journalctl -u nvidia-fabricmanager",
    )
    code, words = run(["nvidia-smi", "nvlink", "--status"], 60)
    down = len(re.findall(r"inactive", words, re.I))
    finding(
        findings,
        "NVLink",
        code == 0 and not down and "GB/s" in words,
        f"{down or 'no'} NVLinks are {'down' if down else 'shown'}: nvidia-smi nvlink --status",
    )


def try_paddle(findings, wants):
    """Paddle's own check, on all cards or on the processor."""
    code, words = run(
        [wants["python"], "-c", "import paddle; paddle.utils.run_check()"],
        wants["paddle_seconds"],
        **settings(wants),
    )
    ok = code == 0 and "successfully" in words
    finding(findings, "paddle run_check", ok, f"paddle.utils.run_check() fails: {words[-400:]}")
    code, words = run([wants["python"], "-c", f"import {wants['engine']}"], 120, **settings(wants))
    finding(findings, wants["engine"], code == 0, f"the engine does not load: {words[-300:]}")


def try_fastdeploy2(findings, wants):
    """FastDeploy 2 and the Paddle beside it, which bring their own CUDA.

    Only a warning: training and serving with the other engines do without.
    """
    program = "import fastdeploy, paddle; paddle.utils.run_check()"
    seconds = wants["paddle_seconds"]
    code, words = run([wants["fastdeploy2"], "-c", program], seconds, HOME="/root")
    ok = code == 0 and "successfully" in words
    finding(
        findings, "FastDeploy 2", ok, f"FastDeploy 2 does not load: {words[-300:]}", level="warn"
    )


def try_all_reduce(findings, figures, wants):
    """NCCL's bus bandwidth over all cards against what the board should give."""
    with tempfile.TemporaryDirectory() as logs:
        devices = ",".join(map(str, range(wants["cards"])))
        launch = ["-m", "paddle.distributed.launch", "--devices", devices, "--log_dir", logs]
        program = ["/opt/appliance/all_reduce.py", str(wants["all_reduce_mib"])]
        command = [wants["python"], *launch, *program]
        _, words = run(command, wants["paddle_seconds"], **settings(wants))
        words += "".join(
            path.read_text(errors="replace") for path in Path(logs).glob("workerlog.0")
        )
    match = re.search(r"busbw_gbps ([\d.]+)", words)
    figures["busbw_gbps"] = float(match.group(1)) if match else None
    measured = figures["busbw_gbps"]
    finding(
        findings,
        "all_reduce",
        measured is not None and measured >= wants["busbw_gbps"],
        f"all_reduce reaches {measured} GB/s, the board should give {wants['busbw_gbps']}: look at "
        "ACS, the fabric manager and link widths. " + ("" if measured else words[-300:]),
    )


def settings(wants):
    """Environment of a program that uses Paddle."""
    values = {"MKL_DEBUG_CPU_TYPE": "5", "HF_HUB_OFFLINE": "1", "HOME": "/root"}
    return {**values, "LD_LIBRARY_PATH": wants["libraries"]} if wants["cards"] else values


if __name__ == "__main__":
    main(sys.argv)
