"""Stage `merge`: what training left, as one complete model in Hugging Face layout, float32."""

from __future__ import annotations

import os

from appliance.jobs.artifacts import Stage
from appliance.training.program import run_stage


def work(stage: Stage) -> None:
    """lora: put the adapter into prepare's base. full, pretrain: take train's model as it is."""
    os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")  # AMD: Paddle's MKL is 3x slower without
    from appliance.bundle.importer import check_complete
    from appliance.bundle.merge import merge_adapter, write_float32
    from appliance.bundle.weights import weights_sha256

    target = stage.output / "model"

    def progress(done: int, total: int) -> None:
        stage.events.progress(done, total, "tensors")

    metrics: dict[str, object] = {}
    if stage.spec["method"] == "lora":
        base, adapter = stage.inputs["prepare"] / "base", stage.inputs["train"] / "adapter"
        metrics["merged_layers"] = merge_adapter(base, adapter, target, progress=progress)
    else:
        write_float32(stage.inputs["train"] / "model", target, progress=progress)
    check_complete(target)
    stage.publish({**metrics, "sha256": weights_sha256(target)})


if __name__ == "__main__":
    run_stage(work)
