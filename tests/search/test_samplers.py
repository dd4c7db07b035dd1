"""Samplers propose only what is legal and untried, avoid what cannot fit, and learn where the wall is."""

import statistics
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from autofit.config.legality import training_changes
from autofit.config.model import Model
from autofit.config.record import TrialRecord
from autofit.config.result import TrialResult
from autofit.config.space import LegalSpace, SearchSpace, enumerate_space
from autofit.config.trial import TrialSpec
from autofit.errors import UsageError
from autofit.search.guide import Choice, Halt
from autofit.search.history import decode, distributions, encode, memory_violation, to_frozen
from autofit.search.points import cannot_fit, nearest
from autofit.search.samplers import SAMPLERS, Context, propose

sys.path.insert(0, str(Path(__file__).parents[1]))
import stub_worker

BUDGET = 204 * 1024**2  # full fine-tuning without sharding leaves room for a micro-batch of one
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def legal(tiny_space: SearchSpace, tiny_model: Model) -> LegalSpace:
    return enumerate_space(tiny_space, tiny_model, 2)


def record(number: int, spec: TrialSpec, result: TrialResult) -> TrialRecord:
    return TrialRecord(
        study="s", trial_number=number, spec=spec, reason="", run_dir="", started_at=NOW, finished_at=NOW, result=result
    )


def measured(spec: TrialSpec, budget: int) -> TrialResult:
    """What the stub worker would come back with."""
    run = {"trial": spec.model_dump(), "memory_budget_bytes": budget, "measure": {"warmup_steps": 1, "steps": 3}}
    return TrialResult.model_validate(stub_worker.result_of(run))


def search(sampler: str, legal: LegalSpace, trials: int, seed: int = 0, budget: int = BUDGET) -> list[TrialRecord]:
    history: list[TrialRecord] = []
    while len(history) < trials:
        proposal = propose(sampler, Context(legal, history, budget, "samples_per_second", seed))
        if isinstance(proposal, Halt):
            break
        history.append(record(len(history), proposal.spec, measured(proposal.spec, budget)))
    return history


@pytest.mark.parametrize("sampler", sorted({*SAMPLERS} - {"guided"}))  # which may end the search sooner
def test_every_sampler_starts_with_the_reference_and_repeats_nothing(sampler: str, legal: LegalSpace) -> None:
    history = search(sampler, legal, 12)
    assert history[0].spec == legal.reference
    assert len({trial.spec for trial in history}) == 12
    assert {trial.spec for trial in history} <= set(legal.points)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_seed_repeats_a_search_and_another_changes_it(sampler: str, legal: LegalSpace) -> None:
    first, again, other = (search(sampler, legal, 14, seed) for seed in (1, 1, 2))
    assert [trial.spec for trial in first] == [trial.spec for trial in again]
    assert [trial.spec for trial in first] != [trial.spec for trial in other]


def test_grid_runs_everything_once(legal: LegalSpace) -> None:
    history = search("grid", legal, 10_000)
    assert {trial.spec for trial in history} == set(legal.points)
    assert len(history) == len(legal.points)


def test_the_start_up_sees_every_zero_stage_of_the_training_that_was_asked_for(legal: LegalSpace) -> None:
    history = search("tpe", legal, 6)
    assert {trial.spec.zero_stage for trial in history} == {0, 2, 3}
    assert {trial.spec.gradient_checkpointing for trial in history} == {True, False}
    assert [training_changes(trial.spec, legal.reference) for trial in history] == [[]] * 6


def test_nothing_larger_than_what_ran_out_of_memory_is_tried(legal: LegalSpace) -> None:
    history = search("random", legal, 10_000)
    failed: list[TrialSpec] = []
    for trial in history:
        assert cannot_fit(trial.spec, failed) is None
        if trial.out_of_memory:
            failed.append(trial.spec)
    skipped = set(legal.points) - {trial.spec for trial in history}
    assert skipped, "the budget is low enough that some must be skipped"
    assert all(measured(spec, BUDGET).outcome == "OOM" for spec in skipped)


