"""A finished study, in which every configuration was run, as a table.

    .venv/bin/python -m benchmarks.replay.record --db sqlite:///FILE --study NAME --budget 300MB [-o TABLE.jsonl]

Predictions are those that the study stored before each trial ran, without corrections; trials without one have none. The study
should have been searched with `--sampler grid --no-reuse`, so that no trial is missing.
"""

import argparse
import platform
from pathlib import Path

from autofit.config.record import StudyRecord, TrialRecord
from autofit.config.space import enumerate_space
from autofit.config.trial import TrialSpec
from autofit.errors import AutofitError
from autofit.search.history import at_least_bytes
from autofit.store.store import Store
from autofit.units import parse_bytes
from benchmarks.replay.table import Header, Row, differing, load, save, shrink

TABLES = Path(__file__).parent / "tables"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--db", required=True)
    parser.add_argument("--study", required=True)
    parser.add_argument("--budget", help="at which strategies are replayed; default: the study's own")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    with Store.open(options.db) as store:
        study = store.study(options.study)
        trials = store.trials(study.name, purpose="search")
    budget = parse_bytes(options.budget) if options.budget else study.memory_budget_bytes
    output = options.output or TABLES / f"{study.space.name}.jsonl"
    save(output, *table_of(study, trials, budget))
    table = load(output)
    print(f"{output}: {len(table.rows)} configurations, {sum(map(table.runs, table.rows))} run within {budget:,} bytes")


def table_of(study: StudyRecord, trials: list[TrialRecord], budget: int) -> tuple[Header, list[Row]]:
    """The header and rows of a study's trials.

    Raises:
        AutofitError: a configuration that was not run, or a budget above the study's.
    """
    legal = enumerate_space(study.space, study.model, len(study.hardware.devices))
    done = {trial.spec: trial for trial in trials if trial.result is not None}
    if missing := [spec for spec in legal.points if spec not in done]:
        raise AutofitError(f"study {study.name} lacks {len(missing)} of {len(legal.points)} configurations; --resume goes on")
    if budget > study.memory_budget_bytes:
        raise AutofitError(f"the study ran within {study.memory_budget_bytes:,} bytes; it knows nothing of more")
    results = [done[spec].result for spec in legal.points]
    header = Header(
        name=study.space.name,
        evidence="measured",
        note=f"every configuration was run once within {study.memory_budget_bytes:,} bytes, autofit {study.autofit_version}",
        space=study.space,
        model=study.model,
        num_gpus=len(study.hardware.devices),
        objective=study.space.objective,
        budget_bytes=budget,
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
    return header, [_row(done[spec], study, legal.reference) for spec in legal.points]


def _row(trial: TrialRecord, study: StudyRecord, base: TrialSpec) -> Row:
    result = trial.result
    assert result is not None and trial.finished_at is not None
    wall = (trial.finished_at - trial.started_at).total_seconds()
    known = trial.prediction
    fields = {
        "knobs": differing(trial.spec, base),
        "outcome": result.outcome,
        "wall_seconds": round(wall, 3),
        "prediction": shrink(known, study.space.objective) if known else None,
    }
    if trial.fits:
        return Row(**fields, peak_bytes=result.peak_device_bytes, speed=getattr(result, study.space.objective))
    if trial.out_of_memory:
        return Row(**fields, at_least_bytes=at_least_bytes(trial, study.memory_budget_bytes))
    return Row(**fields)


if __name__ == "__main__":
    main()
