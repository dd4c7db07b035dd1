"""The default sampler: an Optuna sampler whose proposals come from an enumerated legal space, best first.

With `propose` (`samplers.py`) it serves autofit's own searches. An Optuna user can give it to a study of his own, directed to
maximise, over `distributions(space)`; his objective reports memory with each trial:

    trial.set_user_attr("peak_bytes", 71 * 1024**3)         # it ran, and this was its peak
    trial.set_user_attr("at_least_bytes", 80 * 1024**3)     # it ran out of memory, and its peak is above this
"""

from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from autofit.config.space import Value
from autofit.config.trial import TrialSpec
from autofit.search.guide import Choice, Guide, Halt, Seen
from autofit.search.history import distributions, encode

Params = frozenset[tuple[str, Value]]


class GuidedSampler(BaseSampler):  # type: ignore[misc,unused-ignore]
    """Proposes what `guide` decides; ends the study when it halts."""

    def __init__(self, guide: Guide) -> None:
        self.guide = guide
        self.decided: Choice | Halt | None = None
        """What the last proposal was, and why."""
        self._kinds = distributions(guide.space)
        self._points: dict[Params, TrialSpec] = {
            frozenset(encode(spec, guide.space, self._kinds).items()): spec for spec in guide.space.points
        }

    def decide(self, trials: Sequence[FrozenTrial]) -> Choice | Halt:
        """The next configuration after finished trials of the space, or why there should be none."""
        self.decided = self.guide.decide(self.seen(trials))
        return self.decided

    def seen(self, trials: Sequence[FrozenTrial]) -> list[Seen]:
        """What the finished ones among these trials told of points of the space."""
        finished = [trial for trial in trials if trial.state.is_finished()]
        found = [(self._points.get(frozenset(trial.params.items())), trial) for trial in finished]
        return [_seen(spec, trial) for spec, trial in found if spec is not None]

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All knobs are chosen together."""
        return self._kinds

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        """The parameters of the chosen point. When the search is over: the reference's, and the study is stopped."""
        decided = self.decide(study.get_trials(deepcopy=False))
        if isinstance(decided, Choice):
            return dict(encode(decided.spec, self.guide.space, self._kinds))
        study.stop()
        return dict(encode(self.guide.space.reference, self.guide.space, self._kinds))

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A parameter that the space does not know: at random, as Optuna's own samplers do."""
        return RandomSampler().sample_independent(study, trial, param_name, param_distribution)


def _seen(spec: TrialSpec, trial: FrozenTrial) -> Seen:
    told: Mapping[str, Any] = trial.user_attrs
    measured = trial.state == TrialState.COMPLETE and told.get("peak_bytes") is not None
    return Seen(
        spec=spec,
        speed=trial.value if measured else None,
        peak_bytes=told.get("peak_bytes"),
        at_least_bytes=told.get("at_least_bytes"),
        step_seconds=told.get("step_seconds"),
        startup_seconds=told.get("startup_seconds"),
    )
