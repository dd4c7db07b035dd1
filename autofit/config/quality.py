"""What the winner owes the user: the reference's training, unless the user says what may be given up.

Nothing said means nothing traded: the winner keeps at least the reference's `cutoff_len`, images and precision, and trains the
same parts in the same way. Each field of `Quality` that is given replaces the reference's standard in that one respect.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import Field

from autofit.config.base import Frozen
from autofit.config.floor import DataFloor
from autofit.config.legality import training_changes
from autofit.config.trial import TrialSpec

Part = Literal["vision_tower", "multi_modal_projector", "language_model"]
PARTS: tuple[Part, ...] = ("vision_tower", "multi_modal_projector", "language_model")
PrecisionName = Literal["bf16", "pure_bf16", "fp16", "fp32"]
_EXACTNESS = {"fp32": 2, "bf16": 1, "fp16": 1, "pure_bf16": 0}


class Quality(Frozen):
    """What the user demands of the winner's training, and what may be given up for speed."""

    max_truncated_share: float | None = Field(default=None, ge=0, le=1)
    """Samples that may lose tokens, 0..1 of all; any `cutoff_len` within it will do. Needs the dataset's profile."""
    min_cutoff_len: int | None = Field(default=None, ge=8)
    """Shortest `cutoff_len` that will do; it may be below or above the reference's."""
    allow_freezing: tuple[Part, ...] = ()
    """Parts that the winner may leave frozen although the reference trains them."""
    precision: tuple[PrecisionName, ...] = ()
    """Precisions that will do; empty: the reference's."""

    @property
    def words(self) -> str:
        """What was said, in a line; empty where nothing was."""
        said = self.model_dump(exclude_defaults=True).items()
        return ", ".join(f"{name} {','.join(value) if isinstance(value, tuple) else value}" for name, value in said)


def precision_name(spec: TrialSpec) -> PrecisionName:
    """The precision of a spec in a word."""
    return "pure_bf16" if spec.pure_bf16 else spec.precision


def breaches(spec: TrialSpec, wanted: TrialSpec, quality: Quality, floor: DataFloor | None = None) -> list[str]:
    """Where a spec's training falls short of what was asked for, in words; empty: it may win.

    Args:
        wanted: the reference.
        floor: what the dataset's profile says; `max_truncated_share` cannot be met without it.
    """
    accepted: dict[str, object] = {}
    found = _breaches_of_data(spec, quality, floor)
    if quality.min_cutoff_len is not None or quality.max_truncated_share is not None:
        accepted["cutoff_len"] = spec.cutoff_len
    for part in quality.allow_freezing:
        if getattr(spec, f"freeze_{part}"):
            accepted[f"freeze_{part}"] = True
    if quality.precision:
        accepted |= {"precision": spec.precision, "pure_bf16": spec.pure_bf16}
        if precision_name(spec) not in quality.precision:
            found.append(f"{precision_name(spec)} instead of {' or '.join(quality.precision)}")
    return found + training_changes(spec, wanted.model_copy(update=accepted))


def _breaches_of_data(spec: TrialSpec, quality: Quality, floor: DataFloor | None) -> list[str]:
    found = []
    if quality.min_cutoff_len is not None and spec.cutoff_len < quality.min_cutoff_len:
        found.append(f"cutoff_len {spec.cutoff_len}, shorter than {quality.min_cutoff_len}")
    if quality.max_truncated_share is not None:
        share = floor.truncated_share(spec.cutoff_len) if floor else None
        if share is None:
            found.append(f"cutoff_len {spec.cutoff_len} truncates an unknown share of the samples")
        elif share > quality.max_truncated_share:
            found.append(f"cutoff_len {spec.cutoff_len} truncates {share:.1%} of the samples")
    return found


def contradiction(
    quality: Quality, points: Sequence[TrialSpec], wanted: TrialSpec, floor: DataFloor | None = None
) -> str | None:
    """Why no point of a space can be what was asked for, in one line with what to change; None: some can.

    Args:
        points: every legal point, at least one.
    """
    return next(_contradictions(quality, points, wanted, floor), None)


def _contradictions(quality: Quality, points: Sequence[TrialSpec], wanted: TrialSpec, floor: DataFloor | None) -> Iterator[str]:
    """Single demands before their combination, so that the first one found names its cause."""
    longest = max(point.cutoff_len for point in points)
    if quality.max_truncated_share is not None:
        least = floor.truncated_share(longest) if floor else None
        if least is None:
            yield "max_truncated_share needs the lengths of the data, and there is no profile of them; use min_cutoff_len"
        elif least > quality.max_truncated_share:
            yield (
                f"max_truncated_share {quality.max_truncated_share:g} cannot be met: the longest cutoff_len of the space,"
                f" {longest}, truncates {least:.3g} of the samples; list a longer one"
            )
    if quality.min_cutoff_len is not None and quality.min_cutoff_len > longest:
        yield f"min_cutoff_len {quality.min_cutoff_len} is above every cutoff_len of the space, the longest is {longest}"
    offered = sorted({precision_name(point) for point in points})
    if quality.precision and not set(quality.precision) & set(offered):
        yield f"precision {' or '.join(quality.precision)} is asked for, but the space has only {', '.join(offered)}"
    for part in quality.allow_freezing:
        if not any(getattr(point, f"freeze_{part}") for point in points):
            yield f"allow_freezing {part}, but no configuration of the space freezes it; list freeze_{part}: true"
    if all(breaches(point, wanted, quality, floor) for point in points):
        nearest = min((breaches(point, wanted, quality, floor) for point in points), key=len)
        yield f"no configuration meets all of {quality.words}; the nearest has {'; '.join(nearest)}"


def at_least(one: TrialSpec, other: TrialSpec, floor: DataFloor | None = None) -> bool:
    """Whether `one` trains in every respect at least what `other` does: data, parts, precision. A partial order."""
    return (
        _data_lost(one, floor) <= _data_lost(other, floor)
        and (not other.images.per_sample or one.images.max_pixels >= other.images.max_pixels)
        and all(_part_at_least(one, other, part) for part in PARTS)
        and _as_exact(one, other)
        and one.optimizer.removesuffix("_fused") == other.optimizer.removesuffix("_fused")
    )


def _data_lost(spec: TrialSpec, floor: DataFloor | None) -> float:
    """Share of the samples that are truncated; without a profile, minus `cutoff_len`, which orders alike."""
    share = floor.truncated_share(spec.cutoff_len) if floor else None
    return -float(spec.cutoff_len) if share is None else share


def _part_at_least(one: TrialSpec, other: TrialSpec, part: Part) -> bool:
    mine, theirs = _trained(one, part), _trained(other, part)
    if theirs is None or mine in {theirs, ("full", 0)}:
        return True
    return mine is not None and mine[0] == theirs[0] and mine[1] >= theirs[1]


def _trained(spec: TrialSpec, part: Part) -> tuple[str, int] | None:
    """How a part is trained, and with which rank; None: it is frozen. `freeze` trains only the language model's last layers."""
    if getattr(spec, f"freeze_{part}"):
        return None
    if spec.method == "lora":
        return f"lora {spec.lora.target}", spec.lora.rank
    return ("last layers" if spec.method == "freeze" and part == "language_model" else "full"), 0


def _as_exact(one: TrialSpec, other: TrialSpec) -> bool:
    mine, theirs = precision_name(one), precision_name(other)
    return mine == theirs or _EXACTNESS[mine] > _EXACTNESS[theirs]
