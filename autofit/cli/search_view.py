"""What a person sees of a search: progress on stderr while it runs, the answer on stdout at its end."""

import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from autofit.cli import findings_view, output
from autofit.config.brief import describe
from autofit.config.quality import Quality
from autofit.config.record import StudyRecord, TrialRecord
from autofit.config.result import TrialResult
from autofit.launch.local import Heartbeat
from autofit.tuning.plan import Plan
from autofit.tuning.winner import speed, within_budget
from autofit.units import format_bytes, format_seconds

if TYPE_CHECKING:  # a ranking prints with this too, and must not wait for what runs trials
    from autofit.tuning.driver import SearchReport, StopRule
    from autofit.tuning.misses import Miss

SHOWN_TRIALS = 40
_UNITS = {
    "samples_per_second": "samples/s",
    "tokens_per_second": "tokens/s",
    "effective_tokens_per_second": "effective tokens/s",
}


@contextmanager
def progress(plan: Plan, stop: "StopRule") -> Iterator["ProgressListener"]:
    """A listener that shows a live bar on a terminal and one line a trial elsewhere."""
    console = Console(stderr=True, highlight=False)
    study = plan.study
    for line in heading(plan):
        console.print(line, soft_wrap=True)
    columns = (
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", table_column=None),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        yield ProgressListener(study, stop, console, bar)


def heading(plan: Plan) -> list[str]:
    """What is searched, in a line, and what the user should know before it starts."""
    study = plan.study
    devices = study.hardware.devices
    where = "nothing is run" if study.hardware.device == "none" else study.hardware.device
    line = (
        f"study {study.name}: {study.model.label} on {len(devices)} x {devices[0].name} ({where}),"
        f" budget {study.memory_budget_bytes:,} bytes ({format_bytes(study.memory_budget_bytes)}) a device,"
        f" global batch {plan.legal.reference.global_batch_size}, {len(plan.legal.points)} legal configurations"
    )
    return [line, *(f"note: {note}" for note in plan.notes)]


class ProgressListener:
    """Turns the driver's calls into a bar and lines."""

    def __init__(self, study: StudyRecord, stop: "StopRule", console: Console, bar: Progress) -> None:
        self._study = study
        self._stop = stop
        self._console = console
        self._bar = bar
        self._task: TaskID = bar.add_task("starting", total=stop.trials)
        self._begun = time.monotonic()
        self._best: TrialRecord | None = None
        self._out_of_memory = 0
        self._seconds: list[float] = []

    def started(self, trial: TrialRecord) -> None:
        if trial.purpose == "search":
            self._bar.update(self._task, completed=trial.trial_number)
        self.ticked(trial, None)

    def ticked(self, trial: TrialRecord, beat: Heartbeat | None) -> None:
        where = f"{beat.phase} {beat.step}" if beat else "starting"
        best = f"best {speed(self._best, self._study):.2f}/s (#{self._best.trial_number})" if self._best else "no best yet"
        left = f"  {self._time_left(trial)} left" if trial.purpose == "search" and self._seconds else ""
        self._bar.update(
            self._task,
            description=f"#{trial.trial_number} {trial.purpose} {where}  {best}  {self._out_of_memory} OOM{left}",
        )

    def finished(self, trial: TrialRecord) -> None:
        assert trial.result is not None and trial.finished_at is not None
        self._out_of_memory += trial.out_of_memory
        self._seconds.append((trial.finished_at - trial.started_at).total_seconds())
        fits = within_budget(trial, self._study) and trial.purpose == "search"
        if fits and (self._best is None or speed(trial, self._study) > speed(self._best, self._study)):
            self._best = trial
        self._console.print(f"#{trial.trial_number:<3} {_outcome(trial, self._study)}  {describe(trial.spec)}", soft_wrap=True)
        self._console.print(f"     {trial.reason}", soft_wrap=True, style="dim")

    def said(self, message: str) -> None:
        self._console.print(f"note: {message}", soft_wrap=True)

    def _time_left(self, trial: TrialRecord) -> str:
        mean = sum(self._seconds) / len(self._seconds)
        by_trials = mean * ((self._stop.trials or 0) - trial.trial_number) if self._stop.trials else float("inf")
        by_time = self._stop.seconds - (time.monotonic() - self._begun) if self._stop.seconds else float("inf")
        return format_seconds(max(0.0, min(by_trials, by_time)))


def show(report: "SearchReport") -> None:
    """The answer for a person, on stdout."""
    _print_trials(report)
    if report.winner is None:
        return
    study, winner = report.study, report.winner
    output.print_section(f"winner: trial {winner.trial_number}: {describe(winner.spec)}", _why(report))
    findings_view.print_compromises(report.compromises)
    findings_view.print_front(report.front)
    sys.stdout.write(f"\nexport it: autofit export --study {shlex.quote(study.name)} --launcher llamafactory -o best\n")


def why_none(report: "SearchReport") -> str:
    """One line on why there is no winner and what to do."""
    study = report.study
    memory = sum(trial.out_of_memory for trial in report.trials)
    line = f"none of {len(report.trials)} configurations tried {_meets(study)} within"
    line += f" {format_bytes(study.memory_budget_bytes)} ({memory} ran out of memory)"
    if report.front:
        line += "; some that change the training fit"
    if report.miss is not None:
        line += f"; {_miss(report.miss)}"
    if not report.exhausted:
        line += f"; go on with: autofit search --resume --study {study.name} --trials {len(report.trials) * 2}"
    return line


def _miss(miss: "Miss") -> str:
    """The nearest miss, and what would make it fit."""
    needs = (
        f"needs {format_bytes(miss.peak_bytes)}"
        if miss.measured
        else f"needs about {format_bytes(miss.peak_bytes)} (estimated)"
    )
    ways = [f"--gpu-mem {-(-miss.gpu_mem_bytes // 1024**2)}MB", *miss.changes[:3]]
    return f"nearest miss: {describe(miss.spec)}, {needs}; it should fit with {', or '.join(ways)}"


def as_document(report: "SearchReport") -> dict[str, Any]:
    """The answer for a program."""

    def row(trial: TrialRecord | None) -> dict[str, Any] | None:
        return trial.model_dump(mode="json") if trial else None

    samples = report.winner.result.samples_per_second if report.winner and report.winner.result else None
    return {
        "study": report.study.name,
        "memory_budget_bytes": report.study.memory_budget_bytes,
        "objective": report.study.space.objective,
        "winner": row(report.winner),
        "confirmed_by": row(report.confirmed_by),
        "reference": row(report.reference),
        **findings_view.documents(report.compromises, report.front, report.legal.epoch, samples),
        "trials": len(report.trials),
        "out_of_memory": sum(trial.out_of_memory for trial in report.trials),
        "exhausted": report.exhausted,
        "stop_reason": report.stop_reason,
    }


def _why(report: "SearchReport") -> list[str]:
    winner, study = report.winner, report.study
    assert winner is not None and winner.result is not None
    reasons = [f"fastest of {len(report.trials)} measured that {_meets(study)}: {_speed(winner, study)}"]
    reasons += findings_view.demand_lines(study.space.quality, report.legal, winner.spec)
    reference = report.reference
    if reference and reference.trial_number == winner.trial_number:
        reasons.append("it is the reference itself" if study.source_path is None else "it is your file as it stands")
    elif reference and reference.fits:
        reasons.append(_against(reference, winner, study))
    elif reference and reference.result:
        reasons.append(f"the reference itself ended {reference.result.outcome}")
    reasons += findings_view.epoch_line(report.legal.epoch, winner.result.samples_per_second)
    left = study.memory_budget_bytes - (winner.result.peak_device_bytes or 0)
    reasons.append(f"peak {format_bytes(winner.result.peak_device_bytes)}, {format_bytes(left)} below the budget")
    if report.stop_reason:
        reasons.append(f"stopped after {len(report.trials)} trials: {report.stop_reason}")
    if report.confirmed_by and report.confirmed_by.result:
        longer = report.confirmed_by.result
        steps = len(longer.losses) or longer.timed_steps
        reasons.append(f"confirmed over {steps} steps in a fresh process: peak {format_bytes(longer.peak_device_bytes)}")
        if longer.resume_problem:
            reasons.append(f"beware: {longer.resume_problem}")
    measured = [trial.result for trial in (report.confirmed_by, winner) if trial and trial.result and trial.result.epoch]
    return reasons + ([_on_data(measured[0])] if measured else [])


def _on_data(result: TrialResult) -> str:
    """The speed on the user's data, from the longer of the two runs."""
    epoch = result.epoch
    assert epoch is not None and result.samples_per_second is not None
    line = f"on your data: {result.samples_per_second:.2f} samples/s"
    if epoch.samples_per_second_low is not None and epoch.samples_per_second_high is not None:
        line += f" ({epoch.samples_per_second_low:.2f} to {epoch.samples_per_second_high:.2f}, {epoch.confidence:.0%})"
    for name in ("tokens_per_second", "effective_tokens_per_second"):
        line += f", {getattr(result, name):,.0f} {name.removesuffix('_per_second').replace('_', ' ')}/s"
    line += f"; an epoch of {epoch.samples} samples takes {format_seconds(epoch.seconds)}"
    if epoch.seconds_low is not None and epoch.seconds_high is not None:
        line += f" ({format_seconds(epoch.seconds_low)} to {format_seconds(epoch.seconds_high)})"
    return line


def _meets(study: StudyRecord) -> str:
    return "runs the reference's training" if study.space.quality == Quality() else "is what you asked for"


def _against(reference: TrialRecord, winner: TrialRecord, study: StudyRecord) -> str:
    """How the winner compares with the reference, or with the user's file where the study started from one."""
    ratio = f"{speed(winner, study) / speed(reference, study):.2f}x"
    if study.source_path is None or reference.result is None or winner.result is None:
        return f"{ratio} the reference (trial {reference.trial_number})"
    less = (reference.result.peak_device_bytes or 0) - (winner.result.peak_device_bytes or 0)
    memory = f"{format_bytes(abs(less))} {'less' if less >= 0 else 'more'}"
    return f"{ratio} faster than your file {Path(study.source_path).name} (trial {reference.trial_number}), {memory}"


def _speed(trial: TrialRecord, study: StudyRecord) -> str:
    return f"{speed(trial, study):.2f} {_UNITS[study.space.rate]}"


def _outcome(trial: TrialRecord, study: StudyRecord) -> str:
    result = trial.result
    assert result is not None
    if trial.fits:
        verdict = "fits" if within_budget(trial, study) else "over budget"
        return f"{verdict}, {format_bytes(result.peak_device_bytes)}, {_speed(trial, study)}"
    where = f" in {result.phase}" if result.phase else ""
    why = "" if trial.out_of_memory else f": {(result.message or '')[:200]}"
    return f"{result.outcome}{where}{why}"


def _print_trials(report: "SearchReport") -> None:
    """Fastest first, those without a speed last; the winner has a star."""
    study = report.study
    ordered = sorted(report.trials, key=lambda trial: -speed(trial, study) if trial.fits else 0.0)
    rows = []
    for trial in ordered[:SHOWN_TRIALS]:
        result = trial.result
        assert result is not None
        ended = result.outcome if within_budget(trial, study) or not trial.fits else "OVER BUDGET"
        rows.append(
            [
                f"{trial.trial_number}{'*' if report.winner and trial.trial_number == report.winner.trial_number else ' '}",
                f"{ended} in {result.phase}" if not trial.fits and result.phase else ended,
                format_bytes(result.peak_device_bytes),
                format_seconds(result.step_time_seconds),
                f"{result.samples_per_second:.2f}" if result.samples_per_second else output.NOTHING,
                describe(trial.spec),
            ]
        )
    output.print_table(["trial", "outcome", "peak", "step", "samples/s", "configuration"], rows)
