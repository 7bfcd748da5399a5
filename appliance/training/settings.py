"""What Paddle reads from the environment when it is imported."""

from __future__ import annotations

import os

SETTINGS = {
    # Paddle's MKL picks a slow path on AMD processors (26 against 87 GFLOP/s a core), and one
    # thread by default.
    "MKL_DEBUG_CPU_TYPE": "5",
    "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