def test_only_more_of_the_same_is_known_to_need_more(legal: LegalSpace) -> None:
    failed = legal.reference.model_copy(update={"micro_batch_size": 2, "gradient_accumulation_steps": 4})
    larger = failed.model_copy(update={"micro_batch_size": 4, "gradient_accumulation_steps": 2})
    assert cannot_fit(larger, [failed]) == failed
    assert cannot_fit(failed, [failed]) == failed
    assert cannot_fit(legal.reference, [failed]) is None  # a smaller micro-batch
    assert cannot_fit(larger.model_copy(update={"freeze_vision_tower": False}), [failed]) is None  # another training
    assert cannot_fit(larger.model_copy(update={"gradient_accumulation_steps": 1}), [failed]) is None  # frees gradients sooner


def test_out_of_memory_is_a_violated_constraint_and_never_a_failure(legal: LegalSpace) -> None:
    point = legal.points[-1]
    oom = record(0, point, TrialResult(outcome="OOM", phase="backward", requested_bytes=BUDGET // 2))
    fits = record(1, legal.reference, measured(legal.reference, 10**12))
    crashed = record(2, legal.points[3], TrialResult(outcome="CRASHED"))
    told = to_frozen([oom, fits, crashed], legal, BUDGET, "samples_per_second")
    assert [trial.state.name for trial in told] == ["COMPLETE", "COMPLETE", "FAIL"]
    assert told[0].constraints["memory"] == pytest.approx(0.5)
    assert told[0].value == told[1].value  # no throughput was measured: the lowest that was
    assert told[1].constraints["quality"] == 0.0


def test_a_peak_over_the_budget_violates_although_it_ran(legal: LegalSpace) -> None:
    result = measured(legal.reference, 10**12).model_copy(update={"peak_device_bytes": BUDGET * 2})
    assert memory_violation(record(0, legal.reference, result), BUDGET) == pytest.approx(1.0)


def test_knobs_survive_the_way_to_optuna_and_back(legal: LegalSpace) -> None:
    kinds = distributions(legal)
    assert "gradient_accumulation_steps" not in kinds  # it follows from the micro-batch
    for point in legal.points:
        params = encode(point, legal, kinds)
        assert all(kinds[name].to_internal_repr(value) is not None for name, value in params.items())
        assert all(getattr(point, name) == value for name, value in decode(params, legal, kinds).items())


def test_tpe_learns_where_the_wall_is(legal: LegalSpace) -> None:
    """Against random, over seeds: fewer trials out of memory after the start-up, and a better answer."""
    budget = 165 * 1024**2  # at which a random choice runs out of memory now and then

    def late_ooms(history: Sequence[TrialRecord]) -> int:
        return sum(trial.out_of_memory for trial in history[6:])

    def best(history: Sequence[TrialRecord]) -> float:
        asked_for = [trial for trial in history if trial.fits and not training_changes(trial.spec, legal.reference)]
        return max(trial.result.samples_per_second or 0.0 for trial in asked_for if trial.result)

    tpe, blind = ([search(name, legal, 24, seed, budget) for seed in range(4)] for name in ("tpe", "random"))
    assert statistics.mean(map(late_ooms, tpe)) < statistics.mean(map(late_ooms, blind))
    assert statistics.mean(map(best, tpe)) > statistics.mean(map(best, blind))


def test_what_a_model_asks_for_is_what_is_run(legal: LegalSpace) -> None:
    """The accumulation follows from the micro-batch, so it must not pull a wanted micro-batch back to the reference's."""
    wanted = legal.reference.model_copy(update={"micro_batch_size": 4})  # with the reference's accumulation, as decoded
    point = nearest(wanted, legal.points, legal, distributions(legal))
    assert point == wanted.model_copy(update={"gradient_accumulation_steps": 1})


def test_an_unknown_sampler_is_named(legal: LegalSpace) -> None:
    with pytest.raises(UsageError, match="no sampler 'annealing'; choose from guided, tpe"):
        propose("annealing", Context(legal, [record(0, legal.reference, TrialResult(outcome="CRASHED"))], 1, "x", 0))


def test_every_proposal_says_why(legal: LegalSpace) -> None:
    for sampler in SAMPLERS:
        proposal = propose(sampler, Context(legal, [], BUDGET, "samples_per_second", 0))
        assert isinstance(proposal, Choice) and "recommended start" in proposal.reason
