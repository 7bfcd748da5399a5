"""Whether Paddle computes here; `appliance doctor --deep` runs it in a process of its own."""

import warnings

warnings.filterwarnings("ignore")

import paddle  # noqa: E402
import paddlenlp  # noqa: E402, F401


def main() -> None:
    """Multiply two small matrices and say on which device."""
    product = paddle.ones([2, 3]) @ paddle.ones([3, 2])
    assert float(product[0, 0]) == 3.0
    print(f"computes on {paddle.device.get_device()}")


if __name__ == "__main__":
    main()
