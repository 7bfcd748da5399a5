"""One process per card, as Paddle's launcher starts them."""

import os
import subprocess
import sys

args = sys.argv[1:]
devices, logs, program = args[1].split(","), args[3], args[4:]
os.makedirs(logs, exist_ok=True)
ranks = []
for rank, _ in enumerate(devices):
    env = {**os.environ, "PADDLE_TRAINER_ID": str(rank), "PADDLE_TRAINERS_NUM": str(len(devices))}
    with open(f"{logs}/workerlog.{rank}", "w") as log:
        ranks.append(subprocess.Popen([sys.executable, *program], env=env, stdout=log, stderr=log))
sys.exit(max(rank.wait() for rank in ranks))
