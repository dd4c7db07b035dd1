"""What one operator computes and moves: floating-point operations, and bytes that a kernel has to touch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import flop_registry

_NO_WORK = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "lift_fresh", "_unsafe_view", "detach"}

RESHAPING = {"resize_", "resize_as_", "set_", "squeeze_", "unsqueeze_", "transpose_", "t_", "as_strided_", "detach_"}
"""Operators that change the shape of their argument, not its values."""

ByTag = dict[int, int]
"""Tag of a block -> bytes."""


class Recorded(NamedTuple):
    """One operation of the recorded step."""

    name: str
    phase: int
    flops: float
    bytes_read: float
    bytes_written: float
    tag: int = -1
    """Block instance that it belongs to."""
    spread: tuple[ByTag, ByTag] | None = None
    """Bytes read and written by block, of one operation on tensors of many blocks; the two figures are their sums."""


class Operation:
    """What is constant about an operator: its name, whether it works at all, which arguments it writes, how it counts."""

    def __init__(self, func: Any) -> None:
        self.func = func
        packet = func._overloadpacket
        self.name = str(func._schema.name).split("::")[1]
        self.idle = bool(getattr(func, "is_view", False)) or self.name in _NO_WORK
        self.written = [
            position
            for position, argument in enumerate(func._schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        self.makes = not any(argument.alias_info for argument in (*func._schema.arguments, *func._schema.returns))
        """Returns nothing that was given to it."""
        self.returns = len(func._schema.returns)
        self.in_place = self.written == [0] and self.name.endswith("_") and self.returns <= 1 and self.name not in RESHAPING
        """Changes values of its first argument and nothing else."""
        self.flops = flop_registry.get(packet)
        self.attention = self.name in _ATTENTION


def count(operation: Operation, args: Any, kwargs: Any, out: Any, device: str) -> tuple[float, float, float]:
    """(FLOPs, bytes read, bytes written) of one run; attention counts the whole square, or its half when causal."""
    seen: set[int] = set()
    read = traffic((args, tuple(kwargs.values())), device, seen)
    written = traffic(out, device, seen)
    for position in operation.written:
        if position < len(args):
            written += traffic(args[position], device, set())
    flops = 0.0
    if operation.attention:
        flops = attention_flops(operation.name, args)
    elif operation.flops is not None:
        flops = float(operation.flops(*args, **kwargs, out_val=out))
    return flops, float(read), float(written)


def traffic(value: Any, device: str, seen: set[int]) -> int:
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
        return sum(traffic(item, device, seen) for item in value)
    return 0


def traffic_by_tag(value: Any, device: str, seen: set[int], shares: Callable[[torch.Tensor], ByTag], found: ByTag) -> None:
    """Adds to `found` what `traffic` counts, by the blocks that each tensor is of (`shares`: parts of the tensor's bytes)."""
    if isinstance(value, torch.Tensor):
        touched = traffic(value, device, seen)
        if touched:
            parts = shares(value)
            whole = sum(parts.values()) or 1
            for tag, part in parts.items():
                found[tag] = found.get(tag, 0) + touched * part // whole
    elif isinstance(value, (tuple, list)):
        for item in value:
            traffic_by_tag(item, device, seen, shares, found)


# operator -> (position of the query, position of `is_causal`, products: two forward, five backward since scores are recomputed)
_ATTENTION = {
    "_scaled_dot_product_flash_attention": (0, 4, 2),
    "_scaled_dot_product_efficient_attention": (0, 6, 2),
    "_scaled_dot_product_flash_attention_for_cpu": (0, 4, 2),
    "_scaled_dot_product_flash_attention_backward": (1, 11, 5),
    "_scaled_dot_product_efficient_attention_backward": (1, 11, 5),
    "_scaled_dot_product_flash_attention_for_cpu_backward": (1, 7, 5),
}


def attention_flops(name: str, args: Any) -> float:
    """Operations of the fused attention kernels; half of the square when causal."""
    position, causal_at, products = _ATTENTION[name]
    query, key = args[position], args[position + 1]
    batch, heads, length, width = query.shape
    full = 2.0 * products * batch * heads * length * key.shape[2] * width
    return full / 2 if len(args) > causal_at and args[causal_at] is True and length > 1 else full
