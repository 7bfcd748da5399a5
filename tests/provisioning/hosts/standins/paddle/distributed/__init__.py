import os
import pathlib
import time

SLOW = pathlib.Path("/var/lib/fakegpu/slow")


def init_parallel_env():
    pass


def get_rank():
    return int(os.environ["PADDLE_TRAINER_ID"])


def get_world_size():
    return int(os.environ["PADDLE_TRAINERS_NUM"])


def all_reduce(data):
    # 256 MiB over 8 cards: 0.5 ms is 940 GB/s of bus bandwidth, 40 ms is 12.
    time.sleep(0.04 if SLOW.exists() else 0.0005)
