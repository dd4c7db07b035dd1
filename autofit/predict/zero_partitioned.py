"""Stage 3: weights are gathered module by module, gradients are scattered bucket by bucket."""

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from itertools import accumulate

from autofit.predict.zero_moments import Meter, Moment, Parameter, optimizer_groups
from autofit.predict.zero_settings import ZeroSettings

_ON, _OFF = ("forward", "backward"), ("forward_end", "backward_end")


def persisted(settings: ZeroSettings, parameters: Sequence[Parameter]) -> frozenset[int]:
    """Parameters that stay whole on every rank (`mark_persistent_parameters`)."""
    return frozenset(k for k, p in enumerate(parameters) if p.elements <= settings.param_persistence_threshold)


class PartitionedRank:
    """The first rank of ZeRO-3: no rank holds more, since the last partitions are the padded ones."""

    def __init__(self, settings: ZeroSettings, parameters: Sequence[Parameter]) -> None:
        self.settings = settings
        self.parameters = parameters
        self.part = [-(-p.elements // settings.ranks) for p in parameters]
        self.whole = persisted(settings, parameters)
        self.of_module: dict[int, list[int]] = {}
        for k, p in enumerate(parameters):
            self.of_module.setdefault(p.module, []).append(k)
        weight = settings.weight_bytes
        trained = sum(self.part[k] for k, p in enumerate(parameters) if p.trainable)
        self.parts = {
            "weights": weight * (0 if settings.offload_param else sum(self.part)),
            "persisted_weights": weight * sum(parameters[k].elements for k in self.whole),
            "communication": weight * settings.reduce_bucket_size * settings.contiguous_gradients,
        }
        if not settings.offload_optimizer:
            self.parts["master_weights"] = settings.master_bytes * trained
            self.parts["optimizer_state"] = round(settings.state_bytes * trained)
            self.parts["gradients"] = settings.gradient_bytes * trained
        self.resident = sum(self.parts.values())

    def step(self, moments: Sequence[Moment], meter: Meter) -> None:
        """One steady optimizer step."""
        tied = [k for k, p in enumerate(self.parameters) if p.tied]
        for moment in moments:
            if moment.kind in _ON:
                self.of_module.setdefault(moment.index, list(tied))
        self._order = [(m.index, tuple(self.of_module[m.index])) for m in moments if m.kind in _ON]
        elements = [sum(self.parameters[k].elements for k in found) for _, found in self._order]
        self._elements_before = [0, *accumulate(elements)]
        self._uses: dict[int, list[int]] = {}  # parameter -> places in the order that need it
        for place, (_, found) in enumerate(self._order):
            for k in found:
                self._uses.setdefault(k, []).append(place)
        self._micro_step(moments, meter)  # each leaves what it found, so that all of them have the peaks of one
        meter.phase = "step"
        if not self.settings.offload_optimizer:
            self._update(meter)

    def _micro_step(self, moments: Sequence[Moment], meter: Meter) -> None:
        self._here = set(self.whole)  # parameters that are whole now
        self._flying: dict[int, list[object]] = {}  # parameter -> its gather: [flat bytes, parameters that hold it]
        self._elements = sum(self.parameters[k].elements for k in self.whole)  # of what is whole or on its way
        self._users: dict[int, int] = {}  # parameter -> modules that are using it
        self._queue = deque((k, step) for step, (_, found) in enumerate(self._order) for k in found)
        self._fetched_for: dict[int, int] = {}
        self._at = 0
        self._bucket: list[int] = []
        self._filled = 0
        self._own: dict[int, int] = {}
        meter.phase = "forward"
        for at, moment in enumerate(moments):
            if moment.kind in {"backward", "grad"}:
                meter.phase = "backward"
            meter.reach(at)
            if moment.kind in _ON:
                self._fetch(moment.index, meter)
            elif moment.kind in _OFF:
                self._release(moment.index, meter)
            elif moment.kind == "grad":
                self._gradient(moment.index, meter)
        self._reduce(meter)
        for k in self._here - self.whole:
            meter.held -= self._size(k)
        for handle in {id(h): h for h in self._flying.values()}.values():
            meter.held -= handle[0]  # type: ignore[operator]

    def _size(self, k: int) -> int:
        return self.settings.weight_bytes * self.parameters[k].elements

    def _gather(self, wanted: Sequence[int], meter: Meter) -> None:
        """Starts one gather (`all_gather_coalesced`): a single parameter lands in its place, several in a flat buffer."""
        if not wanted:
            return
        flat = self.settings.weight_bytes * sum(self.part[k] * self.settings.ranks for k in wanted)
        if len(wanted) == 1:
            flat = self._size(wanted[0])
        handle: list[object] = [flat, set(wanted), len(wanted) > 1]
        meter.add(flat)
        for k in wanted:
            self._flying[k] = handle
            self._elements += self.parameters[k].elements

    def _wait(self, k: int, meter: Meter) -> None:
        """Ends the gather of `k`: its flat buffer is copied out, and goes when the last parameter was asked for."""
        handle = self._flying.pop(k)
        flat, holders, copied = handle
        assert isinstance(flat, int) and isinstance(holders, set)
        if not copied:
            self._here.add(k)
            return
        for other in sorted(holders):
            if other not in self._here:
                self._here.add(other)
                meter.add(self._size(other))
        holders.discard(k)
        if not holders:
            meter.held -= flat

    def _fetch(self, module: int, meter: Meter) -> None:
        """`fetch_sub_module`: gathers what the module lacks, then prefetches what comes after."""
        mine = self.of_module.get(module, [])
        self._gather([k for k in mine if k not in self._here and k not in self._flying], meter)
        for k in mine:
            self._users[k] = self._users.get(k, 0) + 1
            if k in self._flying:
                self._wait(k, meter)
        fresh = {k for k in mine if self._fetched_for.get(k, -1) < self._at}
        while self._queue and fresh:
            k, step = self._queue.popleft()
            self._fetched_for[k] = step
            fresh.discard(k)
        self._prefetch(meter)
        self._at += 1

    def _prefetch(self, meter: Meter) -> None:
        room = min(self.settings.max_live_parameters - self._elements, self.settings.prefetch_bucket_size)
        wanted: list[int] = []
        elements = 0
        while self._queue and elements < room:
            k, step = self._queue.popleft()
            self._fetched_for[k] = max(self._fetched_for.get(k, -1), step)
            if k not in self._here and k not in self._flying and k not in wanted:
                wanted.append(k)
                elements += self.parameters[k].elements
        self._gather(wanted, meter)

    def _release(self, module: int, meter: Meter) -> None:
        """`release_sub_module`: what is neither persisted, nor promised by a prefetch, nor used again soon."""
        for k in self.of_module.get(module, []):
            self._users[k] = max(0, self._users.get(k, 0) - 1)
            promised = self._fetched_for.get(k, -1) > self._at
            if k in self._here and k not in self.whole and not self._users[k] and not promised and not self._needed_soon(k):
                self._here.discard(k)
                if k not in self._flying:
                    self._elements -= self.parameters[k].elements
                meter.held -= self._size(k)

    def _needed_soon(self, k: int) -> bool:
        """Whether a module needs parameter `k` before `max_reuse_distance` elements of others have been used."""
        uses = self._uses.get(k, [])
        following = bisect_left(uses, self._at)
        if following == len(uses):
            return False
        passed = self._elements_before[uses[following]] - self._elements_before[min(self._at, len(self._order))]
        return passed < self.settings.max_reuse_distance

    def _gradient(self, k: int, meter: Meter) -> None:
        """A gradient is ready: reduces the bucket if it would overflow; one that is larger stays in its own memory."""
        elements, limit = self.parameters[k].elements, self.settings.reduce_bucket_size
        self._own[k] = elements * self.parameters[k].weight_bytes
        meter.add(self._own[k])
        if self._filled and self._filled + elements > limit:
            self._reduce(meter)
        if self.settings.contiguous_gradients and self._filled + elements <= limit:
            meter.held -= self._own.pop(k)
        self._bucket.append(k)
        self._filled += elements

    def _reduce(self, meter: Meter) -> None:
        """`reduce_scatter_coalesced`: a flat copy, unless a single gradient divides evenly."""
        if not self._bucket:
            return
        alone = len(self._bucket) == 1 and self.parameters[self._bucket[0]].elements % self.settings.ranks == 0
        copies = self.settings.reduce_scatter or self._filled > self.settings.reduce_bucket_size
        if copies and not alone:
            meter.see(self.settings.weight_bytes * self.settings.ranks * sum(self.part[k] for k in self._bucket))
        for k in self._bucket:
            meter.held -= self._own.pop(k, 0)
        self._bucket, self._filled = [], 0

    def _update(self, meter: Meter) -> None:
        """The norm of each gradient partition in fp64; then, by sub-group, flat gradient, fp32 copy and optimizer."""
        settings = self.settings
        trained = [k for k, p in enumerate(self.parameters) if p.trainable]
        meter.held -= settings.weight_bytes * sum(
            self.parameters[k].elements for k in self.whole
        )  # partitioned before the step
        if settings.gradient_clipping:
            meter.see(8 * max(self.part[k] for k in trained))
        groups: list[list[int]] = []
        for optimizer_group in optimizer_groups(self.parameters):
            groups.append([])
            elements = 0
            for k in optimizer_group:
                groups[-1].append(k)
                elements += self.part[k]
                if elements >= settings.sub_group_size:
                    groups.append([])
                    elements = 0
        for group in groups:
            elements = sum(self.part[k] for k in group)
            flat = settings.gradient_bytes * elements if len(group) > 1 else 0
            meter.see(flat + 4 * elements)
            meter.see((4 + settings.optimizer_temporary_bytes) * elements)
        meter.held += settings.weight_bytes * sum(self.parameters[k].elements for k in self.whole)
        meter.see()
