"""What each compromise buys against the winner, in figures: less data, other trained parts, another way to run the same.

A row holds one change of the training (or a set of changes that was measured together), or one change in how the same training
runs: ZeRO stage, offloading, checkpointing. Everything that the change leaves open is chosen as a search would: the row is the
fastest configuration under that change that fits. What was measured goes before what was predicted, and predicted speeds and
peaks are compared with the winner's own prediction, never with its measurement.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from autofit.config.floor import DataFloor
from autofit.config.legality import training_changes
from autofit.config.prediction import Prediction
from autofit.config.record import StudyRecord, TrialRecord
from autofit.config.trial import TrialSpec
from autofit.tuning.figures import Evidence, Figures, fastest, figures, of_prediction, of_trial

Kind = Literal["training", "running"]
_Key = tuple[Kind, tuple[str, ...]]
"""What makes a row: its kind and its changes."""
RUNNING = ("zero_stage", "offload_optimizer", "offload_param", "gradient_checkpointing", "attention", "fused_cross_entropy")
"""Knobs that change how a training runs and nothing about what it learns. The micro-batch follows from the rest."""
_WORDS = {
    "gradient_checkpointing": ("gradient checkpointing", "no gradient checkpointing"),
    "offload_optimizer": ("optimizer offloaded", "optimizer not offloaded"),
    "offload_param": ("parameters offloaded", "parameters not offloaded"),
    "fused_cross_entropy": ("Liger kernels", "no Liger kernels"),
}


@dataclass(frozen=True)
class Compromise:
    """One row of the table."""

    kind: Kind
    """`training`: another training than the winner's; `running`: the same in another way."""
    changes: tuple[str, ...]
    """Against the winner, in words: what the row is about."""
    along: tuple[str, ...]
    """What else its configuration does otherwise, the same training granted."""
    best: Figures
    """The fastest configuration under the change that fits; where none does, the one known to come nearest."""
    speedup: float | None
    """Its objective over the winner's, both of the same evidence; None where it does not fit."""
    more_bytes: int | None
    """Its peak less the winner's, both of the same evidence: negative is saved. None where one is not known."""
    truncated_share: float | None
    """Samples that lose tokens; None: the data have no profile."""

    @property
    def evidence(self) -> Evidence:
        """Whether its figures were measured or predicted."""
        return self.best.evidence


def compromise_table(
    study: StudyRecord,
    trials: Sequence[TrialRecord],
    winner: TrialRecord,
    forecasts: Mapping[TrialSpec, Prediction] | None = None,
) -> list[Compromise]:
    """Every compromise that something is known of: other trainings first, each part fastest first, then misses, nearest first.

    Args:
        trials: of the study; only its searching ones count.
        forecasts: predictions of configurations that were not tried.
    """
    groups: dict[_Key, list[Figures]] = {}
    for one in figures(study, trials, forecasts):
        for key in _groups(one, winner.spec):
            groups.setdefault(key, []).append(one)
    base: dict[Evidence, Figures | None] = {"measured": None, "predicted": None}
    if (told := of_trial(study, winner)) is not None:
        base[told.evidence] = told
    prediction = (forecasts or {}).get(winner.spec, winner.prediction)
    if base["predicted"] is None and prediction is not None:
        base["predicted"] = of_prediction(study, winner.spec, prediction)
    rows = [
        _row(key, best, winner.spec, base[best.evidence], study.floor)
        for key, members in groups.items()
        if (best := _best(members)) is not None
    ]
    return sorted(rows, key=_place)


def _place(row: Compromise) -> tuple[Any, ...]:
    """Where a row comes: no two have the same place, whatever order the trials are in."""
    peak = row.best.peak_device_bytes
    return row.kind == "running", not row.best.fits, -(row.speedup or 0.0), peak is None, peak or 0, row.changes


def _groups(one: Figures, winner: TrialSpec) -> Iterable[_Key]:
    """The rows that a configuration belongs to; none for one that only cuts the batch otherwise."""
    changes = tuple(training_changes(one.spec, winner))
    if changes:
        # several changes at once are a row only where they were measured: nobody asked for every combination
        return [("training", changes)] if len(changes) == 1 or (one.evidence == "measured" and one.fits) else []
    return [("running", (way,)) for way in _ways(one.spec, winner)]


def _ways(spec: TrialSpec, winner: TrialSpec) -> list[str]:
    return [_way(name, spec, winner) for name in RUNNING if getattr(spec, name) != getattr(winner, name)]


def _way(name: str, spec: TrialSpec, winner: TrialSpec) -> str:
    mine, theirs = getattr(spec, name), getattr(winner, name)
    if name in _WORDS:
        return _WORDS[name][0 if mine else 1]
    return f"{name} {mine} instead of {theirs}"


def _best(members: Sequence[Figures]) -> Figures | None:
    """Measured to fit, else predicted to fit, else measured or predicted not to: then the lowest known peak."""
    measured = [one for one in members if one.evidence == "measured"]
    predicted = [one for one in members if one.evidence == "predicted"]
    if (best := fastest(measured) or fastest(predicted)) is not None:
        return best
    return min(measured or predicted, key=lambda one: (one.peak_device_bytes is None, one.peak_device_bytes or 0), default=None)


def _row(key: _Key, best: Figures, winner: TrialSpec, base: Figures | None, floor: DataFloor | None) -> Compromise:
    kind, changes = key
    speedup = more = None
    if base is not None and best.fits and best.rate and base.rate:
        speedup = best.rate / base.rate
    if base is not None and best.fits and best.peak_device_bytes is not None and base.peak_device_bytes is not None:
        more = best.peak_device_bytes - base.peak_device_bytes
    along = [way for way in _ways(best.spec, winner) if way not in changes]
    if best.spec.micro_batch_size != winner.micro_batch_size:
        along.append(f"micro-batch {best.spec.micro_batch_size}")
    share = floor.truncated_share(best.spec.cutoff_len) if floor else None
    return Compromise(kind, changes, tuple(along), best, speedup, more, share)
