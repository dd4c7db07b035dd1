"""Rank reports -> `result.json`: the worst of all ranks for memory, the slowest of each step for speed."""

import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from autofit.worker.files import write_json
from autofit.worker.order import Order
from autofit.worker.outcomes import is_consequence
from autofit.worker.report import RANK_RESULT_FIELDS, RankReport

SEVERITY = ("OOM", "HOST_OOM", "DATA_ERROR", "CRASHED", "COMPLETED")
"""The first of these that any rank has is the job's outcome: one rank's OOM is the job's, the others only lose their peer."""


def result_path(folder: Path) -> Path:
    """Where the job's result lies."""
    return folder / "result.json"


def write_result(order: Order, reports: list[RankReport]) -> str:
    """Merges and writes; returns the job's outcome.

    Raises:
        OSError: the result cannot be written (a full disk).
    """
    result = merge(order, reports)
    write_json(result_path(order.folder), result)
    return str(result["outcome"])


def merge(order: Order, reports: list[RankReport]) -> dict[str, Any]:
    """The fields of `autofit.config.result.TrialResult`. `reports` holds one or more ranks' reports, in any order."""
    reports = sorted(reports, key=lambda report: report.rank)
    culprit = min(reports, key=_blame)
    completed = culprit.outcome == "COMPLETED"
    first = reports[0]
    return {
        "schema_version": 1,
        "outcome": culprit.outcome,
        "phase": _phase_of_peak(reports) if completed else culprit.phase,
        "error_type": culprit.error_type,
        "message": culprit.message,
        "failed_rank": None if completed else culprit.rank,
        "requested_bytes": culprit.requested_bytes,
        "allocated_bytes": culprit.allocated_bytes,
        "peak_allocated_bytes": _highest(reports, lambda report: report.peak_allocated_bytes),
        "peak_reserved_bytes": _highest(reports, lambda report: report.peak_reserved_bytes),
        "peak_device_bytes": _highest(reports, lambda report: report.peak_device_bytes),
        **_speed(order, reports, completed=completed),
        "losses": _mean_losses(reports),
        "resumed_loss": _mean([report.resumed_loss for report in reports]),
        "resume_problem": next((report.resume_problem for report in reports if report.resume_problem), None),
        "trainable_parameters": first.trainable_parameters,
        "total_parameters": first.total_parameters,
        "precision_mode": first.precision_mode,
        "memory_limit": first.memory_limit,
        "not_measured": list(dict.fromkeys(text for report in reports for text in report.not_measured)),
        "versions": first.versions,
        "hardware": first.hardware,
        "timings": _slowest(reports),
        "ranks": [{name: getattr(report, name) for name in RANK_RESULT_FIELDS} for report in reports],
    }


def with_resumed(reports: list[RankReport], resumed: list[RankReport]) -> list[RankReport]:
    """The reports of a run, and of the processes that resumed from its checkpoint, as those of one run.

    Memory is the higher of the two; a failure is the resumed one's. Speed stays that of the run.
    """
    merged = []
    for first, second in zip(reports, resumed, strict=True):
        phases = {
            phase: max(first.phase_peak_bytes.get(phase, 0), second.phase_peak_bytes.get(phase, 0))
            for phase in {**first.phase_peak_bytes, **second.phase_peak_bytes}
        }
        changes: dict[str, Any] = {name: getattr(second, name) for name in _OF_THE_LAST}
        if second.message is not None:
            changes["message"] = f"after resuming from the checkpoint: {second.message}"
        for name in ("peak_allocated_bytes", "peak_reserved_bytes", "peak_device_bytes"):
            changes[name] = max(getattr(first, name) or 0, getattr(second, name) or 0) or None
        changes["timings"] = {**first.timings, "resume": second.timings.get("total", 0.0)}
        changes["resumed_loss"] = second.losses[0] if second.losses else None
        merged.append(replace(first, phase_peak_bytes=phases, **changes))
    return merged


_OF_THE_LAST = (
    "outcome",
    "phase",
    "error_type",
    "requested_bytes",
    "allocated_bytes",
    "resume_problem",
    "finished_at",
    "died",
)


def _blame(report: RankReport) -> tuple[int, bool, bool, float]:
    """Orders ranks by how much they explain the job's end: severity, then causes before consequences, then who ended first."""
    ended_by_us = report.died == "ended"
    return SEVERITY.index(report.outcome), ended_by_us, is_consequence(report.message), report.finished_at or float("inf")


def _highest(reports: list[RankReport], figure: Callable[[RankReport], int | None]) -> int | None:
    return max((value for report in reports if (value := figure(report)) is not None), default=None)


def _phase_of_peak(reports: list[RankReport]) -> str | None:
    peaks = [(size, phase) for report in reports for phase, size in report.phase_peak_bytes.items()]
    return max(peaks)[1] if peaks else None


def _speed(order: Order, reports: list[RankReport], *, completed: bool) -> dict[str, float | int | None]:
    """The timed steps, each as long as its slowest rank took, and what follows from them. All None unless all completed.

    Of equally large steps the median counts, which an interruption from outside does not move; of real batches the mean, for
    the long ones are as much a part of the training as the short ones.
    """
    names = ("step_time_seconds", "samples_per_second", "tokens_per_second", "effective_tokens_per_second", "timed_steps")
    timed = _timed(order, [report.step_seconds for report in reports], max)
    if not completed or not timed:
        return dict.fromkeys(names)
    tokens = _timed(order, [report.step_tokens for report in reports], sum)
    effective = _timed(order, [report.step_effective_tokens for report in reports], sum)
    seconds = statistics.median(timed) if len(set(tokens)) <= 1 else statistics.fmean(timed)
    return {
        "step_time_seconds": seconds,
        "samples_per_second": order.global_batch_size / seconds,
        "tokens_per_second": statistics.fmean(tokens) / seconds if tokens else None,
        "effective_tokens_per_second": statistics.fmean(effective) / seconds if effective else None,
        "timed_steps": len(timed),
    }


def _timed(order: Order, ranks: list[list[Any]], over_ranks: Callable[[Any], Any]) -> list[Any]:
    """A figure of each timed step, from those of all ranks."""
    steps = [over_ranks(values) for values in zip(*ranks, strict=False)]
    return steps[order.warmup_steps : order.warmup_steps + order.steps]


def _mean_losses(reports: list[RankReport]) -> list[float]:
    """Over the ranks, for the steps that all of them finished."""
    return [statistics.fmean(losses) for losses in zip(*(report.losses for report in reports), strict=False)]


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _slowest(reports: list[RankReport]) -> dict[str, float]:
    timings: dict[str, float] = {}
    for report in reports:
        for part, seconds in report.timings.items():
            timings[part] = max(seconds, timings.get(part, 0.0))
    return timings
