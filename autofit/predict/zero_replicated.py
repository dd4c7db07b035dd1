"""Stages 1 and 2: every rank holds all weights; gradients pass through fixed buckets into the rank's partition."""

from collections.abc import Sequence

from autofit.predict.zero_moments import Meter, Moment, Parameter, optimizer_groups
from autofit.predict.zero_settings import ZeroSettings

_ALLREDUCE_ELEMENTS = 500_000_000
"""`allreduce_and_scatter` flattens at most about this many elements at a time."""
MICRO_STEPS_REPLAYED = 3
"""First, last, and one of those between, which are all alike."""


class ReplicatedRank:
    """One rank of ZeRO-1 or ZeRO-2."""

    def __init__(self, settings: ZeroSettings, parameters: Sequence[Parameter], rank: int) -> None:
        self.settings = settings
        self.parameters = parameters
        trained = [k for k, p in enumerate(parameters) if p.trainable]
        self.owners: dict[int, list[tuple[int, int]]] = {}  # parameter -> (rank, elements) of its slices
        self.partitions = [self._partition(group) for group in optimizer_groups(parameters)]
        self.partition = sum(self.partitions)
        self.mine = {k: n for k, slices in self.owners.items() for r, n in slices if r == rank}
        # A parameter that is only partly the rank's is copied whole.
        self.mine_bytes = settings.weight_bytes * sum(parameters[k].elements for k in self.mine)
        frozen = sum(p.elements for p in parameters if not p.trainable)
        self.parts = {"weights": settings.weight_bytes * (self.partition * settings.ranks + frozen)}
        if settings.offload_optimizer:  # temp_grad_buffer_for_gpu_offload
            self.parts["communication"] = settings.weight_bytes * max(parameters[k].elements for k in trained)
        else:
            self.parts["master_weights"] = settings.master_bytes * self.partition
            self.parts["optimizer_state"] = round(settings.state_bytes * self.partition)
        self.resident = sum(self.parts.values())

    def _partition(self, group: Sequence[int]) -> int:
        """Deals the parameters of an optimizer group out to the ranks; elements of a rank's share, padding included."""
        ranks = self.settings.ranks
        if self.settings.round_robin_gradients:
            group = [k for r in range(ranks) for k in group[r::ranks]]
        elements = sum(self.parameters[k].elements for k in group)
        alignment = 2 * ranks  # start of a partition: 4 bytes for NCCL
        partition = -(-elements // alignment) * alignment // ranks
        start = 0
        for k in group:
            self.owners[k] = _slices(start, self.parameters[k].elements, partition)
            start += self.parameters[k].elements
        return partition

    def step(self, moments: Sequence[Moment], meter: Meter) -> None:
        """One steady optimizer step."""
        micro_steps = min(MICRO_STEPS_REPLAYED, self.settings.gradient_accumulation_steps)
        self._own: dict[int, int] = {}  # parameter -> bytes of a gradient in memory of its own
        self._buffers = 0  # bytes; made by the first gradient, they stay until a micro-step is reduced
        self._kept = 0  # gradients of the partition that the micro-steps before left
        last = len(moments) - 1
        self._backward_from = next((at for at, m in enumerate(moments) if m.kind in {"backward", "grad"}), len(moments))
        # What is held changes with gradients only: the moments between them are filled in afterwards.
        self._stops = [at for at, m in enumerate(moments) if m.kind == "grad" or at == last or meter.wants_every_moment]
        for number in range(micro_steps):
            self._micro_step(moments, meter, boundary=number == micro_steps - 1)
        meter.fill(self._stops, self._backward_from)
        meter.phase = "step"
        if not self.settings.offload_optimizer:
            self._update(meter)

    def _micro_step(self, moments: Sequence[Moment], meter: Meter, *, boundary: bool) -> None:
        settings = self.settings
        self._bucket: list[int] = []
        self._filled = 0
        self._copied = 0
        consume = settings.stage == 2 or (boundary and settings.overlap)
        for at in self._stops:
            meter.phase = "forward" if at < self._backward_from else "backward"
            meter.reach(at)
            if moments[at].kind == "grad":
                self._gradient(moments[at].index, meter, consume=consume)
        meter.phase = "backward"
        if settings.stage == 1 and boundary and not settings.overlap:
            for k in self.owners:
                if k in self._own:
                    self._collect(k, meter)
        if consume or boundary:
            self._finish(meter)

    def _gradient(self, k: int, meter: Meter, *, consume: bool) -> None:
        """The gradient of parameter `k` is ready; the buckets are made at the first (`setup_buckets`)."""
        if k not in self._own:  # a gradient of an earlier micro-step takes the new one in
            self._own[k] = self.parameters[k].elements * self.parameters[k].weight_bytes
            meter.add(self._own[k])
        if not self._buffers and self.settings.contiguous_gradients:
            buffers = 2 if self.settings.overlap else 1
            self._buffers = buffers * self.settings.weight_bytes * self.settings.reduce_bucket_size
            meter.add(self._buffers)
        if consume:
            self._collect(k, meter)

    def _collect(self, k: int, meter: Meter) -> None:
        """Puts a gradient into the bucket, which is reduced first when it would overflow."""
        elements = self.parameters[k].elements
        if self._filled + elements > self.settings.reduce_bucket_size:
            self._reduce(meter)
        if elements <= self.settings.reduce_bucket_size and self.settings.contiguous_gradients:
            meter.held -= self._own.pop(k)
        self._bucket.append(k)
        self._filled += elements

    def _reduce(self, meter: Meter) -> None:
        """All-reduces the bucket (a flat copy, unless one slice is all of it) and keeps what is the rank's own."""
        if not self._bucket:
            return
        meter.see(self._flat_copy())
        for k in self._bucket:
            if k in self.mine and not self.settings.offload_optimizer:
                if not self._copied:
                    self._copied = self.mine_bytes
                    meter.add(self._copied)
                meter.held -= self._own.pop(k, 0)
            elif self.settings.stage == 2:
                meter.held -= self._own.pop(k, 0)
        self._bucket, self._filled = [], 0

    def _flat_copy(self) -> int:
        """Bytes of the largest flat copy: neighbouring slices of one owner are one piece, and one piece is not copied."""
        if not self.settings.reduce_scatter:
            return 0
        pieces: list[list[int]] = []
        for k in self._bucket:
            for owner, elements in self.owners[k]:
                if pieces and pieces[-1][0] == owner:
                    pieces[-1][1] += elements
                else:
                    pieces.append([owner, elements])
        largest = total = count = 0
        for _, elements in pieces:
            total, count = total + elements, count + 1
            if total > _ALLREDUCE_ELEMENTS:
                largest, total, count = max(largest, total if count > 1 else 0), 0, 0
        largest = max(largest, total if count > 1 else 0)
        return self.settings.weight_bytes * largest

    def _finish(self, meter: Meter) -> None:
        """After the last gradient: the rest of the bucket; what the partition keeps for the step or the next micro-step."""
        self._reduce(meter)
        if self._kept:  # added to what was there
            meter.held -= self._copied
        else:
            self._kept = self._copied
        meter.held -= sum(self._own.values()) + self._buffers
        self._own, self._buffers = {}, 0

    def _update(self, meter: Meter) -> None:
        """Norm; then, group by group, flat gradient, fp32 copy and optimizer.

        The gradients that were kept are views of one buffer, which goes when the last group has copied its own.
        """
        settings = self.settings
        if settings.gradient_clipping and self.mine:
            meter.see(8 * max(self.mine.values()))
        for number, partition in enumerate(self.partitions, start=1):
            meter.add((settings.weight_bytes + 4) * partition)
            meter.held -= settings.weight_bytes * partition + (self._kept if number == len(self.partitions) else 0)
            meter.see(settings.optimizer_temporary_bytes * partition)
            meter.held -= 4 * partition


def _slices(start: int, elements: int, partition: int) -> list[tuple[int, int]]:
    """(rank, elements) of the pieces into which the borders of partitions cut `elements` from `start`."""
    slices, end = [], start + elements
    while start < end:
        owner = start // partition
        stop = min(end, (owner + 1) * partition)
        slices.append((owner, stop - start))
        start = stop
    return slices
