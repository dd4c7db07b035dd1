"""What a person sees of `search --device none`: a space that is predicted and ranked. Every figure is marked as predicted."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from autofit.cli import findings_view, output, search_view
from autofit.config.brief import describe
from autofit.config.quality import Quality
from autofit.config.record import StudyRecord, TrialRecord
from autofit.errors import AutofitError
from autofit.predict.many import Forecaster
from autofit.store.store import Store
from autofit.tuning import survey
from autofit.tuning.plan import Plan
from autofit.tuning.survey import SurveyReport, fits, predicted_speed
from autofit.units import format_bytes, format_seconds


def run(store: Store, plan: Plan, *, as_json: bool) -> None:
    """Predicts the space, prints the answer.

    Raises:
        AutofitError: nothing fits that runs the reference's training, or nothing can be predicted.
    """
    assert plan.predictor is not None
    with _progress(plan) as progress:
        report = survey.run_survey(store, plan, Forecaster(plan.predictor), progress)
    if as_json:
        output.print_json(as_document(report))
    else:
        show(report)
    if report.winner is None:
        raise AutofitError(why_none(report))


@contextmanager
def _progress(plan: Plan) -> Iterator[survey.Progress]:
    console = Console(stderr=True, highlight=False)
    for line in search_view.heading(plan):
        console.print(line, soft_wrap=True)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda what, done, of: bar.update(task, description=what, completed=done, total=of)


def show(report: SurveyReport) -> None:
    """The answer for a person, on stdout."""
    study = report.study
    sys.stdout.write(f"best configuration of each quality setting, predicted for {_devices(study)}\n")
    rows = [
        [
            f"{setting.best.trial_number}{'*' if setting.best is report.winner else ' '}",
            "yes" if setting.speedup is not None or fits(setting.best) else "no",
            f"{setting.speedup:.2f}x" if setting.speedup is not None else output.NOTHING,
            format_bytes(setting.best.prediction.peak_device_bytes) if setting.best.prediction else output.NOTHING,
            format_bytes(setting.best.prediction.peak_device_bytes_high) if setting.best.prediction else output.NOTHING,
            describe(setting.best.spec),
            "; ".join(setting.changes) or "same",
        ]
        for setting in report.settings
    ]
    output.print_table(["trial", "fits", "speed", "peak", "at most", "configuration", "training"], rows)
    counted = f"{sum(map(fits, report.trials))} of {len(report.trials)} legal configurations are predicted to fit"
    output.remark(f"{counted} {format_bytes(study.memory_budget_bytes)}; nothing was run")
    for reason, count in report.unpredictable.items():
        output.remark(f"{count} left out: {reason}")
    if report.winner is None or report.winner.prediction is None:
        return
    winner = report.winner
    output.print_section(f"predicted winner: trial {winner.trial_number}: {describe(winner.spec)}", _why(report))
    findings_view.print_compromises(report.compromises)
    findings_view.print_front(report.front)
    output.print_section("assumed", report.winner.prediction.assumptions)
    output.print_section("not modelled", report.winner.prediction.not_modelled)
    name = shlex.quote(study.name)
    sys.stdout.write(f"\nwhy: autofit explain --study {name} --picture step.png\n")
    sys.stdout.write(f"export it: autofit export --study {name} --launcher llamafactory -o best\n")


def _why(report: SurveyReport) -> list[str]:
    winner, study = report.winner, report.study
    assert winner is not None and winner.prediction is not None
    told = winner.prediction
    same = sum(fits(trial) and not report.legal.breaches(trial.spec) for trial in report.trials)
    meets = "run the reference's training" if study.space.quality == Quality() else "are what you asked for"
    lines = [
        f"predicted fastest of {same} that fit and {meets}: {told.samples_per_second:.3g} samples/s,"
        f" {format_seconds(told.step_time_seconds)} an optimizer step"
    ]
    lines += findings_view.demand_lines(study.space.quality, report.legal, winner.spec)
    lines += [f"{line}, predicted" for line in findings_view.epoch_line(report.legal.epoch, told.samples_per_second)]
    reference = report.reference
    if reference is winner:
        lines.append("it is the reference itself")
    elif reference is not None and reference.prediction is not None:
        if fits(reference):
            ratio = predicted_speed(winner, study) / predicted_speed(reference, study)
            lines.append(f"{ratio:.2f}x the reference (trial {reference.trial_number}), predicted")
        else:
            lines.append(
                f"the reference itself is predicted not to fit ({format_bytes(reference.prediction.peak_device_bytes)})"
            )
    left = study.memory_budget_bytes - told.peak_device_bytes_high
    lines.append(
        f"peak {format_bytes(told.peak_device_bytes)} in {told.phase}, at most {format_bytes(told.peak_device_bytes_high)}:"
        f" {format_bytes(left)} below the budget"
    )
    return lines


def why_none(report: SurveyReport) -> str:
    """One line on why there is no winner and what to do."""
    study = report.study
    line = f"no configuration that runs the reference's training is predicted to fit {format_bytes(study.memory_budget_bytes)}"
    same = [row for row in report.settings if not row.changes and row.best.prediction is not None]
    if same and (best := same[0].best.prediction) is not None:
        over = best.peak_device_bytes_high - study.memory_budget_bytes
        line += f"; nearest miss: trial {same[0].best.trial_number}, {format_bytes(over)} too much"
    if any(row.changes and fits(row.best) for row in report.settings):
        line += "; some that change the training fit"
    return line + "; more devices (--num-gpus) or another --space may do"


def as_document(report: SurveyReport) -> dict[str, Any]:
    """The answer for a program."""

    def row(trial: TrialRecord | None) -> dict[str, Any] | None:
        return trial.model_dump(mode="json") if trial else None

    told = report.winner.prediction if report.winner else None
    samples = told.samples_per_second if told else None
    return {
        "study": report.study.name,
        "evidence": "predicted",
        "memory_budget_bytes": report.study.memory_budget_bytes,
        "objective": report.study.space.objective,
        "winner": row(report.winner),
        "reference": row(report.reference),
        "settings": [
            {
                "changes": list(setting.changes),
                "cutoff_len": setting.cutoff_len,
                "trial_number": setting.best.trial_number,
                "fits": fits(setting.best),
                "speedup": setting.speedup,
                "peak_device_bytes": setting.best.prediction.peak_device_bytes if setting.best.prediction else None,
                "evidence": "predicted",
            }
            for setting in report.settings
        ],
        **findings_view.documents(report.compromises, report.front, report.legal.epoch, samples),
        "configurations": len(report.trials),
        "predicted_to_fit": sum(map(fits, report.trials)),
        "unpredictable": report.unpredictable,
    }


def _devices(study: StudyRecord) -> str:
    return f"{len(study.hardware.devices)} x {study.hardware.devices[0].name}"
