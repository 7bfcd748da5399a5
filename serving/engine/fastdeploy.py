"""FastDeploy 1.0.7's Runtime: ONNX Runtime, Paddle Inference or OpenVINO under one interface."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.bundle.read import Graph
from appliance.errors import MachineError
from serving.engine.base import Logits


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

    Inputs are passed as tensors that share numpy's memory. `infer` on arrays copies every cache at
    each call, which at 8 slots of 1,024 tokens takes twice as long as the graph itself; and
    `zero_copy_infer` keeps silent when a step fails, leaving the last step's outputs in place.
    """

    def __init__(self, graph: Graph, *, backend: str, threads: int) -> None:
        self._fastdeploy = load()
        self.name = f"fastdeploy-{backend}"
        option = self._fastdeploy.RuntimeOption()
        option.use_cpu()
        option.set_cpu_thread_num(threads)
        if backend == "paddle":
            option.use_paddle_infer_backend()
            option.paddle_infer_option.enable_mkldnn = False
            files = str(graph.paddle_model), str(graph.paddle_params)
            option.set_model_path(*files, self._fastdeploy.ModelFormat.PADDLE)
        else:
            use = {"onnxruntime": option.use_ort_backend, "openvino": option.use_openvino_backend}
            use[backend]()
            option.set_model_path(str(graph.onnx), "", self._fastdeploy.ModelFormat.ONNX)
        self._runtime = self._fastdeploy.Runtime(option)

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> tuple[Logits, NDArray[np.float32]]:
        """One call of the graph. Contiguous inputs are read in place."""
        tensors = {name: self._share(array) for name, array in feeds.items()}
        logits, new = (output.numpy() for output in self._runtime.infer(tensors))
        return logits, new

    def _share(self, array: NDArray[Any]) -> Any:
        if not array.flags.c_contiguous:
            raise ValueError(f"an input of shape {array.shape} is not contiguous")
        tensor = self._fastdeploy.C.FDTensor()
        tensor.from_numpy(array, True)
        return tensor

    def close(self) -> None:
        """Free the runtime."""
        del self._runtime
