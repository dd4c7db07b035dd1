"""Samplers over the enumerated legal space, by name.

Every proposal is a point of the space that was not tried yet: what Optuna asks for is mapped to the nearest such point, and
Optuna is told what was really run. The first proposals are the same for `tpe` and `gp`: the reference, then the points that
run the reference's training and lie furthest from everything tried. Points that need at least as much memory as one that ran
out of it are not proposed (except by `grid`, which runs everything).
"""

import importlib.util
import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, TPESampler

from autofit.config.legality import training_changes
from autofit.config.record import TrialRecord
from autofit.config.space import LegalSpace
from autofit.config.trial import TrialSpec
from autofit.errors import UsageError
from autofit.search.history import decode, distributions, to_frozen
from autofit.search.points import cannot_fit, most_distant, nearest

STARTUP_TRIALS = 6
"""Trials of the maximin design before a model is asked."""


@dataclass(frozen=True)
class Proposal:
    """The next configuration and why."""

    spec: TrialSpec
    reason: str


@dataclass(frozen=True)
class Context:
    """What a sampler may look at."""

    space: LegalSpace
    history: Sequence[TrialRecord]
    """Every search trial of the study that has finished, in order."""
    budget_bytes: int
    objective: str
    seed: int


def propose(sampler: str, context: Context) -> Proposal | None:
    """The next untried point under a sampler of `SAMPLERS`, or None when none is left that could fit.

    Raises:
        UsageError: an unknown sampler, or one whose packages are not installed.
    """
    if sampler not in SAMPLERS:
        raise UsageError(f"no sampler '{sampler}'; choose from {', '.join(SAMPLERS)}")
    tried = {trial.spec for trial in context.history}
    if context.space.reference not in tried:
        return Proposal(context.space.reference, "the reference: the recommended start")
    untried = [point for point in context.space.points if point not in tried]
    if sampler != "grid":
        failed = [trial.spec for trial in context.history if trial.out_of_memory]
        untried = [point for point in untried if cannot_fit(point, failed) is None]
    return SAMPLERS[sampler](context, untried) if untried else None


def _tpe(context: Context, untried: Sequence[TrialSpec]) -> Proposal:
    sampler = TPESampler(seed=context.seed + len(context.history), n_startup_trials=STARTUP_TRIALS, multivariate=True)
    return _startup(context, untried) or _ask("tpe", sampler, context, untried)


def _gp(context: Context, untried: Sequence[TrialSpec]) -> Proposal:
    # Optuna's Gaussian process computes with torch: the one case in which a driver loads it, and only when asked to
    if lacking := [name for name in ("torch", "scipy") if importlib.util.find_spec(name) is None]:
        raise UsageError(f"--sampler gp needs {' and '.join(lacking)}: pip install 'autofit-llm[gp]'")
    sampler = GPSampler(seed=context.seed + len(context.history), n_startup_trials=STARTUP_TRIALS)
    return _startup(context, untried) or _ask("gp", sampler, context, untried)


def _random(context: Context, untried: Sequence[TrialSpec]) -> Proposal:
    choice = random.Random(f"{context.seed}:{len(context.history)}").choice(untried)  # noqa: S311 - reproducible, not secret
    return Proposal(choice, f"random: one of {len(untried)} untried")


def _grid(context: Context, untried: Sequence[TrialSpec]) -> Proposal:
    done = len(context.space.points) - len(untried)
    return Proposal(untried[0], f"grid: point {done + 1} of {len(context.space.points)}")


SAMPLERS: dict[str, Callable[[Context, Sequence[TrialSpec]], Proposal]] = {
    "tpe": _tpe,
    "gp": _gp,
    "random": _random,
    "grid": _grid,
}


def _startup(context: Context, untried: Sequence[TrialSpec]) -> Proposal | None:
    if len(context.history) >= STARTUP_TRIALS:
        return None
    asked_for = [point for point in untried if not training_changes(point, context.space.reference)]
    point = most_distant(asked_for or untried, [trial.spec for trial in context.history], context.space)
    return Proposal(point, "start-up: furthest from everything tried")


def _ask(name: str, sampler: BaseSampler, context: Context, untried: Sequence[TrialSpec]) -> Proposal:
    """Asks an Optuna study that holds the history."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        study.add_trials(to_frozen(context.history, context.space, context.budget_bytes, context.objective))
        asked = study.ask(distributions(context.space))
    wanted = context.space.reference.model_copy(update=decode(asked.params, context.space))
    point = nearest(wanted, untried, context.space)
    exact = "as asked" if point == wanted else "the nearest untried legal point"
    return Proposal(point, f"{name}: {exact}, after {len(context.history)} trials")
