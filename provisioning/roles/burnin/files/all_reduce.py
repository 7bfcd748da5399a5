"""all_reduce.py MEBIBYTES: bus bandwidth of NCCL's all_reduce over all cards, in GB/s.

Run by `python -m paddle.distributed.launch`. Bus bandwidth = bytes / seconds * 2 (n - 1) / n, as in
NVIDIA's nccl-tests (PERFORMANCE.md).
"""

import sys
import time

import paddle
import paddle.distributed as dist


def main(mebibytes, rounds=20):
    """Measure, and print one line from the first rank."""
    dist.init_parallel_env()
    data = paddle.ones([mebibytes * 2**18], dtype="float32")
    for _ in range(5):
        dist.all_reduce(data)
    paddle.device.synchronize()
    begun = time.perf_counter()
    for _ in range(rounds):
        dist.all_reduce(data)
    paddle.device.synchronize()
    seconds = (time.perf_counter() - begun) / rounds
    ranks = dist.get_world_size()
    if dist.get_rank() == 0:
        bandwidth = mebibytes * 2**20 / seconds * 2 * (ranks - 1) / ranks / 1e9
        print(f"busbw_gbps {bandwidth:.2f}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
