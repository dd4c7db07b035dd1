"""Where a part runs: device, training environment, folders, time that is left; and how it runs one trial there."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from autofit.config.hardware import Device, Hardware
from autofit.config.model import resolve_model
from autofit.config.result import TrialResult
from autofit.config.trial import Measure, RunSpec, StepShape, TrialSpec
from autofit.launch import gpus
from autofit.launch.environment import TrainingEnvironment
from autofit.launch.local import Heartbeat, Limits, LocalExecutor
from autofit.launch.processes import group_members
from benchmarks.gpu.forecast import Forecaster
from benchmarks.gpu.records import Ledger, Stamp
from benchmarks.gpu.workload import Workload

ROOT = Path(__file__).resolve().parents[2]
_FREE_SLACK = 256 * 2**20
_FREE_SECONDS = 30.0
_HEADROOM = 0.02
"""Of a card, as `autofit search` leaves it."""
FAULT = "AUTOFIT_FAULT"


class OutOfTimeError(Exception):
    """The part's time is over; what it has not recorded it does when it is called again."""


@dataclass(frozen=True)
class Ran:
    """One trial, and what it left of the device."""

    result: TrialResult
    seconds: float
    """From its start to its verdict."""
    used_before: int | None
    """Bytes of the GPU in use by anyone; None on a CPU."""
    used_after: int | None
    seconds_until_free: float | None
    """Until the GPU held no more than before; None: it did not within half a minute, or there is none."""
    processes_left: int
    """Of the trial's group."""


@dataclass
class Place:
    """One call of one part."""

    kind: Literal["cuda", "cpu"]
    hardware: Hardware
    environment: TrainingEnvironment
    load: Workload
    records: Path
    work: Path
    commit: str
    seed: int
    limit_seconds: float
    _started: float = field(default_factory=time.monotonic, init=False)
    _longest: float = field(default=0.0, init=False)

    @property
    def device(self) -> Device:
        """The one that is measured."""
        return self.hardware.devices[0]

    @property
    def left(self) -> float:
        """Seconds of the part's time."""
        return self.limit_seconds - (time.monotonic() - self._started)

    def begin(self) -> None:
        """A part's time starts."""
        self._started, self._longest = time.monotonic(), 0.0

    def ledger(self, part: str) -> Ledger:
        """The part's records."""
        stamp = Stamp(
            device=self.kind,
            device_name=self.device.name,
            memory_bytes=self.device.memory_bytes,
            driver=self.hardware.driver_version,
            versions=self.environment.versions,
            commit=self.commit,
        )
        return Ledger(self.records / f"{part}.jsonl", part, stamp)

    def forecaster(self) -> Forecaster:
        """Predictions for this device in this training environment."""
        return Forecaster(self.kind, self.device, self.environment, self.work / "traces")

    def budget(self, card_bytes: int) -> int:
        """What a rank may use of a card, its headroom left."""
        return int(min(card_bytes, self.device.memory_bytes) * (1 - _HEADROOM))

    def need(self, seconds: float = 0.0) -> None:
        """Raises OutOfTimeError when the next trial (as long as the longest so far, or `seconds`) would not end in time."""
        if self.left < max(1.2 * self._longest, seconds):
            raise OutOfTimeError

    def run(
        self,
        name: str,
        trial: TrialSpec,
        *,
        measure: Measure | None = None,
        budget: int | None = None,
        shapes: tuple[StepShape, ...] | None = None,
        fault: str | None = None,
        on_tick: Callable[[Heartbeat | None, Path], None] = lambda beat, folder: None,
        executor: LocalExecutor | None = None,
    ) -> Ran:
        """Runs one trial as a search would, in a fresh process.

        Raises:
            OutOfTimeError: the part's time ended first; the trial was ended with it.
            LaunchError: it could not be started.
        """
        self.need()
        executor = executor or self.executor()
        folder = self.work / "runs" / name
        spec = RunSpec(
            trial=trial,
            model=resolve_model(trial.model),
            shapes=shapes,
            device=self.kind,
            measure=measure or Measure(warmup_steps=2 if self.kind == "cuda" else 1, steps=self.load.timed_steps),
            memory_budget_bytes=budget,
            seed=self.seed,
        )
        before, started = self.used(), time.monotonic()
        with _planted(fault):
            result = executor.run(folder, spec, lambda beat: self._tick(beat, folder, on_tick))
        seconds = time.monotonic() - started
        self._longest = max(self._longest, seconds)
        after, freed = self._until_free(before)
        return Ran(result, seconds, before, after, freed, _left_of(folder))

    def executor(self) -> LocalExecutor:
        """One that takes what the device holds now for what it holds when idle."""
        return LocalExecutor(self.environment.python, self.hardware, Limits(trial=3600.0, memory_back=_FREE_SECONDS))

    def used(self) -> int | None:
        """Bytes of the GPU in use by anyone; None on a CPU."""
        return gpus.used_bytes(self.device) if self.kind == "cuda" else None

    def _tick(self, beat: Heartbeat | None, folder: Path, on_tick: Callable[[Heartbeat | None, Path], None]) -> None:
        if self.left <= 0:
            raise OutOfTimeError  # the executor ends the trial's processes on the way out
        on_tick(beat, folder)

    def _until_free(self, before: int | None) -> tuple[int | None, float | None]:
        if before is None:
            return None, None
        started = time.monotonic()
        while (used := self.used() or 0) > before + _FREE_SLACK:
            if time.monotonic() - started > _FREE_SECONDS:
                return used, None
            time.sleep(0.05)
        return used, time.monotonic() - started


def measured(ran: Ran) -> dict[str, Any]:
    """The figures of a trial that records keep."""
    result = ran.result
    rank = result.ranks[0] if result.ranks else None
    return {
        "outcome": result.outcome,
        "phase": result.phase,
        "error_type": result.error_type,
        "message": result.message,
        "allocated": result.peak_allocated_bytes,
        "reserved": result.peak_reserved_bytes,
        "device": result.peak_device_bytes,
        "outside": result.hardware.get("non_torch_bytes"),
        "step_seconds": result.step_time_seconds,
        "samples_per_second": result.samples_per_second,
        "phase_device": rank.phase_peak_bytes if rank else {},
        "phase_allocated": rank.phase_allocated_bytes if rank else {},
        "retries": rank.num_alloc_retries if rank else None,
        "precision_mode": result.precision_mode,
        "memory_limit": result.memory_limit,
        "not_measured": result.not_measured,
        "timings": result.timings,
        "seconds": ran.seconds,
    }


def commit() -> str:
    """The commit of this checkout, `+changes` behind it where files differ; in a bundle what its file COMMIT says."""
    noted = ROOT / "COMMIT"
    if noted.exists():
        return noted.read_text(encoding="utf-8").strip()
    try:
        head = _git("rev-parse", "HEAD")
        return head + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _left_of(folder: Path) -> int:
    """Processes of the trial's group that are still there."""
    try:
        return len(group_members(int(json.loads((folder / "process.json").read_text(encoding="utf-8"))["pgid"])))
    except (OSError, ValueError, KeyError):
        return 0


@contextmanager
def _planted(fault: str | None) -> Iterator[None]:
    """A fault that the worker finds in its environment."""
    if fault is not None:
        os.environ[FAULT] = fault
    try:
        yield
    finally:
        os.environ.pop(FAULT, None)
