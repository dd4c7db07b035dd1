"""Follows every storage of a training step from its first sight to its release, and every operation's arithmetic and traffic.

The tracer is a `TorchDispatchMode`: it sits below autograd, so it sees what a device would execute. Tensors live on the
`meta` device: they have shapes and lifetimes, but no memory. A storage counts from the operation that returns it until its
last reference dies (a weak reference tells), which is what a caching allocator sees.

Each record also has a *tag*: the block of the model (`trace_blocks`) that was running. A block runs from its first call to the
next block's; what their container does after the last one counts as one block more. Backward nodes are told apart by the
sequence numbers that autograd gave them in between; recomputed blocks are called again. Outside forward and backward the tag
is that of the parameter whose tensors are worked on, element by element in a list of them.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from autofit.worker.trace_marks import Marks
from autofit.worker.trace_memo import Call, Memo
from autofit.worker.trace_operations import ByTag, Operation, Recorded, count, traffic_by_tag
from autofit.worker.trace_sums import CANDIDATES, held_by_one, in_place

CATEGORIES = (
    "weights",
    "master_weights",
    "gradients",
    "optimizer_state",
    "autocast_copies",
    "activations_vision",
    "activations_projector",
    "activations_language",
    "logits_loss",
    "workspace",
    "inputs",
)
PHASES = ("load", "batch", "forward", "backward", "clip", "optimizer", "zero_grad")
PART_CATEGORY = {
    "vision": "activations_vision",
    "projector": "activations_projector",
    "language": "activations_language",
    "logits": "logits_loss",
}
_ACCUMULATE_GRAD = 1 << 62
"""Sequence numbers from here on are not of the forward: autograd runs such nodes as soon as it can."""
_CATEGORY = {name: number for number, name in enumerate(CATEGORIES)}
_PHASE = {name: number for number, name in enumerate(PHASES)}
_BY_MODEL = frozenset({_PHASE["forward"], _PHASE["backward"]})

_BACKWARD = _PHASE["backward"]

_MEMO = Memo()
_KNOWN: dict[int, Operation] = {}
"""By identity: the hash of an operator is slow, and it lives as long as its `Operation`."""

Scratch = Callable[[tuple[Any, ...], Any], list[int]]


class StorageTracer(TorchDispatchMode):
    """Records events and, while `recording` is set, operations.

    Args:
        device: type of the traced device (`meta`).
        scratch: operator name -> function(args, output) -> bytes that the device's kernel allocates and frees inside.
    """

    def __init__(self, device: str = "meta", scratch: dict[str, Scratch] | None = None) -> None:
        super().__init__()
        held_by_one()
        self.device = device
        self.scratch = scratch or {}
        self.event_kind: list[int] = []
        self.event_storage: list[int] = []
        self.event_phase: list[int] = []
        self.event_step: list[int] = []
        self.storage_bytes: list[int] = []
        self.storage_category: list[int] = []
        self.storage_source: list[str] = []
        self.storage_spread: dict[int, ByTag] = {}
        """Storages made of one piece a tensor of a list: bytes of the pieces by tag."""
        self.event_tag: list[int] = []
        self.moment_tag: list[int] = []
        self.cut = 0
        """Phases begun so far."""
        self.event_cut: list[int] = []
        self.moment_cut: list[int] = []
        self.operations: list[Recorded] = []
        self.recording = False
        self.phase = _PHASE["load"]
        self.step = 0
        self.unmixed: set[str] = set()
        self.moments: list[tuple[int, str, int, int]] = []
        self._modules = Marks(-1)
        self._in_backward: int | None = None
        self._label: int | None = None
        self._closed = False
        self._live: dict[int, tuple[Any, int]] = {}
        self._tag = -1
        self._tags = Marks(-1)
        self._storage_tag: list[int] = []
        self._node = -1
        self._made_at: list[int] = []
        self._made_by: list[int] = []
        self._orphaned = False
        self.accumulating: set[int] = set()
        """Storages that autograd's accumulation of gradients made."""
        self.accumulating_operations: set[int] = set()
        self._accumulating = False
        self.orphans: set[int] = set()
        """Storages of the optimizer of which nothing tells whose they are."""
        self._part, self._share = "language", 1.0
        self._parts = Marks(("language", 1.0))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here, and torch's guard against it costs as much as a remembered operator."""
        return False

    # ---- where we are -------------------------------------------------------------------------------------------------

    def enter(self, phase: str, step: int) -> None:
        """From here on, events belong to this phase and optimizer step."""
        self.phase, self.step = _PHASE[phase], step
        self._tag, self._node, self._orphaned = -1, -1, False
        self._accumulating = False
        self.cut += 1
        if phase == "forward":
            self.mark("language", 1.0)
            self.block(-1)

    def mark(self, part: str, share: float = 1.0) -> tuple[str, float]:
        """The forward now runs in this part of the model; returns where it was before.

        Backward nodes are told apart by the sequence numbers that autograd gave them in between.

        Args:
            part: key of `PART_CATEGORY`.
            share: fraction of the full attention square that is really computed (windows, several images).
        """
        before = (self._part, self._share)
        self._part, self._share = part, share
        self._parts.set((part, share))
        return before

    # ---- blocks --------------------------------------------------------------------------------------------------------

    def block(self, tag: int) -> None:
        """A block begins its forward."""
        self._tag = tag
        self._tags.set(tag)

    def block_end(self, tag: int) -> None:
        """The forward of a whole stack's last block, or of the stack, is done (not where a block is recomputed)."""
        if self.phase == _PHASE["forward"]:
            self.block(tag)

    def _follow_block(self) -> None:
        node = torch._C._current_autograd_node()
        if node is None:
            self._accumulating = False
            return
        number = node._sequence_nr()
        self._accumulating = number >= _ACCUMULATE_GRAD
        if number == self._node:
            return
        self._node = number
        if self._accumulating:
            return
        self._tag = self._tags.of(number)

    def _made_here(self, tensor: torch.Tensor) -> bool:
        """Whether the backward node that is running made it."""
        entry = self._live.get(tensor.untyped_storage()._cdata)
        return entry is not None and self._made_by[entry[1]] == self._node

    def _tag_of(self, tensor: torch.Tensor) -> int | None:
        entry = self._live.get(tensor.untyped_storage()._cdata)
        return None if entry is None else self._storage_tag[entry[1]]

    def belongs(self, tensor: torch.Tensor, parameter: torch.Tensor) -> None:
        """`tensor` turned out to be kept for `parameter` (optimizer state, which may be made from nothing): of its block."""
        entry = self._live.get(tensor.untyped_storage()._cdata)
        tag = self._tag_of(parameter)
        if entry is None or tag is None:
            return
        number = entry[1]
        self.orphans.discard(number)
        if self._storage_tag[number] != tag:
            self._storage_tag[number] = tag
            self.event_tag[self._made_at[number]] = tag

    def _tags_by_argument(self, args: Any, out: Any) -> list[int]:
        """Tags of what an operator outside forward and backward returns; also sets the current one."""
        for value in args:
            if isinstance(value, (tuple, list)) and value and isinstance(value[0], torch.Tensor):
                tags = [self._tag_of(item) for item in value]
                self._tag, self._orphaned = -1, False
                several = isinstance(out, (tuple, list)) and len(out) == len(tags)
                return [-1 if tag is None else tag for tag in tags] if several else []
        self._orphaned = False
        known = [tag for value in args if isinstance(value, torch.Tensor) and (tag := self._tag_of(value)) is not None]
        if known:
            self._tag = next((tag for tag in known if tag >= 0), -1)
        else:
            self._orphaned = self.phase == _PHASE["optimizer"]
        return []

    def _shares(self, tensor: torch.Tensor) -> ByTag:
        entry = self._live.get(tensor.untyped_storage()._cdata)
        if entry is None:
            return {-1: 1}
        return self.storage_spread.get(entry[1]) or {self._storage_tag[entry[1]]: 1}

    # ---- moments: where DeepSpeed may act ------------------------------------------------------------------------------

    def moment(self, kind: str, index: int, storage: int = -1) -> None:
        """Notes that here, between events, a module begins or ends or a gradient is ready."""
        self.moments.append((len(self.event_kind), kind, index, storage))
        self.moment_tag.append(self._tag)
        self.moment_cut.append(self.cut)

    def module_forward(self, index: int) -> None:
        """A module with parameters begins its forward; backward nodes made from here on are its own."""
        self._modules.set(index)
        self.moment("forward", index)

    def module_forward_end(self, index: int) -> None:
        """The module is done; what follows belongs to none."""
        self._modules.set(-1)
        self.moment("forward_end", index)

    def gradient(self, index: int, gradient: torch.Tensor) -> None:
        """The gradient of parameter `index` is ready."""
        entry = self._live.get(gradient.untyped_storage()._cdata)
        self.moment("grad", index, -1 if entry is None else entry[1])

    def _follow_backward(self) -> None:
        if not self._modules or torch.is_grad_enabled():
            return
        node = torch._C._current_autograd_node()
        if node is None:
            return
        index = self._modules.of(node._sequence_nr())
        if index == self._in_backward or index < 0:
            return
        if self._in_backward is not None:
            self.moment("backward_end", self._in_backward)
        self._in_backward = index
        self.moment("backward", index)

    def end_backward(self) -> None:
        """Backward is over."""
        if self._in_backward is not None:
            self.moment("backward_end", self._in_backward)
            self._in_backward = None

    @contextmanager
    def labelled(self, category: str) -> Iterator[None]:
        """Storages first seen inside belong to `category`."""
        before, self._label = self._label, _CATEGORY[category]
        try:
            yield
        finally:
            self._label = before

    def _where(self) -> tuple[str, float]:
        if self.phase != _BACKWARD:
            return self._part, self._share
        node = torch._C._current_autograd_node()
        if node is None:
            return "logits", 1.0
        part, share = self._parts.of(node._sequence_nr())
        if torch.is_grad_enabled() and self._part != part:  # a checkpointed layer runs forward again, inside backward
            self._part = part
            self._parts.set((part, self._share))
        return part, (self._share if torch.is_grad_enabled() else share)

    # ---- storages -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """The steps are over: what dies from here on is not part of them."""
        self._closed = True

    def _event(self, kind: int, storage: int) -> None:
        if self._closed:
            return
        self.event_kind.append(kind)
        self.event_storage.append(storage)
        self.event_phase.append(self.phase)
        self.event_step.append(self.step)
        self.event_cut.append(self.cut)
        self.event_tag.append(self._tag if self._tag >= 0 else self._storage_tag[storage])

    def _new(self, size: int, category: int, source: str, tag: int | None = None) -> int:
        self._storage_tag.append(self._tag if tag is None else tag)
        self.storage_bytes.append(size)
        self.storage_category.append(category)
        self.storage_source.append(source)
        number = len(self.storage_bytes) - 1
        self._made_at.append(len(self.event_kind))
        self._made_by.append(self._node)
        if self._orphaned and self.phase not in _BY_MODEL:
            self.orphans.add(number)
        if self._accumulating:
            self.accumulating.add(number)
        self._event(1, number)
        return number

    def _when_freed(self, key: int, number: int) -> Callable[[Any], None]:
        return lambda _: self._freed(key, number)

    def _freed(self, key: int, number: int) -> None:
        entry = self._live.get(key)
        if entry is not None and entry[1] == number:
            del self._live[key]
        self._event(-1, number)

    def see(self, tensor: torch.Tensor, category: str | None = None, source: str = "", tag: int | None = None) -> None:
        """Counts the storage of `tensor` if it is on the traced device and was not seen before.

        Args:
            tag: block that it belongs to; None: the one that is running.
        """
        if tensor.device.type != self.device:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live:
            return
        if category is not None:
            label = _CATEGORY[category]
        elif self._label is not None:
            label = self._label
        elif self.phase in _BY_MODEL:
            label = _CATEGORY[PART_CATEGORY[self._where()[0]]]
        else:
            label = _CATEGORY["workspace"]
        number = self._new(storage.nbytes(), label, source, tag)
        self._live[key] = (weakref.ref(storage, self._when_freed(key, number)), number)

    def relabel(self, tensor: torch.Tensor, category: str) -> None:
        """The storage of `tensor` turned out to be, for example, a gradient."""
        entry = self._live.get(tensor.untyped_storage()._cdata)
        if entry is not None:
            self.storage_category[entry[1]] = _CATEGORY[category]

    def transient(self, sizes: Iterable[int], source: str) -> None:
        """Memory that a kernel takes and gives back before it returns."""
        numbers = [self._new(size, _CATEGORY["workspace"], source) for size in sizes if size > 0]
        for number in numbers:
            self._event(-1, number)

    def keep(self, size: int, source: str) -> None:
        """Memory that a library takes here and never gives back."""
        self._new(size, _CATEGORY["workspace"], source)

    # ---- operations ---------------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: PLR0912 - hot
        kwargs = kwargs or {}
        if self.phase == _BACKWARD:
            self._follow_block()
            self._follow_backward()
            if func in CANDIDATES:
                func = in_place(func, args, self._made_here(args[0]))
        operation = _KNOWN.get(id(func))
        if operation is None:
            operation = _KNOWN[id(func)] = Operation(func)
        try:
            out, call = _MEMO.run(operation, func, args, kwargs)
        except RuntimeError as error:
            if isinstance(error, NotImplementedError) or "device" not in str(error):
                raise
            args = self._on_device(args)
            kwargs = {name: self._on_device(value) for name, value in kwargs.items()}
            out, call = func(*args, **kwargs), Call(None, False)
            self.unmixed.add(operation.name)
        scratch = self.scratch.get(operation.name)
        if scratch is not None and self._is_traced(out):
            self.transient(scratch(args, out), operation.name)
        tags = [] if self.phase in _BY_MODEL else self._tags_by_argument(args, out)
        if isinstance(out, torch.Tensor):
            self.see(out, source=operation.name)
            self._joined(args, out)
        elif isinstance(out, (tuple, list)):
            for place, item in enumerate(out):
                if isinstance(item, torch.Tensor):
                    self.see(item, source=operation.name, tag=tags[place] if tags else None)
                elif isinstance(item, (tuple, list)):
                    for inner in item:
                        if isinstance(inner, torch.Tensor):
                            self.see(inner, source=operation.name)
        if self.recording and not operation.idle:
            self._count(operation, args, kwargs, out, call)
        return out

    def _is_traced(self, out: Any) -> bool:
        first = out[0] if isinstance(out, (tuple, list)) else out
        return isinstance(first, torch.Tensor) and first.device.type == self.device

    def _on_device(self, value: Any) -> Any:
        """Index tensors are real, on the CPU, because their values shape the computation; a run has them on the device."""
        if isinstance(value, torch.Tensor) and value.device.type == "cpu" and value.dim() > 0:
            moved = torch.empty(value.shape, dtype=value.dtype, device=self.device)
            self.see(moved, source="index")
            return moved
        if isinstance(value, (tuple, list)):
            return type(value)(self._on_device(item) for item in value)
        return value

    def _joined(self, args: Any, out: torch.Tensor) -> None:
        """Notes a storage that is as large as a list of tensors of several blocks together (`stack` of norms)."""
        if self._tag >= 0 or not args or not isinstance(args[0], (tuple, list)) or len(args[0]) < 2:
            return
        pieces: ByTag = {}
        for item in args[0]:
            if not isinstance(item, torch.Tensor):
                return
            tag = self._tag_of(item)
            pieces[-1 if tag is None else tag] = pieces.get(-1 if tag is None else tag, 0) + item.numel() * out.element_size()
        entry = self._live.get(out.untyped_storage()._cdata)
        if entry is not None and max(pieces) >= 0 and sum(pieces.values()) == self.storage_bytes[entry[1]]:
            self.storage_spread[entry[1]] = pieces

    def _count(self, operation: Operation, args: Any, kwargs: Any, out: Any, call: Call) -> None:
        entry = call.entry if call.distinct else None
        found = entry.figures if entry is not None else None
        if found is None:
            found = count(operation, args, kwargs, out, self.device)
            if entry is not None:
                entry.figures = found
        flops, read, written = found
        if read + written == 0:
            return
        if operation.attention:
            flops *= self._where()[1]
        spread = None
        if self._tag < 0 and self.phase not in _BY_MODEL:
            spread = self._spread(operation, (args, tuple(kwargs.values())), out)
        if self._accumulating:
            self.accumulating_operations.add(len(self.operations))
        self.operations.append(Recorded(operation.name, self.phase, flops, read, written, self._tag, spread))

    def _spread(self, operation: Operation, given: Any, out: Any) -> tuple[ByTag, ByTag]:
        seen: set[int] = set()
        read: ByTag = {}
        written: ByTag = {}
        traffic_by_tag(given, self.device, seen, self._shares, read)
        traffic_by_tag(out, self.device, seen, self._shares, written)
        for position in operation.written:
            if position < len(given[0]):
                traffic_by_tag(given[0][position], self.device, set(), self._shares, written)
        return read, written
