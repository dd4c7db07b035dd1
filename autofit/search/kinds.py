"""Which other training a configuration is: the changes against the reference's, as one kind."""

from collections.abc import Iterable, Sequence

from autofit.config.legality import training_changes
from autofit.config.space import LegalSpace
from autofit.config.trial import TrialSpec

Kind = tuple[str, ...]
"""Changes of the training, in words; empty: the reference's own."""


def kind_of(spec: TrialSpec, space: LegalSpace) -> Kind:
    """The training of `spec` against the reference's."""
    return tuple(training_changes(spec, space.reference))


def irreducible(specs: Iterable[TrialSpec], space: LegalSpace) -> list[TrialSpec]:
    """Those whose kind is not made of others that the space has too: its price is near the product of theirs."""
    every = {kind_of(spec, space) for spec in space.points}
    made = {kind for kind in every if _made_of(kind, every)}
    return [spec for spec in specs if kind_of(spec, space) not in made]


def _made_of(kind: Sequence[str], others: Iterable[Sequence[str]]) -> bool:
    """Whether smaller kinds make up this one."""
    parts = [set(other) for other in others if set(other) < set(kind)]
    return set().union(*parts) == set(kind)
