"""The guided search on a space with a known truth: right, wrong and absent predictions, walls, crashes, halts."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import optuna
import pytest

from autofit.config.legality import training_changes
from autofit.config.model import Model
from autofit.config.prediction import Prediction
from autofit.config.space import LegalSpace, SearchSpace, enumerate_space
from autofit.config.trial import TrialSpec
from autofit.search.guide import Choice, Guide, Halt, Seen
from autofit.search.guided import GuidedSampler
from autofit.search.history import decode, distributions

sys.path.insert(0, str(Path(__file__).parents[1]))
import stub_worker

MIB = 1024**2
BUDGET = 165 * MIB


@pytest.fixture
def legal(tiny_space: SearchSpace, tiny_model: Model) -> LegalSpace:
    return enumerate_space(tiny_space, tiny_model, 2)


def peak(spec: TrialSpec) -> int:
    return stub_worker.peak_bytes(spec.model_dump())


def speed(spec: TrialSpec) -> float:
    return float(spec.global_batch_size / stub_worker.step_seconds(spec.model_dump()))


def predicted(spec: TrialSpec, memory: float, time: float) -> Prediction:
    needed = int(peak(spec) * memory)
    peaks = {f"peak_{name}_bytes{end}": needed for name in ("allocated", "reserved", "device") for end in ("", "_low", "_high")}
    samples = speed(spec) / time
    return Prediction(
        **peaks,
        step_time_seconds=spec.global_batch_size / samples,
        samples_per_second=samples,
        tokens_per_second=samples * spec.cutoff_len,
        fits=None,
        terms={},
        phase="forward",
        precision_mode="",
        device_model="",
        assumptions=[],
        not_modelled=[],
        versions={},
    )


def forecasts(legal: LegalSpace, memory: float = 1.0, time: float = 1.0) -> dict[TrialSpec, Prediction]:
    return {spec: predicted(spec, memory, time) for spec in legal.points}


def run(spec: TrialSpec, budget: int) -> Seen:
    if peak(spec) > budget:
        return Seen(spec, at_least_bytes=budget)
    return Seen(spec, speed(spec), peak(spec), step_seconds=spec.global_batch_size / speed(spec), startup_seconds=5.0)


@dataclass
class Search:
    seen: list[Seen]
    reasons: list[str]
    halt: str

    def best(self, legal: LegalSpace) -> float:
        return max(
            (one.speed or 0.0 for one in self.seen if not training_changes(one.spec, legal.reference)),
            default=0.0,
        )

    @property
    def failures(self) -> int:
        return sum(one.at_least_bytes is not None for one in self.seen)


def search(
    legal: LegalSpace,
    told: Mapping[TrialSpec, Prediction],
    budget: int = BUDGET,
    worker: Callable[[TrialSpec, int], Seen] = run,
    limit: int = 60,
) -> Search:
    guide = Guide(legal, budget, "samples_per_second", told)
    found = Search([], [], "")
    while len(found.seen) < limit:
        decided = guide.decide(found.seen)
        if isinstance(decided, Halt):
            found.halt = decided.reason
            break
        assert decided.spec not in {one.spec for one in found.seen}
        found.seen.append(worker(decided.spec, budget))
        found.reasons.append(decided.reason)
    return found


def exhaustive(legal: LegalSpace, budget: int = BUDGET) -> float:
    asked_for = [spec for spec in legal.points if not training_changes(spec, legal.reference) and peak(spec) <= budget]
    return max(map(speed, asked_for))


@pytest.mark.parametrize("budget", [130, 165, 204, 400])
def test_right_predictions_find_the_best_in_a_few_trials_and_stop(legal: LegalSpace, budget: int) -> None:
    found = search(legal, forecasts(legal), budget * MIB)
    first = next(n for n, one in enumerate(found.seen, 1) if (one.speed or 0) >= 0.98 * exhaustive(legal, budget * MIB))
    assert first <= 8
    assert found.halt and len(found.seen) <= 15
    assert found.failures <= 1


@pytest.mark.parametrize("memory", [0.7, 1.3])
@pytest.mark.parametrize("time", [0.7, 1.3])
@pytest.mark.parametrize("budget", [130, 165, 204])
def test_a_predictor_that_is_wrong_by_30_percent_is_recovered_from(
    legal: LegalSpace, memory: float, time: float, budget: int
) -> None:
    found = search(legal, forecasts(legal, memory, time), budget * MIB, limit=15)
    assert found.best(legal) >= 0.95 * exhaustive(legal, budget * MIB)


@pytest.mark.parametrize("budget", [130, 165, 204])
def test_nothing_predicted_still_finds_the_best(legal: LegalSpace, budget: int) -> None:
    found = search(legal, {}, budget * MIB)
    assert found.seen[0].spec == legal.reference
    assert found.best(legal) >= 0.95 * exhaustive(legal, budget * MIB)
    assert len(found.seen) < len(legal.points) / 4


def test_the_reference_comes_first_unless_it_is_predicted_not_to_fit(legal: LegalSpace) -> None:
    needed = peak(legal.reference)
    told = forecasts(legal)

    def starts_with_it(budget: int, **given: bool) -> bool:
        decided = Guide(legal, budget, "samples_per_second", told, **given).decide([])
        assert isinstance(decided, Choice)
        return decided.reason.startswith("the reference") and decided.spec == legal.reference

    assert starts_with_it(2 * needed)
    assert not starts_with_it(int(0.8 * needed))
    assert starts_with_it(int(0.8 * needed), reference_first=True)


def test_a_space_that_is_predicted_not_to_fit_is_tried_all_the_same(legal: LegalSpace) -> None:
    """The predictor says 30 % too much, so that everything seems over budget; one configuration just fits."""
    asked_for = [spec for spec in legal.points if not training_changes(spec, legal.reference)]
    least = min(asked_for, key=peak)
    found = search(legal, forecasts(legal, memory=1.4), int(1.02 * peak(least)), limit=15)
    assert found.best(legal) > 0


def test_every_reason_has_its_figures(legal: LegalSpace) -> None:
    found = search(legal, forecasts(legal))
    assert all("% likely to fit" in reason for reason in found.reasons)
    assert all("/s (" in reason and "MiB of 165.0 MiB" in reason for reason in found.reasons[1:])
    assert "highest bound is" in found.halt


def test_another_training_is_tried_last_a_few_times_and_where_it_surely_fits(legal: LegalSpace) -> None:
    found = search(legal, forecasts(legal))
    others = [one for one in found.seen if training_changes(one.spec, legal.reference)]
    kinds = {tuple(training_changes(one.spec, legal.reference)) for one in others}
    assert 0 < len(others) == len(kinds) <= 3
    assert all(len(kind) == 1 for kind in kinds), "several changes that the space has one by one too"
    assert all(one.at_least_bytes is None for one in others)
    first = found.seen.index(others[0])
    assert max((one.speed or 0) for one in found.seen[:first]) >= 0.98 * exhaustive(legal)


def test_another_training_of_which_nothing_is_predicted_is_not_tried(legal: LegalSpace) -> None:
    own = {spec: told for spec, told in forecasts(legal).items() if not legal.breaches(spec)}
    found = search(legal, own)
    assert found.halt and not any(legal.breaches(one.spec) for one in found.seen)


def test_no_compromise_is_tried_when_none_is_wanted(legal: LegalSpace) -> None:
    guide = Guide(legal, BUDGET, "samples_per_second", forecasts(legal), compromises=0)
    seen: list[Seen] = []
    while isinstance(decided := guide.decide(seen), Choice):
        assert training_changes(decided.spec, legal.reference) == []
        seen.append(run(decided.spec, BUDGET))
    assert seen


@pytest.mark.parametrize("told", [True, False])
def test_nothing_fits_ends_soon_and_names_the_nearest_miss(legal: LegalSpace, told: bool) -> None:
    budget = 90 * MIB
    asked_for = [spec for spec in legal.points if not training_changes(spec, legal.reference)]
    least = min(asked_for, key=peak)
    assert peak(least) > budget
    known = forecasts(legal) if told else {}
    found = search(legal, known, budget)
    assert found.failures <= (3 if told else 16)  # and up to three that price a compromise
    assert found.best(legal) == 0
    near = Guide(legal, budget, "samples_per_second", known).nearest(found.seen)
    assert near.peak_bytes > budget and not near.measured and near.high_bytes >= near.peak_bytes
    if told:
        assert near.peak_bytes == pytest.approx(peak(least), rel=0.15)


def test_what_crashes_is_not_tried_next_door(legal: LegalSpace) -> None:
    """ZeRO-0 cannot run here: after a crash, the next attempt is another stage."""

    def broken(spec: TrialSpec, budget: int) -> Seen:
        return Seen(spec) if spec.zero_stage == 0 else run(spec, budget)

    found = search(legal, forecasts(legal), worker=broken)
    crashed = [place for place, one in enumerate(found.seen) if one.failed]
    assert crashed and all(b - a > 1 for a, b in pairwise(crashed))
    runs = [s for s in legal.points if s.zero_stage and not training_changes(s, legal.reference) and peak(s) <= BUDGET]
    assert found.best(legal) >= 0.95 * max(map(speed, runs))


def test_the_bytes_of_an_out_of_memory_rule_more_out(legal: LegalSpace) -> None:
    """A bound far above the budget makes what is expected to need as much hopeless; one at the budget does not."""
    told = forecasts(legal, memory=0.7)
    failed = max((s for s in legal.points if not training_changes(s, legal.reference)), key=peak)
    others = sorted((s for s in legal.points if s.zero_stage == 3 and not training_changes(s, legal.reference)), key=peak)

    def chance(bound: int) -> float:
        guide = Guide(legal, BUDGET, "samples_per_second", told)
        from autofit.search.expectation import Expectation

        expected = Expectation(told, legal.reference, BUDGET, "samples_per_second")
        return float(guide._outlook(expected, [others[-1]], [Seen(failed, at_least_bytes=bound)]).fits[0])

    assert chance(2 * BUDGET) < chance(BUDGET) - 0.05


def test_an_optuna_user_can_take_the_sampler(legal: LegalSpace) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    kinds = distributions(legal)
    sampler = GuidedSampler(Guide(legal, BUDGET, "samples_per_second", forecasts(legal)))
    points = {frozenset((k, getattr(s, k)) for k in kinds): s for s in legal.points}

    def objective(trial: optuna.Trial) -> float:
        params = {name: trial._suggest(name, kind) for name, kind in kinds.items()}
        spec = points[frozenset(decode(params, legal, kinds).items())]
        told = run(spec, BUDGET)
        if told.peak_bytes is None:
            trial.set_user_attr("at_least_bytes", BUDGET)
            raise optuna.TrialPruned
        trial.set_user_attr("peak_bytes", told.peak_bytes)
        assert told.speed is not None
        return told.speed

    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(objective, n_trials=60)
    assert isinstance(sampler.decided, Halt) and len(study.trials) < 20
    ran = [(points[frozenset(decode(t.params, legal, kinds).items())], t.value) for t in study.trials if t.value]
    own = [value for spec, value in ran if not training_changes(spec, legal.reference)]
    assert max(own) >= 0.98 * exhaustive(legal)
