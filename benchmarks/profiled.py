"""Bytes that real tensors take on the CPU: what a model holds, and the highest balance of torch's profiler."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def peak_of(model: torch.nn.Module, run: Callable[[], Any]) -> int:
    """Peak bytes while `run` trains `model`: what the model holds before, plus the profiler's highest balance."""
    from torch.profiler import ProfilerActivity, profile

    static = held(model)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    return static + _highest(profiler)


def held(model: torch.nn.Module) -> int:
    """Bytes of the distinct storages of parameters and buffers."""
    storages = {
        tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in [*model.parameters(), *model.buffers()]
    }
    return sum(storages.values())


def _highest(profiler: Any) -> int:
    from torch._C._profiler import _EventType

    events = []
    stack = list(profiler.profiler.kineto_results.experimental_event_tree())
    while stack:
        event = stack.pop()
        stack.extend(event.children)
        if event.tag == _EventType.Allocation:
            events.append((event.start_time_ns, event.extra_fields.alloc_size))
    events.sort(key=lambda event: event[0])
    return max(0, int(np.cumsum([size for _, size in events]).max()))
