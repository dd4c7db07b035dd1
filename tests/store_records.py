"""Records for tests of the store and of the commands that read it."""

from datetime import UTC, datetime, timedelta
from typing import Any

from autofit.config.hardware import Device, Hardware
from autofit.config.model import Model, ModelRef
from autofit.config.prediction import Prediction
from autofit.config.record import StudyRecord, TrialRecord
from autofit.config.result import RankResult, TrialResult
from autofit.config.space import SearchSpace
from autofit.config.trial import TrialSpec
from autofit.units import GIB

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def study_record(name: str = "first", **changes: Any) -> StudyRecord:
    """A study on one 80 GiB card with 72 GiB to use."""
    space = {
        "name": "small",
        "model": {"preset": "tiny-llama"},
        "knobs": {"micro_batch_size": [1, 2, 4, 8], "zero_stage": [0, 3]},
        "reference": {"micro_batch_size": 1, "zero_stage": 3},
        **changes.pop("space", {}),
    }
    fields: dict[str, Any] = {
        "name": name,
        "created_at": NOON,
        "space": SearchSpace.model_validate(space),
        "model": Model(label="tiny-llama", config={"model_type": "llama", "hidden_size": 64}),
        "hardware": Hardware(
            device="cuda",
            devices=(Device(index=0, uuid="GPU-1", name="card", memory_bytes=80 * GIB),),
            cpu_count=8,
            host_memory_bytes=256 * GIB,
        ),
        "python": "python3",
        "sampler": "tpe",
        "seed": 7,
        "gpu_mem_bytes": 80 * GIB,
        "memory_budget_bytes": 72 * GIB,
        "autofit_version": "0.1.0",
    }
    return StudyRecord(**{**fields, **changes})


def trial_record(number: int, study: str = "first", **changes: Any) -> TrialRecord:
    """A trial that has just started; each number is another configuration unless `spec` says so."""
    spec = changes.pop("spec", None) or TrialSpec(model=ModelRef(preset="tiny-llama"), micro_batch_size=number + 1)
    fields: dict[str, Any] = {
        "study": study,
        "trial_number": number,
        "spec": spec,
        "reason": "the reference" if number == 0 else "sampled",
        "run_dir": f"runs/{study}/{number}",
        "started_at": NOON + timedelta(minutes=number),
    }
    return TrialRecord(**{**fields, **changes})


def prediction(peak_gib: float = 48.0, high_gib: float = 51.0, **changes: Any) -> Prediction:
    """What was predicted of a trial before it ran."""
    fields: dict[str, Any] = {
        f"peak_{name}_bytes{suffix}": int((peak - less) * GIB)
        for name, less in (("allocated", 3), ("reserved", 1), ("device", 0))
        for suffix, peak in (("_low", 2 * peak_gib - high_gib), ("", peak_gib), ("_high", high_gib))
    }
    fields |= {
        "step_time_seconds": 5.0,
        "samples_per_second": 1.6,
        "tokens_per_second": 1.6 * 2048,
        "fits": True,
        "alloc_retries": 0,
        "terms": {"weights": 40 * GIB, "activations": int((peak_gib - 40) * GIB)},
        "phase": "backward",
        "precision_mode": "bf16 autocast, fp32 masters",
        "device_model": "a100-80gb",
        "assumptions": ["CUDA context 0.5 GiB"],
        "not_modelled": [],
        "versions": {"torch": "2.13.0"},
    }
    return Prediction(**{**fields, **changes})


def completed(samples_per_second: float = 2.0, peak_gib: float = 50.0, **changes: Any) -> TrialResult:
    """A run that reached its last step."""
    fields: dict[str, Any] = {
        "outcome": "COMPLETED",
        "phase": "backward",
        "peak_allocated_bytes": int((peak_gib - 3) * GIB),
        "peak_reserved_bytes": int((peak_gib - 1) * GIB),
        "peak_device_bytes": int(peak_gib * GIB),
        "step_time_seconds": 8 / samples_per_second,
        "samples_per_second": samples_per_second,
        "tokens_per_second": samples_per_second * 2048,
        "effective_tokens_per_second": samples_per_second * 2000,
        "timed_steps": 5,
        "losses": [2.5, 2.25],
        "trainable_parameters": 1000,
        "total_parameters": 2000,
        "precision_mode": "bf16 autocast, fp32 masters",
        "versions": {"torch": "2.13.0"},
        "hardware": {"gpu": "card"},
        "timings": {"load": 2.5},
        "ranks": [RankResult(rank=0, outcome="COMPLETED", step_seconds=[4.0, 4.0])],
    }
    return TrialResult(**{**fields, **changes})


def out_of_memory(**changes: Any) -> TrialResult:
    """A run that memory ended in its backward pass."""
    fields: dict[str, Any] = {
        "outcome": "OOM",
        "phase": "backward",
        "error_type": "OutOfMemoryError",
        "message": "CUDA out of memory. Tried to allocate 2.00 GiB",
        "failed_rank": 0,
        "requested_bytes": 2 * GIB,
        "allocated_bytes": 70 * GIB,
    }
    return TrialResult(**{**fields, **changes})
