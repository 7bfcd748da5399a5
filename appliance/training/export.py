"""Stage `export`: the merged model's step graph, for Paddle Inference and as ONNX."""

from __future__ import annotations

import os
import time

from appliance.jobs.artifacts import Stage
from appliance.training.program import run_stage


def work(stage: Stage) -> None:
    """Export `merge`'s model; publishes graph/, graph.json and the parity that was measured."""
    # The legacy program form is the one that FastDeploy 1.0.7 reads; set before paddle's import.
    os.environ.update(FLAGS_enable_pir_api="0")
    os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")  # AMD: Paddle's MKL is 3x slower without
    from appliance.bundle.export import export_graph

    started = time.monotonic()
    facts = export_graph(
        stage.inputs["merge"] / "model",
        stage.output,
        max_length=stage.spec["export"]["max_length"],
        progress=lambda done, total: stage.events.progress(done, total, "phases"),
    )
    for name, difference in facts["parity"].items():
        stage.events.note(f"{name} graph: logits differ from the model's by {difference:.1g}")
    stage.publish(
        {"seconds": round(time.monotonic() - started, 1), "parity": facts["parity"]},
    )


if __name__ == "__main__":
    run_stage(work)
