"""onnxruntime itself, the current release: for every Python and processor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from serving.engine.base import Logits


class OnnxRuntime:
    """Runs a step graph's ONNX file on the processor."""

    name = "onnxruntime"

    def __init__(self, model: Path, *, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            str(model), options, providers=["CPUExecutionProvider"]
        )

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> tuple[Logits, NDArray[np.float32]]:
        """One call of the graph. Contiguous inputs are read in place."""
        logits, new = self._session.run(None, dict(feeds))
        return logits, new

    def close(self) -> None:
        """Free the session."""
        del self._session
