"""What a sampler may look at, put together once a proposal: the study's trials, predictions of its points, earlier studies."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

from autofit.config.prediction import Prediction
from autofit.config.record import TrialRecord
from autofit.config.trial import TrialSpec
from autofit.search.expectation import Earlier
from autofit.search.samplers import Context
from autofit.store.store import Store
from autofit.tuning.foresight import Foresight
from autofit.tuning.plan import Plan
from autofit.tuning.reuse import earlier_trials, own_trials


class Guidance:
    """The contexts of one study's proposals. What only sampler `guided` reads is worked out when that first asks."""

    def __init__(self, plan: Plan, store: Store, foresight: Foresight | None, said: Callable[[str], None]) -> None:
        self._plan = plan
        self._store = store
        self._foresight = foresight
        self._said = said

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
        return Context(
            **{
                **vars(context),
                "forecasts": self.forecasts,
                "earlier": self._earlier,
                # an answer that needs no run for its winner needs none for what others would cost
                "compromises": 0 if only_taken_over else context.compromises,
            }
        )

    @cached_property
    def forecasts(self) -> Mapping[TrialSpec, Prediction]:
        """Predictions of the space's configurations; empty for another sampler than `guided`, and where there are none."""
        if self._plan.study.sampler != "guided":
            return {}
        return self._foresight.survey(self._plan.legal.points) if self._foresight else {}

    @cached_property
    def _earlier(self) -> Sequence[Earlier]:
        found = earlier_trials(self._store, self._plan.study, self._store.trials(self._plan.study.name))
        if found:
            studies = sorted({one.study for one in found})
            self._said(f"{len(found)} trial(s) of {', '.join(studies)} tell how far expectations can be trusted")
        return found
