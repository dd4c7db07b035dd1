"""What a sampler may look at, put together once a proposal: the study's trials, predictions of its points, earlier studies.

A prediction costs the trace of its structural variant, a second or two on one core, so nothing is predicted that no decision
needs. A search for speed needs the configurations that run the reference's training. What other trainings would buy is asked
when that search is over; then those that are traced already, or run as the best does (ZeRO or none, attention, kernels,
offloading), and of a training of which none of these is predicted to fit, all. Trainings that are made of others which the
space has too are predicted only where nothing fits.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

from autofit.config.model import Model
from autofit.config.prediction import Prediction
from autofit.config.record import TrialRecord
from autofit.config.trial import TrialSpec
from autofit.predict.variants import structure
from autofit.search.expectation import Earlier
from autofit.search.guide import Choice, Halt
from autofit.search.kinds import irreducible, kind_of
from autofit.search.samplers import Context, propose
from autofit.store.store import Store
from autofit.tuning.foresight import Foresight
from autofit.tuning.plan import Plan
from autofit.tuning.reuse import earlier_trials, own_trials
from autofit.tuning.winner import ranking

_WAYS = ("attention", "fused_cross_entropy", "offload_optimizer", "offload_param")
"""Knobs in which another training runs as the best configuration does, beside whether there is ZeRO."""


class Guidance:
    """The proposals of one study. What only sampler `guided` reads is worked out when that first asks."""

    def __init__(self, plan: Plan, store: Store, foresight: Foresight | None, said: Callable[[str], None]) -> None:
        self._plan = plan
        self._store = store
        self._foresight = foresight if plan.study.sampler == "guided" else None
        self._said = said
        self._asked: set[TrialSpec] = set()
        self._forecasts: dict[TrialSpec, Prediction] = {}

    def propose(self, history: Sequence[TrialRecord]) -> Choice | Halt:
        """The next trial after these finished search trials, or why there is none."""
        legal = self._plan.legal
        found = propose(self._plan.study.sampler, self.context(history))
        if isinstance(found, Choice) and not legal.breaches(found.spec):
            return found
        best = next(iter(ranking(self._plan.study, history, legal)), None)
        return propose(self._plan.study.sampler, self.context(history)) if self._look_beside(best) else found

    def context(self, history: Sequence[TrialRecord]) -> Context:
        """What may be looked at after these finished search trials."""
        study, measure = self._plan.study, self._plan.study.space.measure
        context = Context(
            self._plan.legal,
            history,
            study.memory_budget_bytes,
            study.space.rate,
            study.seed,
            steps=measure.warmup_steps + measure.steps,
            compromises=study.space.compromise_trials,
            reference_first=study.source_yaml is not None,
        )
        if study.sampler != "guided":
            return context
        only_taken_over = history and not own_trials(study, history)
        self._predict_own()
        return Context(
            **{
                **vars(context),
                "forecasts": dict(self._forecasts),
                "earlier": self._earlier,
                # an answer that needs no run for its winner needs none for what others would cost
                "compromises": 0 if only_taken_over else context.compromises,
            }
        )

    def beside(self, winner: TrialRecord) -> Mapping[TrialSpec, Prediction]:
        """Predictions of what may stand beside a winner; empty for another sampler than `guided`, and where there are none."""
        self._predict_own()
        self._look_beside(winner)
        return self._forecasts

    def _predict_own(self) -> None:
        """Predicts what may win."""
        self._predict([spec for spec in self._plan.legal.points if not self._plan.legal.breaches(spec)])

    def _look_beside(self, best: TrialRecord | None) -> bool:
        """Predicts other trainings than the reference's, as far as `best` asks for it. Whether anything was new."""
        legal, model = self._plan.legal, self._plan.study.model
        others = [spec for spec in legal.points if legal.breaches(spec)]
        if best is None:
            return self._predict(others)
        traced = {_variant(spec, model) for spec in self._asked}
        others = irreducible(others, legal)
        first = [spec for spec in others if _variant(spec, model) in traced or _runs_as(spec, best.spec)]
        new = self._predict(first)
        fitting = {kind_of(spec, legal) for spec in first if (found := self._forecasts.get(spec)) and found.fits}
        return self._predict([spec for spec in others if kind_of(spec, legal) not in fitting]) or new

    def _predict(self, specs: Sequence[TrialSpec]) -> bool:
        """Predicts those that were not asked about before. Whether there were any."""
        new = [spec for spec in specs if spec not in self._asked]
        if not new or self._foresight is None:
            return False
        self._asked.update(new)
        self._forecasts |= self._foresight.survey(new)
        return True

    @cached_property
    def _earlier(self) -> Sequence[Earlier]:
        found = earlier_trials(self._store, self._plan.study, self._store.trials(self._plan.study.name))
        if found:
            studies = sorted({one.study for one in found})
            self._said(f"{len(found)} trial(s) of {', '.join(studies)} tell how far expectations can be trusted")
        return found


def _variant(spec: TrialSpec, model: Model) -> str:
    return repr(structure(spec, model))


def _runs_as(spec: TrialSpec, best: TrialSpec) -> bool:
    return bool(spec.zero_stage) == bool(best.zero_stage) and all(getattr(spec, way) == getattr(best, way) for way in _WAYS)
