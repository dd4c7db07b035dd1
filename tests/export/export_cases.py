"""Records of studies and trials for the export's tests; nothing here needs torch."""

import dataclasses
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autofit.config.hardware import Device, Hardware
from autofit.config.model import ModelRef, resolve_model
from autofit.config.record import StudyRecord, TrialRecord
from autofit.config.result import TrialResult
from autofit.config.space import DatasetRef, SearchSpace
from autofit.config.trial import TrialSpec
from autofit.units import GIB

MOMENT = datetime(2026, 11, 20, 12, 30, tzinfo=UTC)


@dataclasses.dataclass(frozen=True)
class Case:
    study: StudyRecord
    trial: TrialRecord
    reference: TrialRecord


def completed(samples_per_second: float = 4.0) -> TrialResult:
    return TrialResult(
        outcome="COMPLETED",
        phase="backward",
        peak_device_bytes=60 * GIB,
        step_time_seconds=16 / samples_per_second,
        samples_per_second=samples_per_second,
        tokens_per_second=samples_per_second * 1024,
        timed_steps=5,
        memory_limit="allocator cap (emulated)",
        versions={"torch": "2.13.0", "transformers": "5.23.0"},
    )


def make_case(
    model: str | ModelRef = "qwen2.5-vl-7b",
    *,
    device: str = "cuda",
    dataset: DatasetRef | None = None,
    result: TrialResult | None = None,
    study_name: str = "s1",
    **fields: Any,
) -> Case:
    """A study of one model with a reference trial 0 and the trial 7 that the keywords describe."""
    ref = ModelRef(preset=model) if isinstance(model, str) else model
    spec = TrialSpec(model=ref, **fields)
    space = SearchSpace(
        name="space", model=ref, dataset=dataset, knobs={"micro_batch_size": [1, 2, 4]}, reference={"micro_batch_size": 1}
    )
    study = StudyRecord(
        name=study_name,
        created_at=MOMENT,
        status="FINISHED",
        space=space,
        model=resolve_model(ref),
        hardware=Hardware(
            device=device,
            devices=tuple(Device(index=i, uuid=f"u{i}", name="Card X", memory_bytes=80 * GIB) for i in range(spec.num_gpus)),
            cpu_count=8,
            host_memory_bytes=256 * GIB,
        ),
        python="python",
        sampler="tpe",
        seed=0,
        gpu_mem_bytes=80 * GIB,
        memory_budget_bytes=75 * GIB,
        winner_trial_number=7,
        autofit_version="0.1.0",
    )
    reference_spec = spec.model_copy(update={"micro_batch_size": 1})
    reference = _trial(0, reference_spec, completed(2.0))
    return Case(study, _trial(7, spec, result or completed()), reference)


def _trial(number: int, spec: TrialSpec, result: TrialResult) -> TrialRecord:
    return TrialRecord(
        study="s1",
        trial_number=number,
        spec=spec,
        reason="test",
        run_dir="runs",
        started_at=MOMENT,
        finished_at=MOMENT,
        result=result,
    )


def weights_of(preset: str, folder: Path) -> ModelRef:
    """A folder that looks like the preset's weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(resolve_model(ModelRef(preset=preset)).config))
    (folder / "model.safetensors").touch()
    return ModelRef(path=str(folder))
