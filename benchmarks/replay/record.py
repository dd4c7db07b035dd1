"""Runs every configuration of a space in `spaces/` and keeps what came back as a table.

    .venv/bin/python -m benchmarks.replay.record cpu_text 200MB [--db sqlite:///bench.db] [-o TABLE.jsonl]

A grid search that earlier studies do not shorten, with the allocator's settings of `../ruler.py`; one that was cut goes on, one
that is finished is only read. Predictions are those that a search starts from: before any trial has corrected them.

Strategies are replayed at a budget that a given share of the configurations fits by its measured peak, whatever it was recorded
at: the limit that ends a trial on the CPU counts what is mapped, its peak what is touched, and near the limit the two disagree.
"""

import argparse
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from autofit.config.prediction import Prediction
from autofit.config.record import StudyRecord, TrialRecord
from autofit.config.space import enumerate_space
from autofit.config.trial import TrialSpec
from autofit.errors import AutofitError
from autofit.search.history import at_least_bytes
from autofit.store.store import Store
from autofit.tuning.foresight import Foresight
from autofit.tuning.replan import replan
from benchmarks import ruler
from benchmarks.replay.table import Header, Row, differing, load, save, shrink

SPACES = Path(__file__).parent / "spaces"
TABLES = Path(__file__).parent / "tables"

Survey = Callable[[Sequence[TrialSpec]], Mapping[TrialSpec, Prediction]]
"""Predictions of those configurations that can be predicted."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("space", choices=sorted(file.stem for file in SPACES.glob("*.yaml")))
    parser.add_argument("budget", help="memory of a rank, as for `--gpu-mem`, at which trials run")
    parser.add_argument(
        "--share", type=float, default=2 / 3, help="of the configurations that fit where strategies are replayed"
    )
    parser.add_argument("--db", default="sqlite:///bench.db")
    parser.add_argument("--runs", default="bench-runs")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    exhaust(options.space, options.budget, options.db, options.runs)
    with Store.open(options.db, read_only=True) as store:
        study = store.study(options.space)
        trials = store.trials(study.name, purpose="search")
    output = options.output or TABLES / f"{study.space.name}.jsonl"
    foresight = Foresight.of(replan(study, {}), print)
    header, rows = table_of(study, trials, lambda points: foresight.survey(points) if foresight else {})
    save(output, header.model_copy(update={"budget_bytes": budget_for(rows, options.share)}), rows)
    table = load(output)
    fit = sum(map(table.runs, table.rows))
    print(f"{output}: {len(table.rows)} configurations, {fit} run within {table.budget_bytes:,} bytes")


def exhaust(space: str, budget: str, db: str, runs: str) -> None:
    """Every configuration's trial, as a study of the space's name."""
    with Store.open(db) as store:
        status = {study.name: study.status for study in store.studies()}.get(space)
    if status == "FINISHED":
        return
    ruler.apply()
    wanted = ["--space", str(SPACES / f"{space}.yaml"), "--gpu-mem", budget, "--device", "cpu", "--engine", "transformers"]
    wanted += ["--sampler", "grid", "--no-reuse", "--trials", "1000", "--study", space, "--runs", runs]
    resumed = ["--resume"] if status else []
    command = [sys.executable, "-m", "autofit.cli", "--db", db, "search", *wanted, *resumed]
    if code := subprocess.run(command, check=False).returncode:
        raise SystemExit(code)


def table_of(study: StudyRecord, trials: Sequence[TrialRecord], survey: Survey) -> tuple[Header, list[Row]]:
    """The header and rows of a study's trials, with what `survey` predicts of its points.

    Raises:
        AutofitError: a configuration that was not run.
    """
    legal = enumerate_space(study.space, study.model, len(study.hardware.devices))
    done = {trial.spec: trial for trial in trials if trial.result is not None}
    if missing := [spec for spec in legal.points if spec not in done]:
        raise AutofitError(f"study {study.name} lacks {len(missing)} of {len(legal.points)} configurations; --resume goes on")
    results = [done[spec].result for spec in legal.points]
    header = Header(
        name=study.space.name,
        evidence="measured",
        note=f"every configuration was run once within {study.memory_budget_bytes:,} bytes by autofit {study.autofit_version}",
        space=study.space,
        model=study.model,
        num_gpus=len(study.hardware.devices),
        objective=study.space.objective,
        budget_bytes=study.memory_budget_bytes,
        total_parameters=max(result.total_parameters or 0 for result in results if result),
        machine={
            "device": study.hardware.devices[0].name,
            "cpu_count": study.hardware.cpu_count,
            "host_memory_bytes": study.hardware.host_memory_bytes,
            "system": platform.system(),
        },
        versions=next((result.versions for result in results if result and result.versions), {}),
        base=legal.reference,
    )
    known = survey(legal.points)
    return header, [_row(done[spec], study, legal.reference, known.get(spec)) for spec in legal.points]


def budget_for(rows: Sequence[Row], share: float) -> int:
    """Halfway from the highest peak among that share of the configurations with the lowest to the next one's.

    Raises:
        AutofitError: more of them failed than may.
    """
    peaks = sorted(row.peak_bytes for row in rows if row.peak_bytes is not None)
    count = round(share * len(rows))
    if not 0 < count < len(peaks):
        raise AutofitError(f"{len(peaks)} of {len(rows)} configurations have a peak: a share of {share:.0%} has no next one")
    return (peaks[count - 1] + peaks[count]) // 2


def _row(trial: TrialRecord, study: StudyRecord, base: TrialSpec, known: Prediction | None) -> Row:
    result = trial.result
    assert result is not None and trial.finished_at is not None
    wall = (trial.finished_at - trial.started_at).total_seconds()
    fields = {
        "knobs": differing(trial.spec, base),
        "outcome": result.outcome,
        "wall_seconds": round(wall, 3),
        "prediction": shrink(known, study.space.objective) if known else None,
        "step_terms": known.step_terms if known else {},
    }
    if trial.fits:
        return Row(**fields, peak_bytes=result.peak_device_bytes, speed=getattr(result, study.space.objective))
    if trial.out_of_memory:
        return Row(**fields, at_least_bytes=at_least_bytes(trial, study.memory_budget_bytes))
    return Row(**fields)


if __name__ == "__main__":
    main()
