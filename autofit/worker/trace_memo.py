"""Results of operators on `meta` tensors, remembered by what went in: shapes, strides, types and plain values decide them.

Working out the shape of one result takes torch some hundred microseconds of Python, and blocks, micro-batches, steps and
variants ask the same again and again. An operator that makes new tensors is answered by empty ones of the layout that it gave
before; one that changes its first argument in place, by that argument. Views, and whatever touches a tensor with values, are
always run.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch

from autofit.worker.trace_operations import Operation

_LIMIT = 200_000


class Entry:
    """What is remembered of equal calls: the layout of their result, and figures that the tracer adds."""

    __slots__ = ("figures", "layout")

    def __init__(self) -> None:
        self.layout: Any = _NOTHING
        self.figures: tuple[float, float, float] | None = None
        """FLOPs, bytes read, bytes written."""


class Call(NamedTuple):
    """One call of an operator as a memo knows it."""

    entry: Entry | None
    """None: the call is not remembered."""
    distinct: bool
    """No tensor was given twice, so that its traffic depends on the entry alone."""


_NOTHING = object()
_NOT_REMEMBERED = Call(None, False)


class _Real(Exception):  # noqa: N818 - control flow inside this module
    """A tensor with values is among the arguments."""


class Memo:
    """Entries by operator, layouts of its tensors and its plain values."""

    def __init__(self) -> None:
        self._entries: dict[Any, Entry] = {}

    def run(self, operation: Operation, func: Any, args: Any, kwargs: Any) -> tuple[Any, Call]:
        """The operator's result, and the call with its entry."""
        if operation.idle or not (operation.makes or operation.in_place):
            return func(*args, **kwargs), _NOT_REMEMBERED
        tensors: list[torch.Tensor] = []
        try:
            key = (operation, _key(args, tensors), _key(kwargs.items(), tensors) if kwargs else None)
            entry = self._entries.get(key)
        except (_Real, TypeError):  # an argument that has no hash
            return func(*args, **kwargs), _NOT_REMEMBERED
        if entry is None:
            if len(self._entries) > _LIMIT:
                self._entries.clear()
            entry = self._entries[key] = Entry()
        call = Call(entry, len(tensors) < 2 or len({id(tensor) for tensor in tensors}) == len(tensors))
        if operation.in_place and tensors:
            return (args[0] if operation.returns else None), call
        if entry.layout is not _NOTHING:
            return _made(entry.layout), call
        out = func(*args, **kwargs)
        try:
            entry.layout = _layout(out, {tensor.untyped_storage()._cdata for tensor in tensors})
        except _Unknown:
            pass
        return out, call


def _key(values: Iterable[Any], tensors: list[torch.Tensor]) -> tuple[Any, ...]:
    parts: list[Any] = []
    for value in values:
        if isinstance(value, torch.Tensor):
            if not value.is_meta:
                raise _Real
            tensors.append(value)
            parts.append((value.shape, value.stride(), value.dtype))
        elif isinstance(value, (tuple, list)):
            parts.append(_key(value, tensors))
        else:
            parts += (value.__class__, value)
    return tuple(parts)


class _Unknown(Exception):  # noqa: N818 - control flow inside this module
    """A result that cannot be made again from its layout."""


def _layout(out: Any, taken: set[int]) -> Any:
    """What `_made` needs to make `out` again: only for new, whole, separate tensors on `meta`."""
    if isinstance(out, torch.Tensor):
        storage = out.untyped_storage()
        needed = 0 if 0 in out.shape else 1 + sum((n - 1) * step for n, step in zip(out.shape, out.stride(), strict=True))
        whole = out.storage_offset() == 0 and storage.nbytes() == needed * out.element_size()
        if not out.is_meta or not whole or storage._cdata in taken:
            raise _Unknown
        taken.add(storage._cdata)
        return _Tensor(out.shape, out.stride(), out.dtype)
    if isinstance(out, (tuple, list)):
        return [_layout(item, taken) for item in out]
    if out is None or isinstance(out, (int, float)):
        return out
    raise _Unknown


class _Tensor(NamedTuple):
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype


def _made(layout: Any) -> Any:
    if isinstance(layout, _Tensor):
        return torch.empty_strided(layout.shape, layout.stride, dtype=layout.dtype, device="meta")
    if isinstance(layout, list):
        return [_made(item) for item in layout]
    return layout
