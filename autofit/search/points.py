"""Distances and dominance between points of an enumerated space. No Optuna here."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

from autofit.config.space import LegalSpace, Value
from autofit.config.trial import TrialSpec

GROWS_WITH = ("micro_batch_size", "cutoff_len")
"""Knobs of which more always needs more memory, everything else equal. (Not so checkpointing, freezing or ZeRO stages: fewer
trainable parts can need more.)"""
_SAME = tuple(name for name in TrialSpec.model_fields if name not in {*GROWS_WITH, "gradient_accumulation_steps"})


def is_ordered(name: str, value: Value) -> bool:
    """Whether a knob's values lie on a line. ZeRO stages are numbered but are four ways to work, not four amounts."""
    return isinstance(value, int) and not isinstance(value, bool) and name != "zero_stage"


def position(value: Value, values: Sequence[Value]) -> float:
    """Where a knob's value lies among its ordered values, 0 to 1."""
    return values.index(value) / (len(values) - 1)


def distance(a: TrialSpec, b: TrialSpec, knobs: dict[str, tuple[Value, ...]]) -> float:
    """Sum over the varying knobs: the gap in position for numbers, 0 or 1 for names and flags."""
    total = 0.0
    for name, values in knobs.items():
        left, right = getattr(a, name), getattr(b, name)
        if is_ordered(name, left):
            total += abs(position(left, values) - position(right, values))
        else:
            total += float(left != right)
    return total


def nearest(
    wanted: TrialSpec, candidates: Sequence[TrialSpec], space: LegalSpace, knobs: Collection[str] | None = None
) -> TrialSpec:
    """The candidate closest to `wanted`; the first in enumeration order where several are.

    Args:
        knobs: those that were really asked for; None: all that vary. An accumulation that follows from the micro-batch must
            not be held against a candidate.
    """
    asked = {name: values for name, values in space.knobs.items() if knobs is None or name in knobs}
    return min(candidates, key=lambda point: distance(wanted, point, asked))


def most_distant(candidates: Sequence[TrialSpec], tried: Sequence[TrialSpec], space: LegalSpace) -> TrialSpec:
    """The candidate whose nearest tried point is furthest away (maximin design): what is known least about."""
    return max(candidates, key=lambda point: min((distance(point, other, space.knobs) for other in tried), default=0.0))


def may_fit(points: Iterable[TrialSpec], out_of_memory: Iterable[TrialSpec]) -> list[TrialSpec]:
    """Those of `points` of which no configuration that ran out of memory says that they cannot fit (see `cannot_fit`)."""
    failed: dict[tuple[object, ...], list[TrialSpec]] = defaultdict(list)
    for spec in out_of_memory:
        failed[_comparable(spec)].append(spec)
    return [point for point in points if not any(_needs_more(point, spec) for spec in failed.get(_comparable(point), ()))]


def cannot_fit(point: TrialSpec, out_of_memory: Iterable[TrialSpec]) -> TrialSpec | None:
    """A configuration that ran out of memory and needs no more than `point` does, or None.

    `point` needs at least as much where it differs from that one only by a larger micro-batch (with the accumulation that
    keeps the global batch) or a longer cutoff_len.
    """
    same = _comparable(point)
    return next((spec for spec in out_of_memory if _comparable(spec) == same and _needs_more(point, spec)), None)


def _needs_more(point: TrialSpec, failed: TrialSpec) -> bool:
    larger = all(getattr(point, name) >= getattr(failed, name) for name in GROWS_WITH)
    return larger and _accumulates(point) >= _accumulates(failed)


def _comparable(spec: TrialSpec) -> tuple[object, ...]:
    return tuple(getattr(spec, name) for name in _SAME)


def _accumulates(spec: TrialSpec) -> bool:
    """Whether gradients live on between forwards: without accumulation a step can need less."""
    return spec.gradient_accumulation_steps > 1
