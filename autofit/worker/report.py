"""What one rank hands over, and the file it is handed over in: `rank<N>.json`."""

import os
import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from autofit.worker.files import read_json, write_json


@dataclass
class RankReport:
    """One rank's figures. The names up to `num_alloc_retries` are those of `autofit.config.result.RankResult`."""

    rank: int
    outcome: str = "CRASHED"
    phase: str | None = "start"
    error_type: str | None = None
    message: str | None = None
    requested_bytes: int | None = None
    allocated_bytes: int | None = None
    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    peak_device_bytes: int | None = None
    phase_peak_bytes: dict[str, int] = field(default_factory=dict)
    phase_allocated_bytes: dict[str, int] = field(default_factory=dict)
    step_peak_bytes: list[int] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    step_cpu_seconds: list[float] = field(default_factory=list)
    step_tokens: list[int] = field(default_factory=list)
    step_effective_tokens: list[int] = field(default_factory=list)
    step_batch_tokens: list[int] = field(default_factory=list)
    step_batch_patches: list[int] = field(default_factory=list)
    step_alloc_retries: list[int] = field(default_factory=list)
    baseline_bytes: int | None = None
    num_alloc_retries: int | None = None
    # What the job's result takes from its ranks:
    losses: list[float] = field(default_factory=list)
    """This rank's mean loss of each optimizer step; the job's is the mean over ranks."""
    resumed_loss: float | None = None
    resume_problem: str | None = None
    trainable_parameters: int | None = None
    total_parameters: int | None = None
    precision_mode: str | None = None
    memory_limit: str | None = None
    not_measured: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    # How causes are told from consequences:
    room_bytes: int | None = None
    """CUDA: what the budget would have granted the allocator beyond what it held at the end."""
    unclaimed_bytes: int | None = None
    """CUDA: memory of the device that is neither ours nor was taken before the run."""
    job: str | None = None
    """Which start of the job this belongs to; files of an earlier one are ignored."""
    finished_at: float | None = None
    died: str | None = None
    """`itself` or `ended`: the rank left no file of its own, and died by itself or was ended because another had failed."""


_ALL_FIELDS = [item.name for item in fields(RankReport)]
RANK_RESULT_FIELDS = tuple(_ALL_FIELDS[: _ALL_FIELDS.index("num_alloc_retries") + 1])
"""The fields that a rank's entry in result.json has."""


def job_id() -> str:
    """Names one start of the job: equal on all its ranks, another one after a restart on the same folder."""
    return ":".join(os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT"))


def report_path(folder: Path, rank: int) -> Path:
    """Where a rank's report lies."""
    return folder / f"rank{rank}.json"


def write_report(folder: Path, report: RankReport) -> None:
    """Hands the report over, whole or not at all."""
    report.job = job_id()
    report.finished_at = time.time()
    write_json(report_path(folder, report.rank), asdict(report))


def read_report(folder: Path, rank: int, job: str) -> RankReport | None:
    """The report of a rank of this start of the job; None when it has left none."""
    content = read_json(report_path(folder, rank))
    if content is None or content.get("job") != job:
        return None
    return RankReport(**content)
