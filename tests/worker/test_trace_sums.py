"""Backward takes the bytes under the tracer that it takes without a dispatch mode looking on."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.utils.checkpoint import checkpoint  # noqa: E402

from autofit.worker.trace_tracer import StorageTracer  # noqa: E402

SIZE = 1 << 16
"""Elements of a case's tensors: large against whatever else is allocated."""


def tied(weight, index):
    return (weight * 2).sum() + (weight * 3).sum()


def residual(weight, index):
    value = weight * 1
    return (value + value.exp()).sum()


def residual_squared(weight, index):
    value = weight * 1
    return ((value.exp() * 2 + value) ** 2).sum()


def three_uses(weight, index):
    value = weight * 1
    return (value.exp() * value.sin() * value.cos()).sum()


def recomputed(weight, index):
    return checkpoint(lambda value: (value.exp() * 2 + value) ** 2, weight * 1, use_reentrant=True).sum()


def picked(weight, index):
    return weight[index].exp().sum()


def gathered(weight, index):
    return weight.gather(0, index).exp().sum()


def selected(weight, index):
    return weight.index_select(0, index).exp().sum()


class Doubled(torch.autograd.Function):
    """A Python function whose backward adds to what came in."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient + gradient.exp()


def by_python(weight, index):
    return (Doubled.apply(weight * 1) ** 2).sum()


def traced_peak(case):
    tracer = StorageTracer("meta")
    weight = torch.empty(SIZE, device="meta", requires_grad=True)
    index = torch.empty(2, dtype=torch.long, device="meta")
    tracer.see(weight)
    with tracer:
        tracer.enter("forward", 0)
        loss = case(weight, index)
        tracer.enter("backward", 0)
        loss.backward()
    sizes = np.asarray(tracer.storage_bytes)[np.asarray(tracer.event_storage)]
    return int(np.cumsum(sizes * np.asarray(tracer.event_kind)).max())


def real_peak(case):
    from torch._C._profiler import _EventType
    from torch.profiler import ProfilerActivity, profile

    weight, index = torch.ones(SIZE, requires_grad=True), torch.tensor([0, 2])
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        case(weight, index).backward()
    found, stack = [], list(profiler.profiler.kineto_results.experimental_event_tree())
    while stack:
        event = stack.pop()
        stack.extend(event.children)
        if event.tag == _EventType.Allocation:
            found.append((event.start_time_ns, event.extra_fields.alloc_size))
    return weight.nbytes + int(np.cumsum([size for _, size in sorted(found, key=lambda item: item[0])]).max())


@pytest.mark.parametrize(
    "case",
    [tied, residual, residual_squared, three_uses, recomputed, picked, gathered, selected, by_python],
    ids=lambda case: case.__name__,
)
def test_backward_takes_the_bytes_of_a_run(case):
    assert traced_peak(case) == pytest.approx(
        real_peak(case), abs=SIZE // 4
    )  # scalars and saved random states; a tensor is 4 * SIZE
