"""The common language of the ZeRO replays: parameters, moments of the one-rank trace, and a meter of what is held beside it."""

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
    """Follows the bytes that one rank holds beside what is resident, from moment to moment of a step.

    What ZeRO holds does not depend on the activations around it, so the figures of a meter serve every shape of a batch.
    """

    wants_every_moment = False
    """Whether moments at which nothing changes must be reached all the same."""

    def __init__(self, moments: int) -> None:
        self.held = 0
        self.phase = "forward"
        self.before = [0] * moments
        """Bytes held when a moment was reached; the highest over micro-steps."""
        self.after = [0] * (moments + 1)
        """Highest bytes from a moment on until the next; the last entry is the optimizer step."""
        self.backward = [False] * moments
        self._at = 0

    def see(self, extra: int = 0) -> None:
        """Notes the use now, with `extra` bytes for a moment."""
        at = -1 if self.phase == "step" else self._at
        self.after[at] = max(self.after[at], self.held + extra)

    def add(self, size: int) -> None:
        """Allocates (or frees, when negative)."""
        self.held += size
        if size > 0:
            self.see()

    def fill(self, reached: Sequence[int], backward_from: int) -> None:
        """Gives moments that were passed over what was held at the next one that was reached; the backward begins somewhere."""
        start = 0
        for stop in reached:
            held = self.before[stop]
            for at in range(start, stop):
                self.before[at] = self.after[at] = held
            start = stop + 1
        self.backward = [at >= backward_from for at in range(len(self.before))]

    def reach(self, at: int) -> None:
        """Goes on to a moment of the trace."""
        self._at = at
        self.before[at] = max(self.before[at], self.held)
        self.after[at] = max(self.after[at], self.held)
        self.backward[at] = self.phase == "backward"
