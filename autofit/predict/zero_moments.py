"""The common language of the ZeRO replays: parameters, moments of the one-rank trace, and a meter of bytes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

MomentKind = Literal["forward", "forward_end", "backward", "backward_end", "grad", "end"]


@dataclass(frozen=True)
class Parameter:
    """One parameter tensor."""

    elements: int
    trainable: bool
    module: int = 0
    """Number of the module that owns it; the modules of the moments use the same numbers."""
    weight_bytes: int = 2
    """Bytes per element of the weight, and of its gradient as autograd makes it."""
    decays: bool = True
    """Whether weight decay applies: Trainer puts the vectors, to which it does not, into an optimizer group of their own, and
    DeepSpeed partitions group by group."""
    tied: bool = False
    """Whether a module that owns no parameter of its own uses it as well: the output layer of a model with tied embeddings."""


@dataclass(frozen=True)
class Moment:
    """A point of the one-rank trace at which DeepSpeed may act.

    Both figures leave out the weights and the gradients of `grad` moments that have passed.
    """

    kind: MomentKind
    """A module begins or ends its forward or backward, a parameter's gradient is ready, or the backward is over."""
    index: int
    """Number of the module or of the parameter."""
    peak_bytes: int
    """Highest use since the moment before, this moment included: activations, temporaries, gradients under way."""
    live_bytes: int
    """Use at this moment; the gradient of a `grad` moment is not in it any more."""


def optimizer_groups(parameters: Sequence[Parameter]) -> list[list[int]]:
    """The trained parameters by optimizer group, in order: those that decay, the others; no group is empty."""
    groups = [[k for k, p in enumerate(parameters) if p.trainable and p.decays is decays] for decays in (True, False)]
    return [group for group in groups if group]


class Meter:
    """Bytes in use: what ZeRO holds beside `resident`, on top of the activations of the trace."""

    def __init__(self, resident: int) -> None:
        self.resident = resident
        self.held = 0
        self.activations = 0
        self.phase = "forward"
        self.peaks = {"forward": resident, "backward": resident, "step": resident}

    def see(self, extra: int = 0, activations: int | None = None) -> None:
        """Notes the use now, with `extra` bytes for a moment."""
        now = self.resident + self.held + extra + (self.activations if activations is None else activations)
        self.peaks[self.phase] = max(self.peaks[self.phase], now)

    def add(self, size: int) -> None:
        """Allocates (or frees, when negative)."""
        self.held += size
        if size > 0:
            self.see()

    def reach(self, moment: Moment) -> None:
        """Goes on to a moment of the trace."""
        self.see(activations=moment.peak_bytes)
        self.activations = moment.live_bytes
