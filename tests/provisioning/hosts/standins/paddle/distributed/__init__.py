import os
import pathlib
import time

SLOW = pathlib.Path("/var/lib/fakegpu/slow")

# A clock that only all_reduce moves: the figure is the board's, however busy the machine is.
clock = 0.0
time.perf_counter = lambda: clock


def init_parallel_env():
    pass


def get_rank():
    return int(os.environ["PADDLE_TRAINER_ID"])


def get_world_size():
    return int(os.environ["PADDLE_TRAINERS_NUM"])


def all_reduce(data):
    # 256 MiB over 8 cards: 2 ms is 235 GB/s of bus bandwidth, 40 ms is 12.
    global clock
    clock += 0.04 if SLOW.exists() else 0.002
