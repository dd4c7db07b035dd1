"""One strategy on one table: what it ran, in order, and how near the exhaustive best it came."""

import random
from collections.abc import Generator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from autofit.config.record import TrialRecord
from autofit.config.result import TrialResult
from autofit.config.trial import TrialSpec
from benchmarks.replay.table import Table

NOISE_SPEED = 0.01
NOISE_PEAK = 0.003
"""Standard deviations from one run of a configuration to the next, drawn by seed; seen in repeated CPU and GPU trials."""
START = datetime(2026, 1, 1, tzinfo=UTC)

Strategy = Generator[TrialSpec, TrialRecord, None]
"""Yields the next configuration, is sent its finished trial; returns when it would stop."""


class TableExecutor:
    """Runs configurations by looking them up, as a trial would have ended under the table's budget."""

    def __init__(self, table: Table, seed: int) -> None:
        self._table, self._seed, self._count, self._clock = table, seed, 0, START

    def run(self, spec: TrialSpec) -> TrialRecord:
        """The finished trial of a configuration."""
        row, result = self._table.rows[spec], self._result(spec)
        began, self._clock = self._clock, self._clock + timedelta(seconds=row.wall_seconds or 30.0)
        self._count += 1
        return TrialRecord(
            study=self._table.header.name,
            trial_number=self._count - 1,
            spec=spec,
            reason="",
            run_dir="",
            started_at=began,
            finished_at=self._clock,
            result=result,
        )

    def _result(self, spec: TrialSpec) -> TrialResult:
        row, budget = self._table.rows[spec], self._table.budget_bytes
        if row.outcome not in {"COMPLETED", "OOM", "HOST_OOM"}:
            return TrialResult.model_validate({"outcome": row.outcome if row.outcome == "DATA_ERROR" else "CRASHED"})
        draw = random.Random(f"{self._seed} {spec.config_key()}")
        peak = None if row.peak_bytes is None else int(row.peak_bytes * (1 + draw.gauss(0, NOISE_PEAK)))
        if row.outcome != "COMPLETED" or peak is None or row.speed is None or not self._table.runs(spec):
            told = {}
            if row.at_least_bytes and row.at_least_bytes > budget:
                told = {"allocated_bytes": budget, "requested_bytes": row.at_least_bytes - budget}
            return TrialResult(outcome="OOM", phase="backward", **told)
        speed = row.speed * (1 + draw.gauss(0, NOISE_SPEED))
        seconds = spec.global_batch_size / speed
        return TrialResult(
            outcome="COMPLETED",
            peak_device_bytes=min(peak, budget),
            step_time_seconds=seconds,
            samples_per_second=speed,
            tokens_per_second=speed * spec.cutoff_len,
            timed_steps=self._table.header.space.measure.steps,
        )


@dataclass(frozen=True)
class Course:
    """What one replay came to."""

    regrets: tuple[float, ...]
    """After each trial: 1 - (true speed of what measured best so far) / (exhaustive best); 1 before anything fits."""
    out_of_memory: int
    wall_seconds: float
    ended: bool
    """Whether the strategy stopped by itself; False: at the limit."""

    def trials_to(self, share: float) -> int | None:
        """Trials until the best so far reached `share` of the exhaustive best; None: it never did."""
        return next((count for count, regret in enumerate(self.regrets, 1) if 1 - regret >= share), None)

    def regret_at(self, trials: int) -> float:
        """Regret after so many trials, or at the end if there were fewer."""
        return self.regrets[min(trials, len(self.regrets)) - 1] if self.regrets else 1.0


def replay(strategy: Strategy, table: Table, seed: int, limit: int, until: float | None = None) -> Course:
    """Runs a strategy on a table.

    Args:
        limit: trials at most.
        until: stop when the best so far has this share of the exhaustive best; None: as far as the strategy goes.
    """
    executor, failures, walls = TableExecutor(table, seed), 0, 0.0
    regrets: list[float] = []
    best: tuple[float, float] | None = None  # measured, true
    ended = False
    spec = next(strategy, None)
    while spec is not None and len(regrets) < limit:
        trial = executor.run(spec)
        walls += table.rows[spec].wall_seconds or 0.0
        failures += trial.out_of_memory
        if trial.fits and table.wanted(spec):
            assert trial.result is not None and trial.result.samples_per_second is not None
            measured = trial.result.samples_per_second
            if best is None or measured > best[0]:
                best = (measured, table.rows[spec].speed or 0.0)
        regrets.append(1 - best[1] / table.best if best else 1.0)
        if until is not None and 1 - regrets[-1] >= until:
            break
        try:
            spec = strategy.send(trial)
        except StopIteration:
            ended = True
            break
    return Course(tuple(regrets), failures, walls, ended)
