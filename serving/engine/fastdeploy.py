"""FastDeploy 1.0.7's Runtime: ONNX Runtime, Paddle Inference or OpenVINO under one interface."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.errors import MachineError
from serving.engine.base import Logits

BACKENDS = ("onnxruntime", "paddle", "openvino")


def load() -> Any:
    """The fastdeploy package. Raises MachineError where it is missing or does not load."""
    try:
        fastdeploy = importlib.import_module("fastdeploy")
    except (ImportError, OSError) as error:
        raise MachineError(
            f"FastDeploy cannot be loaded here: {error}",
            hint="Its wheels are for Python 3.10 and older on x86-64: use such a Python, or set "
            "`serve.engine: onnxruntime`, which runs the same graph everywhere.",
        ) from error
    fastdeploy.set_logger(False, False)
    return fastdeploy


class FastDeploy:
    """Runs a step graph on the processor through one of FastDeploy's backends.

    Inputs are bound, not passed: `Runtime.infer(dict)` copies every cache at each call, which at
    8 slots of 1,024 tokens takes twice as long as the graph itself.
    """

    def __init__(
        self, *, backend: str, onnx: Path, paddle_model: Path, paddle_params: Path, threads: int
    ) -> None:
        self._fastdeploy = load()
        self.name = f"fastdeploy-{backend}"
        option = self._fastdeploy.RuntimeOption()
        option.use_cpu()
        option.set_cpu_thread_num(threads)
        if backend == "paddle":
            option.use_paddle_infer_backend()
            option.paddle_infer_option.enable_mkldnn = False
            paths = (paddle_model, paddle_params)
            option.set_model_path(*map(str, paths), self._fastdeploy.ModelFormat.PADDLE)
        else:
            use = {"onnxruntime": option.use_ort_backend, "openvino": option.use_openvino_backend}
            use[backend]()
            option.set_model_path(str(onnx), "", self._fastdeploy.ModelFormat.ONNX)
        self._runtime = self._fastdeploy.Runtime(option)
        outputs = range(self._runtime.num_outputs())
        self._outputs = [self._runtime.get_output_info(i).name for i in outputs]

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> tuple[Logits, NDArray[np.float32]]:
        """One call of the graph. Contiguous inputs are read in place."""
        for name, array in feeds.items():
            if not array.flags.c_contiguous:
                raise ValueError(f"input {name} is not contiguous")
            tensor = self._fastdeploy.C.FDTensor()
            tensor.from_numpy(array, True)
            self._runtime.bind_input_tensor(name, tensor)
        self._runtime.zero_copy_infer()
        logits, new = (self._runtime.get_output_tensor(name).numpy() for name in self._outputs)
        return logits, new

    def close(self) -> None:
        """Free the runtime."""
        del self._runtime
