"""The winner trains what the user asked for, over every shipped space, however much faster something else would be.

Speeds and memory here are made up so that every trade of data or of trained parts is faster and smaller. Trainable parameters
are counted on the real model, built without weights.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from store_records import completed, prediction

from autofit.config.floor import DataFloor
from autofit.config.model import Model, resolve_model
from autofit.config.record import TrialRecord
from autofit.config.space import LegalSpace, SearchSpace, enumerate_space
from autofit.config.trial import TrialSpec
from autofit.predict.many import Answers
from autofit.resources import resource_dir
from autofit.store.store import Store
from autofit.tuning.plan import Plan, SearchRequest, plan_study
from autofit.tuning.survey import run_survey
from autofit.tuning.winner import ranking
from autofit.units import GIB

SPACES = sorted(file.stem for file in resource_dir("search_spaces").glob("*.yaml"))
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
LONGER = (100, 60, 45, 30, 10, 4, 1)
FLOOR = DataFloor(image_max_pixels=1, lengths=(50, 100, 150, 200, 1500, 3000, 6000), longer=LONGER)


def tempting(spec: TrialSpec) -> float:
    """Samples a second: every trade makes a configuration faster."""
    trades = [
        10_000 / spec.cutoff_len,
        2.0 * spec.freeze_vision_tower,
        2.0 * spec.freeze_multi_modal_projector,
        9.0 * spec.freeze_language_model,
        5.0 * (spec.method != "full"),
        3.0 * (spec.precision != "fp32"),
        0.1 * spec.micro_batch_size,
    ]
    return 1.0 + sum(trades)


@cache
def trained_parameters(space: str, choice: TrialSpec) -> int:
    """Of the real model."""
    pytest.importorskip("torch")
    from autofit.worker.models import build, parameter_counts

    model = resolve_model(SearchSpace.load(space).model)
    relevant = choice.model_copy(update={"micro_batch_size": 1, "zero_stage": 0, "gradient_checkpointing": False})
    return int(parameter_counts(build(model.model_dump(), relevant.model_dump(mode="json"), 0, "meta"))[0])


def legal_space(name: str, **quality: Any) -> LegalSpace:
    space = SearchSpace.load(name)
    space = space.model_copy(update={"quality": space.quality.model_validate(quality)})
    return enumerate_space(space, resolve_model(space.model), space.num_gpus or space.planned_gpus, FLOOR)


def winner_of(name: str, legal: LegalSpace) -> TrialSpec:
    from store_records import study_record

    study = study_record("s", space=SearchSpace.load(name).model_dump(exclude_unset=True))
    trials = [
        TrialRecord(
            study="s", trial_number=n, spec=spec, reason="r", run_dir=".", started_at=NOON, finished_at=NOON,
            result=completed(tempting(spec), 10.0),
        )
        for n, spec in enumerate(legal.points)
    ]  # fmt: skip
    return ranking(study, trials, legal)[0].spec


def check_kept(name: str, winner: TrialSpec, legal: LegalSpace) -> None:
    wanted = legal.reference
    assert winner.global_batch_size == wanted.global_batch_size
    share = legal.truncated_share(winner)
    assert share is not None and share <= (legal.truncated_share(wanted) or 0.0)
    assert trained_parameters(name, winner) == trained_parameters(name, wanted)
    assert (winner.precision, winner.pure_bf16, winner.images) == (wanted.precision, wanted.pure_bf16, wanted.images)


@pytest.mark.parametrize("name", SPACES)
def test_a_search_changes_nothing_silently(name: str) -> None:
    legal = legal_space(name)
    winner = winner_of(name, legal)
    check_kept(name, winner, legal)
    fastest = max(legal.points, key=tempting)
    assert tempting(fastest) > tempting(winner), "the temptation must be there"


@pytest.mark.parametrize("name", SPACES)
def test_what_is_allowed_is_taken_and_nothing_more(name: str) -> None:
    cutoffs = sorted({point.cutoff_len for point in legal_space(name).points})
    share = FLOOR.truncated_share(cutoffs[0])
    legal = legal_space(name, max_truncated_share=share)
    winner = winner_of(name, legal)
    assert winner.cutoff_len == cutoffs[0] < legal.reference.cutoff_len
    assert legal.truncated_share(winner) == share and winner.global_batch_size == legal.reference.global_batch_size
    assert trained_parameters(name, winner) == trained_parameters(name, legal.reference)


class Tempting:
    """A predictor by whom every trade is faster."""

    def prepare(self, specs: Sequence[tuple[TrialSpec, Model]], progress: Any) -> None:
        """Nothing is traced."""

    def many(self, specs: Sequence[TrialSpec], model: Model, gpu_mem_bytes: int | None) -> Iterator[Answers]:
        for spec in specs:
            yield {spec: prediction(10.0, 11.0, samples_per_second=tempting(spec))}


@pytest.mark.parametrize("name", SPACES)
def test_a_survey_changes_nothing_silently(name: str, tmp_path: Path, stub_python: str) -> None:
    store = Store.open(f"sqlite:///{tmp_path}/autofit.db")
    plan = plan_study(SearchRequest(gpu_mem_bytes=80 * GIB, space=name, device="none", python=stub_python, study="s"))
    store.create_study(plan.study)
    legal = legal_space(name)
    report = run_survey(store, Plan(plan.study, plan.legal), Tempting(), lambda what, done, of: None)  # type: ignore[arg-type]
    assert report.winner is not None
    check_kept(name, report.winner.spec, legal)
