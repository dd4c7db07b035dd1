"""Where autograd works in place, although it does not while a dispatch mode looks on.

Two gradients of one value (a tied weight, the ends of a residual connection) are added up by autograd's engine, which writes
into the first if nothing else holds it (torch/csrc/autograd/input_buffer.cpp, `can_accumulate_inplace`, torch 2.13), and the
backward of an index writes into zeros that it has just made (FunctionsManual.cpp). Both ask `isTensorSubclassLike` first, which
is true of every tensor under a dispatch mode, and then make a new tensor. Here the same is decided as without the mode.
"""

import functools
import sys
from typing import Any

import torch
from torch.autograd import graph
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

INTO_ZEROS = {
    aten.index_put.default: aten.index_put_.default,
    aten.scatter_add.default: aten.scatter_add_.default,
    aten.index_add.default: aten.index_add_.default,
}
"""Of `index_backward`, `gather_backward` and `index_select_backward`."""
_WRAPPERS = ("torch._dynamo", "torch._compile", "torch.utils._python_dispatch")
CANDIDATES = frozenset({aten.add.Tensor, *INTO_ZEROS})


def in_place(func: Any, args: Any, made_here: bool) -> Any:
    """What a run calls in backward where the trace sees `func`, one of `CANDIDATES`: the variant in place, or `func` itself.

    Args:
        made_here: the first argument was made by the backward node that is running. Such a one is written into by an index's
            backward; in a sum it is an intermediate result of that node, whereas the engine adds to what another node left.
    """
    if torch.is_grad_enabled() or not _called_by_engine():
        return func  # a recomputed forward, or the backward of a function written in Python
    if func in INTO_ZEROS:
        return INTO_ZEROS[func] if made_here else func
    first, second = args[0], args[1]
    if made_here or not isinstance(second, torch.Tensor) or first.shape != second.shape or first.dtype != second.dtype:
        return func
    dense = torch._debug_has_internal_overlap(first) == 0
    return aten.add_.Tensor if dense and holders(first) == held_by_one() else func


def _called_by_engine() -> bool:
    """Whether no Python code lies between the engine and `__torch_dispatch__` but what torch itself wraps around the latter."""
    frame = sys._getframe(3)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_WRAPPERS):
        frame = frame.f_back
    return frame.f_code is graph._engine_run_backward.__code__


def holders(tensor: torch.Tensor) -> tuple[int, int]:
    """References to a tensor and to its storage, those of the call in progress included."""
    return tensor._use_count(), torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)


@functools.cache
def held_by_one() -> tuple[int, int]:
    """`holders`, within `__torch_dispatch__`, of a gradient that the engine alone holds: how many the call itself adds.

    Asked of the torch that runs; must first be called outside of every dispatch mode.
    """
    seen: list[tuple[int, int]] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is aten.add.Tensor and not torch.is_grad_enabled():
                seen.append(holders(args[0]))
            return func(*args, **(kwargs or {}))

    weight = torch.empty(2, device="meta", requires_grad=True)
    with torch.enable_grad(), Watch():
        ((weight * 2).sum() + (weight * 3).sum()).backward()
    return seen[0]
