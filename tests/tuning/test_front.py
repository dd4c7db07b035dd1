"""The Pareto front against a plain search over all pairs, and the compromise table's choice of rows."""

import random
from datetime import UTC, datetime
from typing import Any

import pytest
from store_records import completed, out_of_memory, prediction

from autofit.config.legality import training_changes
from autofit.config.model import resolve_model
from autofit.config.quality import at_least
from autofit.config.record import StudyRecord, TrialRecord
from autofit.config.result import TrialResult
from autofit.config.space import LegalSpace, SearchSpace, enumerate_space
from autofit.config.trial import TrialSpec
from autofit.tuning.compromise import Compromise, compromise_table
from autofit.tuning.figures import Figures, figures
from autofit.tuning.front import pareto_front
from autofit.units import GIB

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def legal() -> LegalSpace:
    space = SearchSpace.load("tiny_qwen2_5_vl")
    return enumerate_space(space, resolve_model(space.model), 2)


@pytest.fixture
def study(tiny_space: SearchSpace) -> StudyRecord:
    from store_records import study_record

    return study_record("s", space=tiny_space.model_dump(exclude_defaults=True))


def trial(number: int, spec: TrialSpec, result: TrialResult, **changes: Any) -> TrialRecord:
    fields: dict[str, Any] = {"reason": "r", "run_dir": ".", "started_at": NOON, "finished_at": NOON}
    return TrialRecord(study="s", trial_number=number, spec=spec, result=result, **{**fields, **changes})


def test_the_front_is_what_nothing_dominates(legal: LegalSpace) -> None:
    chance = random.Random(5)
    known = [
        Figures(spec, "measured", n, chance.random() < 0.9, "", float(chance.randint(1, 9)), 1.0, chance.randint(40, 60))
        for n, spec in enumerate(legal.points)
    ]

    def worse(one: Figures, than: Figures) -> bool:
        a, b = (one.rate, -(one.peak_device_bytes or 0)), (than.rate, -(than.peak_device_bytes or 0))
        strict = a != b or not at_least(one.spec, than.spec)
        return a[0] <= b[0] and a[1] <= b[1] and at_least(than.spec, one.spec) and strict  # type: ignore[operator]

    fitting = [one for one in known if one.fits]
    expected = {one.trial_number for one in fitting if not any(worse(one, other) for other in fitting)}
    found = pareto_front(known, legal.floor)
    assert {one.trial_number for one in found} == expected
    assert [one.rate for one in found] == sorted((one.rate for one in found), reverse=True)  # type: ignore[type-var]
    by_two = {o.trial_number for o in fitting if not any(p.rate >= o.rate and p.peak_device_bytes <= o.peak_device_bytes
              and (p.rate, p.peak_device_bytes) != (o.rate, o.peak_device_bytes) for p in fitting)}  # fmt: skip
    assert by_two < expected, "quality keeps trials that speed and memory alone would drop"


def knobs(spec: TrialSpec, **changes: Any) -> TrialSpec:
    return spec.model_copy(update=changes)


@pytest.fixture
def table(study: StudyRecord, legal: LegalSpace) -> list[Compromise]:
    wanted = legal.reference
    winner = knobs(wanted, zero_stage=0, gradient_checkpointing=False)
    trials = [
        trial(0, wanted, completed(4.0, 40.0)),
        trial(1, winner, completed(10.0, 60.0), prediction=prediction(50.0, 52.0, samples_per_second=8.0)),
        trial(2, knobs(winner, cutoff_len=96), completed(18.0, 50.0)),
        trial(3, knobs(winner, cutoff_len=96, zero_stage=2), completed(15.0, 45.0)),
        trial(4, knobs(winner, method="lora", micro_batch_size=4), out_of_memory()),
        trial(5, knobs(winner, zero_stage=2), completed(7.0, 55.0)),
        trial(6, knobs(winner, freeze_vision_tower=False), completed(9.0, 73.0)),  # ran, but over the budget of 72
        trial(7, winner, completed(99.0, 5.0), purpose="confirm"),
    ]
    forecasts = {
        knobs(winner, freeze_multi_modal_projector=False): prediction(51.0, 53.0, samples_per_second=6.0),
        knobs(winner, cutoff_len=96, micro_batch_size=4): prediction(30.0, 31.0, samples_per_second=99.0),
        knobs(winner, method="lora", micro_batch_size=1): prediction(30.0, 31.0, samples_per_second=12.0),
        winner: prediction(50.0, 52.0, samples_per_second=8.0),
    }
    return compromise_table(study, trials, trials[1], forecasts)


def row(table: list[Compromise], *changes: str) -> Compromise:
    [found] = [each for each in table if each.changes == changes]
    return found


def test_a_measured_row_is_the_fastest_under_its_change_against_the_winners_measurement(table: list[Compromise]) -> None:
    short = row(table, "cutoff_len 96 instead of 192")
    assert (short.evidence, short.best.trial_number, short.kind) == ("measured", 2, "training")
    assert short.speedup == pytest.approx(1.8) and short.more_bytes == -10 * GIB
    sharded = row(table, "zero_stage 2 instead of 0")
    assert (sharded.kind, sharded.best.trial_number, sharded.speedup) == ("running", 5, pytest.approx(0.7))
    reference = row(table, "gradient checkpointing")
    assert reference.best.trial_number == 0 and reference.along == ("zero_stage 3 instead of 0",)


def test_a_predicted_row_is_compared_with_the_winners_prediction(table: list[Compromise]) -> None:
    projector = row(table, "multi modal projector trained")
    assert (projector.evidence, projector.best.trial_number) == ("predicted", None)
    assert projector.speedup == pytest.approx(6 / 8) and projector.more_bytes == GIB


def test_a_prediction_that_fits_goes_before_a_run_that_did_not(table: list[Compromise]) -> None:
    lora = row(table, "lora instead of full")
    assert lora.evidence == "predicted" and lora.speedup == pytest.approx(12 / 8)
    tower = row(table, "vision tower trained")
    assert tower.evidence == "measured" and not tower.best.fits and tower.speedup is None and tower.more_bytes is None
    assert tower.best.outcome == "1.00 GiB over the budget"


def test_every_lever_has_one_row_and_the_winner_none(table: list[Compromise]) -> None:
    assert len({each.changes for each in table}) == len(table)
    assert all(each.changes for each in table)
    assert [each.kind for each in table] == sorted((each.kind for each in table), reverse=True)


def test_what_says_nothing_of_a_configuration_has_no_figures(study: StudyRecord, legal: LegalSpace) -> None:
    crashed = TrialResult(outcome="CRASHED", message="no")
    assert figures(study, [trial(0, legal.reference, crashed)]) == []
    [known] = figures(study, [trial(0, legal.reference, out_of_memory())])
    assert not known.fits and known.rate is None and known.outcome == "OOM in backward"
    assert training_changes(known.spec, legal.reference) == []
