"""The search loop: propose > launch > store, until a limit; then the winner is confirmed.

What makes it survive a kill at any moment: a trial's row is written before its process starts and finished after its
`result.json` is on disk, each in one transaction; a study has one driver at a time (an operating-system lock); and a driver
that resumes first settles what the last one left: a result on disk is stored, anything else is ended and run again under the
same number. The sampler keeps no state: it is asked anew with the whole history.
"""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout

from autofit.config.record import Purpose, StudyRecord, TrialRecord
from autofit.config.result import TrialResult
from autofit.config.space import LegalSpace
from autofit.config.trial import RunSpec, TrialSpec
from autofit.errors import AutofitError, Interrupted
from autofit.launch import gpus
from autofit.launch.local import Heartbeat, Limits, LocalExecutor
from autofit.search.guide import Halt
from autofit.store.store import Store
from autofit.tuning.compromise import Compromise, compromise_table
from autofit.tuning.figures import Figures, figures, of_trial
from autofit.tuning.foresight import Foresight
from autofit.tuning.front import pareto_front
from autofit.tuning.growth import judge
from autofit.tuning.guidance import Guidance
from autofit.tuning.misses import Miss, nearest
from autofit.tuning.orders import CONFIRM_FACTOR, lacks_room_for_checkpoint, like_all, order, timed_steps
from autofit.tuning.plan import Plan
from autofit.tuning.reuse import own_trials, take_over
from autofit.tuning.winner import ranking, within_budget

CONFIRM_CANDIDATES = 3
SAME_CRASHES = 3
"""After this many trials in a row that fail alike, and not for memory, the cause is not the configuration."""


@dataclass(frozen=True)
class StopRule:
    """When no further trial starts."""

    trials: int | None = None
    """Finished search trials of the study in all, earlier runs counted, those taken over from other studies not."""
    seconds: float | None = None
    """Wall time of this run. No trial starts that would not end in time, as long as the median trial."""


class Listener(Protocol):
    """Who watches a search. Every call is short; an exception ends the search."""

    def started(self, trial: TrialRecord) -> None:
        """A trial begins."""

    def ticked(self, trial: TrialRecord, beat: Heartbeat | None) -> None:
        """It runs; several times a second."""

    def finished(self, trial: TrialRecord) -> None:
        """It has its result."""

    def said(self, message: str) -> None:
        """Something the user should know."""


@dataclass(frozen=True)
class SearchReport:
    """What a search found."""

    study: StudyRecord
    trials: tuple[TrialRecord, ...]
    """Search trials, in order."""
    reference: TrialRecord | None
    winner: TrialRecord | None
    """The fastest that was confirmed."""
    confirmed_by: TrialRecord | None
    legal: LegalSpace
    front: tuple[Figures, ...]
    """The Pareto front of speed x memory x quality, fastest first."""
    compromises: tuple[Compromise, ...]
    miss: Miss | None
    """Without a winner: the configuration that comes nearest to the budget, and what would make it fit."""
    stop_reason: str | None
    """Why the sampler ended the search; None: a limit did."""

    @property
    def exhausted(self) -> bool:
        """Whether no further trial is worth its time."""
        return self.stop_reason is not None


def run_search(
    store: Store,
    plan: Plan,
    *,
    runs_dir: Path,
    stop: StopRule,
    listener: Listener,
    limits: Limits | None = None,
    foresight: Foresight | None = None,
    reuse: bool = False,
    fresh_processes: bool = False,
) -> SearchReport:
    """Runs (or goes on with) a study to a limit and confirms its winner. The study must be in the store.

    Args:
        foresight: predicts each trial before it runs; None: no predictions are stored.
        reuse: sampler `guided` starts from what earlier studies of the same things measured; where that decides, nothing is
            run. The other samplers are there to be compared, and run all of their trials.
        fresh_processes: every trial starts new interpreters; otherwise the search's trials are forked from one that has
            imported everything, and only confirmations start new ones.

    Raises:
        AutofitError: another driver has the study, a device is taken, the store fails, or all trials crash alike.
        Interrupted: the user stopped it; everything that was finished is stored.
    """
    study = plan.study
    with (
        _one_driver(runs_dir / study.name, study.name),
        gpus.lease(study.hardware, f"autofit search, study {study.name}"),
        LocalExecutor(study.python, study.hardware, limits, warm=not fresh_processes, say=listener.said) as executor,
    ):
        driver = _Driver(store, plan, runs_dir / study.name, listener, executor, foresight)
        store.set_study_status(study.name, "RUNNING")
        try:
            driver.settle()
            taken = take_over(store, plan, listener.said) if reuse and study.sampler == "guided" else 0
            report = driver.conclude(driver.search(stop), from_store=taken > 0)
        except KeyboardInterrupt:
            store.set_study_status(study.name, "INTERRUPTED")
            raise Interrupted(
                f"stopped; every finished trial is kept: autofit search --resume --study {study.name} goes on"
            ) from None
        except BaseException:
            store.set_study_status(study.name, "INTERRUPTED")
            raise
        return report


