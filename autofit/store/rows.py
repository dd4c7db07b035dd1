"""Records to rows and back: the one place where columns are derived.

The JSON columns (`studies.record`; `spec`, `prediction` and `result` of `trial_documents`) are the truth from which records
are rebuilt; every other column repeats a part of them so that SQL can ask for it.
"""

import json
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from autofit.config.objective import Objective, rate_of
from autofit.config.prediction import Prediction
from autofit.config.quality import breaches
from autofit.config.record import StudyRecord, TrialRecord
from autofit.config.result import TrialResult
from autofit.config.space import reference_spec
from autofit.config.trial import TrialSpec
from autofit.errors import AutofitError, StoreError
from autofit.store.tables import MEASURED_OUTCOMES

Row = dict[str, Any]


def study_row(record: StudyRecord) -> Row:
    """The columns of a study."""
    return {
        "name": record.name,
        "created_at": to_text(record.created_at),
        "status": record.status,
        "model": record.model.label,
        "engine": record.engine,
        "python": record.python,
        "executor": record.executor,
        "sampler": record.sampler,
        "seed": record.seed,
        "objective": record.space.objective,
        "device": record.hardware.device,
        "gpu_mem_bytes": record.gpu_mem_bytes,
        "memory_budget_bytes": record.memory_budget_bytes,
        "winner_trial_number": record.winner_trial_number,
        "autofit_version": record.autofit_version,
        "hardware": to_json(record.hardware),
        "record": to_json(record),
    }


def study_record(row: Mapping[str, Any]) -> StudyRecord:
    """The record of a row of `studies`; status and winner are those of the columns, which change."""
    stored = json.loads(row["record"])
    changed = {"status": row["status"], "winner_trial_number": row["winner_trial_number"]}
    return _rebuilt(StudyRecord, {**stored, **changed}, f"study {row['name']}")


def asked_for(study: Mapping[str, Any]) -> Callable[[TrialSpec], int | None]:
    """Whether a spec trains what the user of a row of `studies` asked for, as a column; None: that cannot be worked out."""
    try:
        record = study_record(study)
        wanted = reference_spec(record.space, record.model, len(record.hardware.devices), record.floor)
    except AutofitError:  # another autofit's study
        return lambda spec: None
    return lambda spec: int(not breaches(spec, wanted, record.space.quality, record.floor))


def trial_row(record: TrialRecord, memory_budget_bytes: int, as_asked: int | None) -> Row:
    """The columns of a trial that has just started, all but `study_id`. `memory_budget_bytes` is the study's."""
    return {
        "trial_number": record.trial_number,
        "purpose": record.purpose,
        "as_asked": as_asked,
        "config_key": record.spec.config_key(),
        "state": "RUNNING",
        "attempt": record.attempt,
        **_knobs(record.spec),
        **(_predicted(record.prediction) if record.prediction else {}),
        "memory_budget_bytes": memory_budget_bytes,
        "reason": record.reason,
        "started_at": to_text(record.started_at),
        "run_dir": record.run_dir,
    }


def _knobs(spec: TrialSpec) -> Row:
    return {
        "model": spec.model.label,
        "method": spec.method,
        "lora_rank": spec.lora.rank if spec.method == "lora" else None,
        "lora_target": spec.lora.target if spec.method == "lora" else None,
        "precision": spec.precision,
        "pure_bf16": int(spec.pure_bf16),
        "optimizer": spec.optimizer,
        "micro_batch_size": spec.micro_batch_size,
        "gradient_accumulation_steps": spec.gradient_accumulation_steps,
        "global_batch_size": spec.global_batch_size,
        "cutoff_len": spec.cutoff_len,
        "zero_stage": spec.zero_stage,
        "offload_optimizer": int(spec.offload_optimizer),
        "offload_param": int(spec.offload_param),
        "num_gpus": spec.num_gpus,
        "gradient_checkpointing": int(spec.gradient_checkpointing),
        "freeze_vision_tower": int(spec.freeze_vision_tower),
        "freeze_multi_modal_projector": int(spec.freeze_multi_modal_projector),
        "freeze_language_model": int(spec.freeze_language_model),
        "attention": spec.attention,
        "fused_cross_entropy": int(spec.fused_cross_entropy),
        "images_per_sample": spec.images.per_sample,
        "image_max_pixels": spec.images.max_pixels if spec.images.per_sample else None,
    }


