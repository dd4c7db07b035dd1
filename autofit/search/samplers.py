"""Samplers over the enumerated legal space, by name.

Every proposal is a point of the space that was not tried yet. `guided` chooses one and says when no further trial is worth its
time; what the others ask for is mapped to the nearest such point, and Optuna is told what was really run. The first proposals
are the same for `tpe` and `gp`: the reference, then the points that run the reference's training and lie furthest from
everything tried. Points that need at least as much memory as one that ran out of it are not proposed (except by `grid`, which
runs everything).
"""

import importlib.util
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, TPESampler
from optuna.trial import FrozenTrial

from autofit.config.prediction import Prediction
from autofit.config.record import TrialRecord
from autofit.config.space import LegalSpace
from autofit.config.trial import TrialSpec
from autofit.errors import UsageError
from autofit.search.expectation import Earlier
from autofit.search.guide import Choice, Guide, Halt, Nearest
from autofit.search.guided import GuidedSampler
from autofit.search.history import decode, distributions, to_frozen
from autofit.search.points import distance, may_fit, most_distant, nearest

STARTUP_TRIALS = 6
"""Trials of the maximin design before a model is asked."""


@dataclass(frozen=True)
class Context:
    """What a sampler may look at."""

    space: LegalSpace
    history: Sequence[TrialRecord]
    """Every search trial of the study that has finished, in order."""
    budget_bytes: int
    objective: str
    seed: int
    forecasts: Mapping[TrialSpec, Prediction] = field(default_factory=dict)
    """What is predicted of the points, as far as they can be predicted. Only `guided` reads this and what follows."""
    earlier: Sequence[Earlier] = ()
    """Trials of earlier studies of the same model family, stack and device."""
    steps: int = 7
    """Optimizer steps of a trial."""
    compromises: int = 3
    """Trials at most that measure another training than the reference's."""
    reference_first: bool = False
    """Whether the reference runs first even where it is predicted not to fit."""


def propose(sampler: str, context: Context) -> Choice | Halt:
    """The next untried point under a sampler of `SAMPLERS`, or why there is none.

    Raises:
        UsageError: an unknown sampler, or one whose packages are not installed.
    """
    if sampler not in SAMPLERS:
        raise UsageError(f"no sampler '{sampler}'; choose from {', '.join(SAMPLERS)}")
    if sampler == "guided":
        return _guided(context)
    tried = {trial.spec for trial in context.history}
    if context.space.reference not in tried:
        return Choice(context.space.reference, "the reference: the recommended start")
    untried = [point for point in context.space.points if point not in tried]
    if sampler != "grid":
        failed = [trial.spec for trial in context.history if trial.out_of_memory]
        untried = may_fit(untried, failed)
    return SAMPLERS[sampler](context, untried) if untried else Halt("every configuration that may fit was tried")


def nearest_to_budget(context: Context) -> Nearest:
    """The configuration that runs the reference's training in the least memory, tried or not."""
    sampler = _guided_sampler(context)
    return sampler.guide.nearest(sampler.seen(_frozen(context)))


def _guided(context: Context) -> Choice | Halt:
    return _guided_sampler(context).decide(_frozen(context))


def _guided_sampler(context: Context) -> GuidedSampler:
    guide = Guide(
        context.space,
        context.budget_bytes,
        context.objective,
        context.forecasts,
        context.earlier,
        context.steps,
        context.compromises,
        context.reference_first,
    )
    return GuidedSampler(guide)


def _frozen(context: Context) -> list[FrozenTrial]:
    return to_frozen(context.history, context.space, context.budget_bytes, context.objective)


def _tpe(context: Context, untried: Sequence[TrialSpec]) -> Choice:
    sampler = TPESampler(seed=context.seed + len(context.history), n_startup_trials=STARTUP_TRIALS, multivariate=True)
    return _startup(context, untried) or _ask("tpe", sampler, context, untried)


def _gp(context: Context, untried: Sequence[TrialSpec]) -> Choice:
    # Optuna's Gaussian process computes with torch: the one case in which a driver loads it, and only when asked to
    if lacking := [name for name in ("torch", "scipy") if importlib.util.find_spec(name) is None]:
        raise UsageError(f"--sampler gp needs {' and '.join(lacking)}: pip install 'autofit-llm[gp]'")
    sampler = GPSampler(seed=context.seed + len(context.history), n_startup_trials=STARTUP_TRIALS)
    return _startup(context, untried) or _ask("gp", sampler, context, untried)


def _random(context: Context, untried: Sequence[TrialSpec]) -> Choice:
    choice = random.Random(f"{context.seed}:{len(context.history)}").choice(untried)  # noqa: S311 - reproducible, not secret
    return Choice(choice, f"random: one of {len(untried)} untried")


def _grid(context: Context, untried: Sequence[TrialSpec]) -> Choice:
    done = len(context.space.points) - len(untried)
    return Choice(untried[0], f"grid: point {done + 1} of {len(context.space.points)}")


SAMPLERS: dict[str, Callable[[Context, Sequence[TrialSpec]], Choice | Halt]] = {
    "guided": lambda context, untried: _guided(context),
    "tpe": _tpe,
    "gp": _gp,
    "random": _random,
    "grid": _grid,
}


def _startup(context: Context, untried: Sequence[TrialSpec]) -> Choice | None:
    if len(context.history) >= STARTUP_TRIALS:
        return None
    asked_for = [point for point in untried if not context.space.breaches(point)]
    point = most_distant(asked_for or untried, [trial.spec for trial in context.history], context.space)
    return Choice(point, "start-up: furthest from everything tried")


def _ask(name: str, sampler: BaseSampler, context: Context, untried: Sequence[TrialSpec]) -> Choice:
    """Asks an Optuna study that holds the history."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    kinds = distributions(context.space)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        study.add_trials(_frozen(context))
        asked = study.ask(kinds)
    wanted = context.space.reference.model_copy(update=decode(asked.params, context.space, kinds))
    point = nearest(wanted, untried, context.space, kinds)
    exact = (
        "as asked"
        if not distance(wanted, point, {name: context.space.knobs[name] for name in kinds})
        else "the nearest untried legal point"
    )
    return Choice(point, f"{name}: {exact}, after {len(context.history)} trials")