class _Driver:
    """One run of the loop."""

    def __init__(  # noqa: PLR0917 - its parts
        self,
        store: Store,
        plan: Plan,
        study_dir: Path,
        listener: Listener,
        executor: LocalExecutor,
        foresight: Foresight | None,
    ) -> None:
        self._store = store
        self._plan = plan
        self._study = plan.study
        self._dir = study_dir
        self._listener = listener
        self._executor = executor
        self._foresight = foresight
        self._guidance = Guidance(plan, store, foresight, listener.said)

    def settle(self) -> None:
        """Brings trials that a killed driver left unfinished to their end."""
        for trial in self._store.running_trials(self._study.name):
            result = self._executor.recover(Path(trial.run_dir), trial.spec)
            if result is not None:
                self._listener.said(f"trial {trial.trial_number} had finished before the last stop; its result is kept")
                self._finish(trial, result)
            else:
                self._listener.said(f"trial {trial.trial_number} was cut off by the last stop; it runs again")
                self._run(self._store.restart_trial(self._study.name, trial.trial_number, datetime.now(UTC)))

    def search(self, stop: StopRule) -> str | None:
        """Runs trials until `stop`, or until the sampler ends the search: then its reason."""
        started = time.monotonic()
        if not self._trials("search"):  # else there may be nothing to run, and the answer should not wait for it
            self._executor.warm_up(self._dir, like_all(self._plan))
        while True:
            history = self._trials("search")
            own = own_trials(self._study, history)
            _stop_on_common_cause(own)
            if stop.trials is not None and len(own) >= stop.trials:
                return None
            if stop.seconds is not None and time.monotonic() - started + _expected_seconds(history) > stop.seconds:
                return None
            found = self._guidance.propose(history)
            if isinstance(found, Halt):
                self._listener.said(found.reason)
                return found.reason
            self._start(found.spec, found.reason, "search")

    def conclude(self, stop_reason: str | None, *, from_store: bool) -> SearchReport:
        """Confirms the winner and closes the study.

        Args:
            from_store: trials of other studies were taken over; when they decide alone, they are the answer, without a run.
        """
        trials = self._trials("search")
        legal = self._plan.legal
        ranked = ranking(self._study, trials, legal)
        if ranked:
            self._guidance.beside(ranked[0])  # takes a while where a limit ended the search: before it is called finished
        answered = from_store and not own_trials(self._study, trials)
        winner, confirmed_by = self._stored(ranked) if answered else self._confirm(ranked[:CONFIRM_CANDIDATES])
        self._store.set_study_status(self._study.name, "FINISHED", winner.trial_number if winner else None, stop_reason)
        return SearchReport(
            study=self._store.study(self._study.name),
            trials=tuple(trials),
            reference=next((trial for trial in trials if trial.spec == legal.reference), None),
            winner=winner,
            confirmed_by=confirmed_by,
            legal=legal,
            front=tuple(pareto_front(figures(self._study, trials), legal.floor)),
            compromises=tuple(compromise_table(self._study, trials, winner, self._guidance.beside(winner)) if winner else ()),
            miss=None if winner else nearest(self._study, self._guidance.context(trials), self._foresight),
            stop_reason=stop_reason,
        )

    def _stored(self, ranked: list[TrialRecord]) -> tuple[TrialRecord | None, TrialRecord | None]:
        """The fastest of the trials taken over, with its confirmation if that was taken over too."""
        if not ranked:
            return None, None
        done = {trial.spec: trial for trial in self._trials("confirm")}
        confirmed_by = done.get(ranked[0].spec)
        said = "earlier studies answer this budget: nothing was run"
        if confirmed_by is None:
            said += f"; confirm the winner in a longer run: autofit search --resume --study {self._study.name}"
        self._listener.said(said)
        return ranked[0], confirmed_by

    def _confirm(self, candidates: list[TrialRecord]) -> tuple[TrialRecord | None, TrialRecord | None]:
        """The first candidate that stays inside the budget in a fresh, longer run, and that run."""
        done = {trial.spec: trial for trial in self._trials("confirm")}
        for candidate in candidates:
            reason = f"confirms trial {candidate.trial_number}, {CONFIRM_FACTOR} times as long"
            trial = done.get(candidate.spec) or self._start(candidate.spec, reason, "confirm")
            if within_budget(trial, self._study):
                return candidate, trial
            known = of_trial(self._study, trial)
            how = known.outcome if known else trial.result.outcome if trial.result else "unfinished"
            self._listener.said(f"trial {candidate.trial_number} did not hold when run longer ({how}); the next best is tried")
        return None, None

    def _start(self, spec: TrialSpec, reason: str, purpose: Purpose) -> TrialRecord:
        number = len(self._store.trials(self._study.name))
        trial = TrialRecord(
            study=self._study.name,
            trial_number=number,
            purpose=purpose,
            spec=spec,
            reason=reason,
            prediction=self._foresight.before(spec, self._trials("search")) if self._foresight else None,
            run_dir=str(self._dir / f"{number:04d}"),
            started_at=datetime.now(UTC),
        )
        self._store.start_trial(trial)
        return self._run(trial)

    def _run(self, trial: TrialRecord) -> TrialRecord:
        self._listener.started(trial)
        result = self._executor.run(
            Path(trial.run_dir),
            self._order(trial),
            lambda beat: self._listener.ticked(trial, beat),
            fresh=trial.purpose == "confirm",
        )
        return self._finish(trial, result)

    def _finish(self, trial: TrialRecord, result: TrialResult) -> TrialRecord:
        now = datetime.now(UTC)
        study = self._study
        if self._plan.batches is not None:
            warmup = study.space.measure.warmup_steps
            result = self._plan.batches.on_data(trial.spec, result, warmup, timed_steps(study, trial.purpose))
        result = judge(result, study.memory_budget_bytes, study.space.measure.warmup_steps, study.hardware.device)
        self._store.finish_trial(self._study.name, trial.trial_number, now, result)
        done = trial.model_copy(update={"finished_at": now, "result": result})
        self._listener.finished(done)
        return done

    def _order(self, trial: TrialRecord) -> RunSpec:
        room = True
        if trial.purpose == "confirm":
            lacking = lacks_room_for_checkpoint(trial.spec, self._trials("search"), self._dir)
            room = lacking is None
            if lacking is not None:
                self._listener.said(lacking)
        return order(self._plan, trial, self._listener.said, checkpoint=room)

    def _trials(self, purpose: Purpose) -> list[TrialRecord]:
        return [trial for trial in self._store.trials(self._study.name) if trial.purpose == purpose and trial.result]


