"""The replay benchmark: what a table answers, how courses are counted, and DeepSpeed's rules on a table of known truth."""

import math
import sys
from pathlib import Path

import pytest

from autofit.config.model import resolve_model
from autofit.config.space import SearchSpace, enumerate_space
from autofit.errors import AutofitError

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))
import stub_worker
from store_records import study_record

from benchmarks.replay import distort
from benchmarks.replay.course import TableExecutor, replay
from benchmarks.replay.deepspeed_rules import deepspeed
from benchmarks.replay.record import budget_for, table_of
from benchmarks.replay.run import CONTESTANTS, HERE, summarise
from benchmarks.replay.strategies import sampled
from benchmarks.replay.table import Header, Row, Table, differing, load, save

MIB = 1024**2


@pytest.fixture
def table(tmp_path: Path) -> Table:
    space = SearchSpace.load("tiny_qwen2_5_vl")
    model = resolve_model(space.model)
    legal = enumerate_space(space, model, 2)
    header = Header(
        name="made-up",
        evidence="simulated",
        note="the stub worker's formulas",
        space=space,
        model=model,
        num_gpus=2,
        objective="samples_per_second",
        budget_bytes=165 * MIB,
        total_parameters=1_000_000,
        machine={},
        versions={},
        base=legal.reference,
    )
    rows = []
    for spec in legal.points:
        trial = spec.model_dump()
        peak, seconds = stub_worker.peak_bytes(trial), stub_worker.step_seconds(trial)
        kept = {"peak_bytes": peak, "speed": spec.global_batch_size / seconds, "step_seconds": seconds}
        knobs = differing(spec, legal.reference)
        rows.append(
            Row(knobs=knobs, outcome="COMPLETED", peak_bytes=peak, speed=kept["speed"], wall_seconds=9, prediction=kept)
        )
    save(tmp_path / "made-up.jsonl", header, rows)
    return load(tmp_path / "made-up.jsonl")


def test_a_table_survives_its_file_and_misses_no_configuration(table: Table, tmp_path: Path) -> None:
    assert set(table.rows) == set(table.legal.points) == set(table.forecasts)
    lines = (tmp_path / "made-up.jsonl").read_text().splitlines()
    (tmp_path / "short.jsonl").write_text("\n".join(lines[:-1]))
    with pytest.raises(ValueError, match="1 of 216 configurations have no row"):
        load(tmp_path / "short.jsonl")


def test_what_needs_more_than_the_budget_runs_out_of_memory(table: Table) -> None:
    executor = TableExecutor(table, 0)
    outcomes = {spec: executor.run(spec) for spec in table.legal.points}
    assert any(trial.out_of_memory for trial in outcomes.values())
    for spec, trial in outcomes.items():
        assert trial.fits == ((table.rows[spec].peak_bytes or 0) <= table.budget_bytes)


def test_trials_are_counted_to_the_first_that_is_good_enough(table: Table) -> None:
    course = replay(sampled("guided", table, 0), table, 0, 60)
    reached = course.trials_to(0.98)
    assert course.ended and reached is not None and reached <= 8
    assert course.regrets[reached - 1] <= 0.02 and all(regret > 0.02 for regret in course.regrets[: reached - 1])
    assert course.regret_at(1000) == course.regrets[-1]
    figures = summarise([course], 0.98, stops=True)
    assert figures["median"] == reached and figures["reached"] == 1.0


def test_a_search_that_stopped_short_counts_as_never(table: Table) -> None:
    course = replay(sampled("random", table, 0), table, 0, 1)
    assert course.trials_to(0.98) is None
    figures = summarise([course], 0.98, stops=True)
    assert figures["median"] is None and figures["reached"] == 0.0


@pytest.mark.parametrize("distorted", [distort.common, distort.scattered])
def test_a_distortion_leaves_the_truth_and_depends_on_the_seed(table: Table, distorted: object) -> None:
    told, again, other = distorted(table, 1), distorted(table, 1), distorted(table, 2)  # type: ignore[operator]
    assert told.rows == table.rows
    ratios = [told.forecasts[spec].peak_device_bytes / table.forecasts[spec].peak_device_bytes for spec in table.legal.points]
    assert all(0.69 < ratio < 1.31 for ratio in ratios) and max(abs(math.log(ratio)) for ratio in ratios) > 0.2
    assert told.forecasts == again.forecasts != other.forecasts


def test_deepspeed_tunes_stage_and_micro_batch_alone(table: Table) -> None:
    strategy = deepspeed(table, 0)
    executor, seen = TableExecutor(table, 0), []
    spec = next(strategy)
    while True:
        seen.append(spec)
        try:
            spec = strategy.send(executor.run(spec))
        except StopIteration:
            break
    reference = table.legal.reference
    assert (seen[0].zero_stage, seen[0].micro_batch_size) == (3, 1)  # the profile of its model information
    assert len(seen) == len(set(seen)) > 2
    assert max(spec.micro_batch_size for spec in seen) > 1
    tuned = {"zero_stage", "micro_batch_size", "gradient_accumulation_steps"}
    assert all(set(differing(spec, reference)) <= tuned for spec in seen)


def test_a_study_with_a_gap_is_no_table(table: Table) -> None:
    with pytest.raises(AutofitError, match="lacks 2 of 2 configurations"):
        table_of(study_record(), [], lambda points: {})


def test_the_budget_of_a_replay_lies_between_two_peaks() -> None:
    rows = [Row(knobs={}, outcome="COMPLETED", peak_bytes=peak, speed=1.0) for peak in (300, 100, 200, 400)]
    rows += [Row(knobs={}, outcome="OOM") for _ in range(2)]
    assert budget_for(rows, 0.5) == 350
    assert budget_for(rows, 1 / 3) == 250
    with pytest.raises(AutofitError, match="4 of 6 configurations have a peak"):
        budget_for(rows, 2 / 3)


RECORDED = sorted((HERE / "tables").glob("cpu_*.jsonl"))


@pytest.mark.parametrize("file", RECORDED, ids=[file.stem for file in RECORDED])
def test_a_search_on_a_recorded_table_takes_a_handful_of_trials(file: Path) -> None:
    found = load(file)
    assert found.header.evidence == "measured" and len(found.rows) >= 150
    assert any(row.outcome == "OOM" for row in found.rows.values()), "nothing really ran out of memory"
    for seed in range(3):
        course = replay(CONTESTANTS["guided"].make(found, seed), found, seed, 60)
        assert (course.trials_to(0.98) or 60) <= 8
        assert course.out_of_memory <= 1 and course.ended


@pytest.mark.parametrize("name", ["cpu_vl", "cpu_vl_ddp"])
def test_a_search_that_is_told_nothing_does_not_end_far_from_the_best(name: str) -> None:
    """Its guesses of memory are wrong by half, so that it has to risk trials that may not fit."""
    table = load(HERE / "tables" / f"{name}.jsonl").without_forecasts()
    courses = [replay(sampled("guided", table, seed), table, seed, limit=40) for seed in range(3)]
    assert max(course.regrets[-1] for course in courses) <= 0.05
    assert all(course.ended and len(course.regrets) <= 20 for course in courses)
