"""Follows every storage of a training step from its first sight to its release, and every operation's arithmetic and traffic.

The tracer is a `TorchDispatchMode`: it sits below autograd, so it sees what a device would execute. Tensors live on the
`meta` device: they have shapes and lifetimes, but no memory. A storage counts from the operation that returns it until its
last reference dies (a weak reference tells), which is what a caching allocator sees.
"""

import bisect
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

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
_CATEGORY = {name: number for number, name in enumerate(CATEGORIES)}
_PHASE = {name: number for number, name in enumerate(PHASES)}
_NO_WORK = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "lift_fresh", "_unsafe_view", "detach"}

Scratch = Callable[[tuple[Any, ...], Any], list[int]]


class _Operation:
    """What is constant about an operator: its name, whether it works at all, which arguments it writes, how it counts."""

    def __init__(self, func: Any) -> None:
        packet = func._overloadpacket
        self.name = str(func._schema.name).split("::")[1]
        self.idle = bool(getattr(func, "is_view", False)) or self.name in _NO_WORK
        self.written = [
            position
            for position, argument in enumerate(func._schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        self.flops = flop_registry.get(packet)
        self.attention = self.name in _ATTENTION


class StorageTracer(TorchDispatchMode):
    """Records events and, while `recording` is set, operations.

    Args:
        device: type of the traced device (`meta`).
        scratch: operator name -> function(args, output) -> bytes that the device's kernel allocates and frees inside.
    """

    def __init__(self, device: str = "meta", scratch: dict[str, Scratch] | None = None) -> None:
        super().__init__()
        self.device = device
        self.scratch = scratch or {}
        self.event_kind: list[int] = []
        self.event_storage: list[int] = []
        self.event_phase: list[int] = []
        self.event_step: list[int] = []
        self.storage_bytes: list[int] = []
        self.storage_category: list[int] = []
        self.storage_source: list[str] = []
        self.operations: list[tuple[str, int, float, float, float]] = []
        self.recording = False
        self.phase = _PHASE["load"]
        self.step = 0
        self.unmixed: set[str] = set()
        self.moments: list[tuple[int, str, int, int]] = []
        self._modules: list[tuple[int, int]] = []
        self._in_backward: int | None = None
        self._label: int | None = None
        self._closed = False
        self._live: dict[int, tuple[Any, int]] = {}
        self._known: dict[Any, _Operation] = {}
        self._part, self._share = "language", 1.0
        self._marks: list[tuple[int, str, float]] = [(-1, "language", 1.0)]

    # ---- where we are -------------------------------------------------------------------------------------------------

    def enter(self, phase: str, step: int) -> None:
        """From here on, events belong to this phase and optimizer step."""
        self.phase, self.step = _PHASE[phase], step
        if phase == "forward":
            self.mark("language", 1.0)

    def mark(self, part: str, share: float = 1.0) -> tuple[str, float]:
        """The forward now runs in this part of the model; returns where it was before.

        Backward nodes are told apart by the sequence numbers that autograd gave them in between.

        Args:
            part: key of `PART_CATEGORY`.
            share: fraction of the full attention square that is really computed (windows, several images).
        """
        before = (self._part, self._share)
        self._part, self._share = part, share
        self._marks.append((torch._C._autograd._get_sequence_nr(), part, share))
        return before

    # ---- moments: where DeepSpeed may act ------------------------------------------------------------------------------

    def moment(self, kind: str, index: int, storage: int = -1) -> None:
        """Notes that here, between events, a module begins or ends or a gradient is ready."""
        self.moments.append((len(self.event_kind), kind, index, storage))

    def module_forward(self, index: int) -> None:
        """A module with parameters begins its forward; backward nodes made from here on are its own."""
        self._modules.append((torch._C._autograd._get_sequence_nr(), index))
        self.moment("forward", index)

    def module_forward_end(self, index: int) -> None:
        """The module is done; what follows belongs to none."""
        self._modules.append((torch._C._autograd._get_sequence_nr(), -1))
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
        at = bisect.bisect_right(self._modules, node._sequence_nr(), key=lambda mark: mark[0]) - 1
        index = self._modules[at][1] if at >= 0 else -1
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
        if self.phase != _PHASE["backward"]:
            return self._part, self._share
        node = torch._C._current_autograd_node()
        if node is None:
            return "logits", 1.0
        number = node._sequence_nr()
        at = bisect.bisect_right(self._marks, number, key=lambda mark: mark[0]) - 1
        _, part, share = self._marks[max(at, 0)]
        if torch.is_grad_enabled() and self._part != part:  # a checkpointed layer runs forward again, inside backward
            self._part = part
            self._marks.append((torch._C._autograd._get_sequence_nr(), part, self._share))
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

    def _new(self, size: int, category: int, source: str) -> int:
        self.storage_bytes.append(size)
        self.storage_category.append(category)
        self.storage_source.append(source)
        number = len(self.storage_bytes) - 1
        self._event(1, number)
        return number

    def _when_freed(self, key: int, number: int) -> Callable[[Any], None]:
        return lambda _: self._freed(key, number)

    def _freed(self, key: int, number: int) -> None:
        entry = self._live.get(key)
        if entry is not None and entry[1] == number:
            del self._live[key]
        self._event(-1, number)

    def see(self, tensor: torch.Tensor, category: str | None = None, source: str = "") -> None:
        """Counts the storage of `tensor` if it is on the traced device and was not seen before."""
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
        elif self.phase in (_PHASE["forward"], _PHASE["backward"]):
            label = _CATEGORY[PART_CATEGORY[self._where()[0]]]
        else:
            label = _CATEGORY["workspace"]
        number = self._new(storage.nbytes(), label, source)
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
        operation = self._known.get(func)
        if operation is None:
            operation = self._known[func] = _Operation(func)
        if self.phase == _PHASE["backward"]:
            self._follow_backward()
        try:
            out = func(*args, **kwargs)
        except RuntimeError as error:
            if isinstance(error, NotImplementedError) or "device" not in str(error):
                raise
            args = self._on_device(args)
            kwargs = {name: self._on_device(value) for name, value in kwargs.items()}
            out = func(*args, **kwargs)
            self.unmixed.add(operation.name)
        scratch = self.scratch.get(operation.name)
        if scratch is not None:
            self.transient(scratch(args, out), operation.name)
        if isinstance(out, torch.Tensor):
            self.see(out, source=operation.name)
        elif isinstance(out, (tuple, list)):
            for item in out:
                if isinstance(item, torch.Tensor):
                    self.see(item, source=operation.name)
                elif isinstance(item, (tuple, list)):
                    for inner in item:
                        if isinstance(inner, torch.Tensor):
                            self.see(inner, source=operation.name)
        if self.recording and not operation.idle:
            self._count(operation, args, kwargs, out)
        return out

    def _on_device(self, value: Any) -> Any:
        """Index tensors are real, on the CPU, because their values shape the computation; a run has them on the device."""
        if isinstance(value, torch.Tensor) and value.device.type == "cpu" and value.dim() > 0:
            moved = torch.empty(value.shape, dtype=value.dtype, device=self.device)
            self.see(moved, source="index")
            return moved
        if isinstance(value, (tuple, list)):
            return type(value)(self._on_device(item) for item in value)
        return value

    def _count(self, operation: _Operation, args: Any, kwargs: Any, out: Any) -> None:
        seen: set[int] = set()
        read = _traffic((args, tuple(kwargs.values())), self.device, seen)
        written = _traffic(out, self.device, seen)
        for position in operation.written:
            if position < len(args):
                written += _traffic(args[position], self.device, set())
        if read + written == 0:
            return
        flops = 0.0
        if operation.attention:
            flops = _attention_flops(operation.name, args) * self._where()[1]
        elif operation.flops is not None:
            flops = float(operation.flops(*args, **kwargs, out_val=out))
        self.operations.append((operation.name, self.phase, flops, float(read), float(written)))


def _traffic(value: Any, device: str, seen: set[int]) -> int:
    """Bytes of the distinct tensors in `value` that a kernel has to touch; broadcast dimensions cost nothing."""
    if isinstance(value, torch.Tensor):
        if value.device.type != device or id(value) in seen:
            return 0
        seen.add(id(value))
        elements = 1
        for length, stride in zip(value.shape, value.stride(), strict=True):
            if stride:
                elements *= length
        return elements * value.element_size()
    if isinstance(value, (tuple, list)):
        return sum(_traffic(item, device, seen) for item in value)
    return 0


# operator -> (position of the query, position of `is_causal`, products: two forward, five backward since scores are recomputed)
_ATTENTION = {
    "_scaled_dot_product_flash_attention": (0, 4, 2),
    "_scaled_dot_product_efficient_attention": (0, 6, 2),
    "_scaled_dot_product_flash_attention_for_cpu": (0, 4, 2),
    "_scaled_dot_product_flash_attention_backward": (1, 11, 5),
    "_scaled_dot_product_efficient_attention_backward": (1, 11, 5),
    "_scaled_dot_product_flash_attention_for_cpu_backward": (1, 7, 5),
}


def _attention_flops(name: str, args: Any) -> float:
    """Operations of the fused attention kernels; half of the square when causal."""
    position, causal_at, products = _ATTENTION[name]
    query, key = args[position], args[position + 1]
    batch, heads, length, width = query.shape
    full = 2.0 * products * batch * heads * length * key.shape[2] * width
    return full / 2 if len(args) > causal_at and args[causal_at] is True and length > 1 else full
