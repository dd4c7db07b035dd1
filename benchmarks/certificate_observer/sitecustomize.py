"""Watches a real run of `llamafactory-cli train` with the trials' own ruler; the training itself is LLaMA-Factory's, untouched.

On PYTHONPATH of the run. When LLaMA-Factory's workflow is imported, its `load_model` is called with the memory baseline taken
before it (libraries and kernels loaded, as a trial has them), and its trainer gets a callback that reads clocks and peaks.
`$AUTOFIT_OBSERVED/rank<N>.json` holds a step's peak, wall and processor seconds, tokens are those of the batches it is given.
"""

import atexit
import importlib.abc
import importlib.machinery
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

WORKFLOW = "llamafactory.train.sft.workflow"


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the workflow as Python would, and has it watched once it is there."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != WORKFLOW:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def run_and_watch(module: ModuleType) -> None:
            execute(module)
            _watch(module)

        spec.loader.exec_module = run_and_watch  # type: ignore[method-assign]
        return spec


def _watch(workflow: Any) -> None:
    package = ModuleType("autofit")
    package.__path__ = [str(Path(__file__).resolve().parents[2] / "autofit")]
    sys.modules.setdefault("autofit", package)
    import torch
    from transformers import TrainerCallback

    from autofit.worker.meter import Meter
    from autofit.worker.meter_cpu import CpuBackend
    from autofit.worker.report import RankReport
    from autofit.worker.startup import load_libraries, start_helpers

    meter = Meter(CpuBackend())
    load, trainer_class = workflow.load_model, workflow.CustomSeq2SeqTrainer

    def load_model(*arguments: Any, **named: Any) -> Any:
        start_helpers(torch.device("cpu"), torch.float32)
        meter.start(None)
        return load(*arguments, **named)

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            meter.enter("step")
            meter.step_begins()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            meter.step_ends()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            meter.enter("save")

    class Watched(trainer_class):  # type: ignore[misc, valid-type]
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self.add_callback(Clock())

        def evaluate(self, *arguments: Any, **named: Any) -> Any:
            meter.enter("eval")
            return super().evaluate(*arguments, **named)

    Watched.__name__ = trainer_class.__name__
    load_libraries({"zero_stage": int(os.environ["AUTOFIT_ZERO_STAGE"]), "method": os.environ["AUTOFIT_METHOD"]})
    workflow.load_model, workflow.CustomSeq2SeqTrainer = load_model, Watched

    def write() -> None:
        report = RankReport(rank=int(os.environ.get("RANK", "0")))
        meter.finish(report)
        names = (
            "peak_device_bytes",
            "phase_peak_bytes",
            "step_peak_bytes",
            "step_seconds",
            "step_cpu_seconds",
            "baseline_bytes",
        )
        text = json.dumps({name: getattr(report, name) for name in names})
        (Path(os.environ["AUTOFIT_OBSERVED"]) / f"rank{report.rank}.json").write_text(text)

    atexit.register(write)


if "AUTOFIT_OBSERVED" in os.environ:
    sys.meta_path.insert(0, _Finder())
