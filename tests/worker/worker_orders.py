"""Spec files for tests of the worker, written as the driver writes them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from autofit.config.model import ModelRef, resolve_model
from autofit.config.result import TrialResult
from autofit.config.trial import Images, Measure, RunSpec, TrialSpec
from autofit.resources import worker_entry


def write_spec(
    folder: Path,
    *,
    preset: str = "tiny-qwen2.5-vl",
    budget: int | None = None,
    steps: int = 2,
    measure: dict[str, Any] | None = None,
    **knobs: Any,
) -> Path:
    """A CPU trial of a tiny preset in fp32; `knobs` are fields of TrialSpec, `measure` some of Measure."""
    ref = ModelRef(preset=preset)
    fields = {"precision": "fp32", "attention": "sdpa", "cutoff_len": 128, "num_gpus": 2, **knobs}
    trial = TrialSpec(model=ref, images=Images(per_sample=1, max_pixels=50176), **fields)
    wanted = Measure(warmup_steps=1, steps=steps, **(measure or {}))
    spec = RunSpec(trial=trial, model=resolve_model(ref), device="cpu", measure=wanted, memory_budget_bytes=budget)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "spec.json"
    path.write_text(spec.model_dump_json())
    return path


def run_worker(spec: Path, *, fault: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a trial to its end, as the launcher does but in the foreground."""
    env = {**os.environ, **({"AUTOFIT_FAULT": fault} if fault else {})}
    command = [sys.executable, str(worker_entry()), "run", str(spec)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=False)


def read_result(spec: Path) -> TrialResult:
    """The result beside a spec, through the model that the driver reads it with."""
    return TrialResult.model_validate_json((spec.parent / "result.json").read_text())
