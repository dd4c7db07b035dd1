"""Trials of tiny models under either engine, started as the driver starts them."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autofit.config.hardware import Device, Hardware
from autofit.config.model import ModelRef, resolve_model
from autofit.config.result import TrialResult
from autofit.config.space import DatasetRef
from autofit.config.trial import Images, Measure, RunSpec, TrialSpec
from autofit.export.llamafactory_arguments import arguments
from autofit.launch.local import Limits, LocalExecutor

ROOT = Path(__file__).parents[2]
LLAMAFACTORY = Path(os.environ.get("AUTOFIT_LLAMAFACTORY_PYTHON") or ROOT / ".venv-llamafactory" / "bin" / "python")
PYTHON = {"transformers": Path(sys.executable), "llamafactory": LLAMAFACTORY}
MAX_PIXELS = 50_176
Run = Callable[..., TrialResult]


def hardware(ranks: int) -> Hardware:
    device = Device(index=0, uuid="cpu", name="test cpu", memory_bytes=16 * 1024**3)
    return Hardware(device="cpu", devices=(device,) * ranks, cpu_count=2, host_memory_bytes=16 * 1024**3)


def run_spec(
    engine: str,
    tiny: Path,
    *,
    model: str = "tiny-llama",
    data: Path | None = None,
    measure: dict[str, Any] | None = None,
    budget: int | None = None,
    worst_batch: tuple[int, ...] | None = None,
    **knobs: Any,
) -> RunSpec:
    """An order; `knobs` are fields of TrialSpec. `data` replaces the folder of the tiny data."""
    ref = ModelRef(path=str(tiny / model))
    resolved = resolve_model(ref)
    images = Images(per_sample=1 if resolved.is_vision_language else 0, max_pixels=MAX_PIXELS)
    spec = TrialSpec(model=ref, images=images, **{"precision": "fp32", "attention": "sdpa", "cutoff_len": 128, **knobs})
    name, template = ("tiny_vl", None) if resolved.is_vision_language else ("tiny_text", "qwen")
    dataset = DatasetRef(name=name, dir=str(data or tiny / "data"), template=template)
    return RunSpec(
        trial=spec,
        model=resolved,
        engine=engine,
        arguments=arguments(spec, resolved, dataset, "cpu") if engine == "llamafactory" else None,
        worst_batch=worst_batch,
        device="cpu",
        measure=Measure(**{"warmup_steps": 1, "steps": 2, **(measure or {})}),
        memory_budget_bytes=budget,
    )


def execute(spec: RunSpec, run_dir: Path, limits: Limits | None = None) -> TrialResult:
    """Runs an order to its end."""
    executor = LocalExecutor(str(PYTHON[spec.engine]), hardware(spec.trial.num_gpus), limits or Limits(hang=300.0))
    return executor.run(run_dir, spec, lambda beat: None)
