"""Both kinds of accumulation from one session: a step of one micro-batch, and a step of two, whose sizes at further shapes
come from probes of one micro-batch.

A micro-batch of an accumulating step makes what a single one makes, in the same order, but for two things: the division of
the loss (scalars), and what autograd's accumulation nodes make (gradients, as large as parameters at every shape). Those are
left out on both sides; everything else is paired by phase and operator. The pairing is not taken on trust: applied to the
traced step of one micro-batch at the first shape it must give the sizes and figures that were traced there with two.
"""

from autofit.worker.trace_operations import Recorded
from autofit.worker.trace_tracer import PHASES, StorageTracer

_BATCH, _FORWARD, _BACKWARD = (PHASES.index(name) for name in ("batch", "forward", "backward"))
_SCALAR_BYTES = 4


class NotAlike(Exception):  # noqa: N818 - reads better where it is raised
    """A micro-batch of an accumulating step makes something else than a single one."""


class Unrolled:
    """An accumulating step paired with a step of one micro-batch.

    Args:
        reference: traced with several micro-batches.
        single: traced with one, at the same shape.

    Raises:
        NotAlike: they cannot be paired, or the pairing gives other sizes than were traced.
    """

    def __init__(self, reference: StorageTracer, single: StorageTracer) -> None:
        self.reference = reference
        self._micro_batches = [each for step in sorted(set(reference.event_step)) for each in _micro_batches(reference, step)]
        if self.sizes(single) != reference.storage_bytes:
            raise NotAlike("sizes")
        model = [row for row in single.operations if row.phase in (_FORWARD, _BACKWARD)]
        if self._operations(model, single.accumulating_operations) != reference.operations:
            raise NotAlike("figures of operations")

    def sizes(self, probe: StorageTracer) -> list[int]:
        """Sizes of the reference's storages at the probe's shape."""
        sizes = list(self.reference.storage_bytes)
        ((batch, births),) = _micro_batches(probe, 0)
        for here, model in self._micro_batches:
            _pair(here, batch, sizes, probe.storage_bytes)
            _pair(model, births, sizes, probe.storage_bytes)
        return sizes

    def operations(self, probe: StorageTracer) -> list[Recorded]:
        """The reference's operations with the probe's numbers; the optimizer's keep their own."""
        return self._operations(probe.operations, probe.accumulating_operations)

    def _operations(self, single: list[Recorded], accumulating: set[int]) -> list[Recorded]:
        result = list(self.reference.operations)
        there = [row for at, row in enumerate(single) if at not in accumulating and not _of_loss(row)]
        before, position = _BACKWARD, len(there)
        for at, row in enumerate(self.reference.operations):
            if row.phase not in (_FORWARD, _BACKWARD):
                continue
            if row.phase == _FORWARD and before == _BACKWARD:
                if position != len(there):
                    raise NotAlike(f"{position} operations, {len(there)} in a step of one micro-batch")
                position = 0
            before = row.phase
            if at in self.reference.accumulating_operations or _of_loss(row):
                continue
            if position >= len(there) or there[position][:2] != row[:2]:
                raise NotAlike(f"operation {row.name}")
            result[at] = there[position]
            position += 1
        if position != len(there):
            raise NotAlike(f"{position} operations, {len(there)} in a step of one micro-batch")
        return result


Birth = tuple[int, str, int]
"""Phase, operator, storage."""


def _pair(here: list[Birth], there: list[Birth], sizes: list[int], probed: list[int]) -> None:
    if [birth[:2] for birth in here] != [birth[:2] for birth in there]:
        raise NotAlike(f"{len(here)} storages, {len(there)} in a step of one micro-batch")
    for (*_, storage), (*_, other) in zip(here, there, strict=True):
        sizes[storage] = probed[other]


def _micro_batches(tracer: StorageTracer, step: int) -> list[tuple[list[Birth], list[Birth]]]:
    """Of each micro-batch of a step: its inputs, and what forward and backward make, without accumulation's own."""
    inputs: list[Birth] = []
    made: list[list[Birth]] = []
    before = -1
    columns = zip(tracer.event_kind, tracer.event_step, tracer.event_cut, tracer.event_phase, tracer.event_storage, strict=True)
    for kind, at, cut, phase, storage in columns:
        if kind < 0 or at != step or phase not in (_BATCH, _FORWARD, _BACKWARD):
            continue
        source = tracer.storage_source[storage]
        if phase == _BATCH:
            inputs.append((phase, source, storage))
            continue
        if phase == _FORWARD and cut != before:
            before = cut
            made.append([])
        scalar = source == "div" and tracer.storage_bytes[storage] <= _SCALAR_BYTES
        if not scalar and source != "cublas_workspace" and storage not in tracer.accumulating:
            made[-1].append((phase, source, storage))
    each = len(inputs) // len(made)
    if each * len(made) != len(inputs):
        raise NotAlike(f"{len(inputs)} inputs of {len(made)} micro-batches")
    return [(inputs[at * each : (at + 1) * each], own) for at, own in enumerate(made)]


def _of_loss(row: Recorded) -> bool:
    return row.name == "div" and row.bytes_written <= _SCALAR_BYTES