@contextmanager
def _one_driver(study_dir: Path, name: str) -> Iterator[None]:
    """Holds the study for this process; the kernel lets go when it dies."""
    try:
        study_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(study_dir / "driver.lock", timeout=0):
            yield
    except Timeout:
        raise AutofitError(f"study {name} is being searched by another autofit; wait for it, or start another study") from None
    except OSError as error:
        raise AutofitError(f"cannot write to {study_dir}: {error.strerror or error}") from error


def _expected_seconds(history: list[TrialRecord]) -> float:
    """Median wall time of the study's trials; 0 before the first."""
    return statistics.median(
        [(trial.finished_at - trial.started_at).total_seconds() for trial in history if trial.finished_at] or [0.0]
    )


def _stop_on_common_cause(history: list[TrialRecord]) -> None:
    """Raises when the last trials all failed alike and not for memory: more of them would waste the user's time."""
    last = [trial.result for trial in history[-SAME_CRASHES:] if trial.result]
    kinds = {(result.outcome, result.error_type) for result in last}
    if len(last) == SAME_CRASHES and len(kinds) == 1 and last[0].outcome in {"CRASHED", "DATA_ERROR", "HANG"}:
        raise AutofitError(
            f"the last {SAME_CRASHES} trials ended alike, {last[-1].outcome}: {last[-1].message}; see `autofit show"
            f" {history[-1].trial_number} --study {history[-1].study}`"
        )