def _predicted(prediction: Prediction) -> Row:
    return {
        "predicted_peak_bytes": prediction.peak_device_bytes,
        "predicted_peak_high_bytes": prediction.peak_device_bytes_high,
        "predicted_allocated_bytes": prediction.peak_allocated_bytes,
        "predicted_reserved_bytes": prediction.peak_reserved_bytes,
        "predicted_step_time_seconds": prediction.step_time_seconds,
        "predicted_samples_per_second": prediction.samples_per_second,
    }


def result_row(
    result: TrialResult, *, started_at: str, finished_at: datetime, memory_budget_bytes: int, objective: Objective
) -> Row:
    """The columns that a result adds to a running trial's row.

    `objective_value` is what is maximised: an epoch's time and cost are told by the rate that they go down with.
    Speed columns are filled only for a run that reached its last step; what a failed run had timed stays in its JSON.
    `wall_seconds` is NULL when the clock was set back meanwhile.
    """
    measured = result.outcome in MEASURED_OUTCOMES
    wall = (finished_at - datetime.fromisoformat(started_at)).total_seconds()
    peak = result.peak_device_bytes
    return {
        "state": "FINISHED",
        "outcome": result.outcome,
        "phase": result.phase,
        "failed_rank": result.failed_rank,
        "peak_allocated_bytes": result.peak_allocated_bytes,
        "peak_reserved_bytes": result.peak_reserved_bytes,
        "peak_device_bytes": peak,
        "margin_bytes": None if peak is None else memory_budget_bytes - peak,
        "requested_bytes": result.requested_bytes,
        "allocated_bytes": result.allocated_bytes,
        "step_time_seconds": result.step_time_seconds if measured else None,
        "samples_per_second": result.samples_per_second if measured else None,
        "tokens_per_second": result.tokens_per_second if measured else None,
        "effective_tokens_per_second": result.effective_tokens_per_second if measured else None,
        "objective_value": getattr(result, rate_of(objective)) if measured else None,
        "timed_steps": result.timed_steps or None,
        "trainable_parameters": result.trainable_parameters,
        "total_parameters": result.total_parameters,
        "precision_mode": result.precision_mode,
        "memory_limit": result.memory_limit,
        "error_type": result.error_type,
        "message": result.message,
        "finished_at": to_text(finished_at),
        "wall_seconds": wall if wall >= 0 else None,
        "versions": json.dumps(result.versions),
        "hardware": json.dumps(_finite(result.hardware)),
        "timings": json.dumps(_finite(result.timings)),
    }


def trial_record(row: Mapping[str, Any], study: str) -> TrialRecord:
    """The record of a row of `trials` with its documents."""
    fields = {
        name: row[name] for name in ("trial_number", "purpose", "reason", "attempt", "run_dir", "started_at", "finished_at")
    }
    documents = {name: json.loads(row[name]) if row[name] else None for name in ("spec", "prediction", "result")}
    return _rebuilt(TrialRecord, {"study": study, **fields, **documents}, f"trial {row['trial_number']} of study {study}")


RecordT = TypeVar("RecordT", bound=BaseModel)


def _rebuilt(model: type[RecordT], fields: Row, what: str) -> RecordT:
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise StoreError(f"{what} was stored by another autofit and cannot be read: {where}: {fault['msg']}") from error


def to_text(moment: datetime) -> str:
    """`moment` as ISO 8601 in UTC, to the microsecond: sorts as text.

    Raises:
        StoreError: `moment` has no time zone, so that nobody could tell later when it was.
    """
    if moment.tzinfo is None:
        raise StoreError(f"the time {moment.isoformat()} has no time zone; use datetime.now(UTC)")
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def to_json(model: BaseModel) -> str:
    """`model` as JSON that every reader accepts: a loss that is not a number becomes the text "NaN", as pydantic reads it."""
    return json.dumps(_finite(model.model_dump(mode="json")), ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
