"""The CUDA meter's arithmetic against a device that is made up: there is none where these tests run."""

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from autofit.worker import meter_cuda  # noqa: E402
from autofit.worker.meter import Meter  # noqa: E402
from autofit.worker.report import RankReport  # noqa: E402

GIB = 2**30
TOTAL = 80 * GIB
OTHERS, CONTEXT = GIB // 2, GIB


class FakeCuda:
    """A device of 80 GiB with a caching allocator that never gives back."""

    def __init__(self) -> None:
        self.allocated = self.reserved = self.peak_allocated = self.peak_reserved = 0
        self.outside = CONTEXT
        self.strangers = 0
        self.fractions: list[float] = []

    def take(self, size: int) -> None:
        self.allocated += size
        self.reserved = max(self.reserved, self.allocated)
        self.peak_allocated = max(self.peak_allocated, self.allocated)
        self.peak_reserved = max(self.peak_reserved, self.reserved)

    def reset(self, _device: Any = None) -> None:
        self.peak_allocated, self.peak_reserved = self.allocated, self.reserved


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    replaced = {
        "set_device": lambda _device: None,
        "synchronize": lambda _device=None: None,
        "mem_get_info": lambda _device=None: (TOTAL - OTHERS - fake.outside - fake.strangers - fake.reserved, TOTAL),
        "memory_reserved": lambda _device=None: fake.reserved,
        "max_memory_allocated": lambda _device=None: fake.peak_allocated,
        "max_memory_reserved": lambda _device=None: fake.peak_reserved,
        "reset_peak_memory_stats": fake.reset,
        "set_per_process_memory_fraction": lambda fraction, _device=None: fake.fractions.append(fraction),
        "memory_stats": lambda _device=None: {"num_alloc_retries": 3},
        "get_device_properties": lambda _device: SimpleNamespace(name="Made up", total_memory=TOTAL, major=9, minor=0),
    }
    for name, function in replaced.items():
        monkeypatch.setattr(torch.cuda, name, function)
    monkeypatch.setattr(meter_cuda, "_used_by_others", lambda _rank: OTHERS)
    return fake


def test_peak_is_reserved_and_what_lies_outside(cuda: FakeCuda) -> None:
    meter, report = Meter(meter_cuda.CudaBackend(0)), RankReport(rank=0)
    meter.start(24 * GIB)
    assert cuda.fractions == [pytest.approx((24 - 1) / 80)]
    meter.step_begins()
    meter.enter("forward")
    cuda.take(10 * GIB)
    meter.enter("backward")
    cuda.take(-4 * GIB)
    meter.enter("forward")
    meter.enter("optimizer_step")
    cuda.outside += GIB // 4  # a communicator
    meter.step_ends()
    meter.finish(report)
    assert cuda.fractions[-1] == pytest.approx((24 - 1.25) / 80)
    assert report.peak_allocated_bytes == report.peak_reserved_bytes == 10 * GIB
    assert report.peak_device_bytes == 10 * GIB + CONTEXT + GIB // 4
    assert report.phase_peak_bytes["load"] == CONTEXT
    assert report.phase_allocated_bytes == {"load": 0, "forward": 10 * GIB, "backward": 10 * GIB, "optimizer_step": 6 * GIB}
    assert report.num_alloc_retries == 3
    assert report.memory_limit == "allocator cap (emulated)"
    assert report.not_measured == []


def test_without_a_budget_nothing_is_capped(cuda: FakeCuda) -> None:
    meter, report = Meter(meter_cuda.CudaBackend(0)), RankReport(rank=0)
    meter.start(None)
    meter.finish(report)
    assert cuda.fractions == []
    assert report.memory_limit is None


def test_a_budget_below_the_context_leaves_nothing(cuda: FakeCuda) -> None:
    Meter(meter_cuda.CudaBackend(0)).start(GIB // 2)
    assert cuda.fractions == [0.0]


def test_without_nvml_it_says_what_it_assumed(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter_cuda, "_used_by_others", lambda _rank: None)
    report = RankReport(rank=0)
    meter = Meter(meter_cuda.CudaBackend(0))
    meter.start(None)
    meter.finish(report)
    assert report.peak_device_bytes == CONTEXT + OTHERS
    assert any("NVML" in text for text in report.not_measured)


def test_what_another_process_takes_is_not_ours(cuda: FakeCuda) -> None:
    meter, report = Meter(meter_cuda.CudaBackend(0)), RankReport(rank=0)
    meter.start(24 * GIB)
    meter.step_begins()
    cuda.take(10 * GIB)
    cuda.strangers = 30 * GIB
    meter.step_ends()
    meter.finish(report)
    assert len(cuda.fractions) == 1  # the cap is as it was
    assert report.peak_device_bytes == 10 * GIB + CONTEXT
    assert report.room_bytes == 13 * GIB
    assert report.unclaimed_bytes == 30 * GIB
    assert any("another process took" in text for text in report.not_measured)


def test_without_a_budget_the_room_is_what_the_device_had(cuda: FakeCuda) -> None:
    meter, report = Meter(meter_cuda.CudaBackend(0)), RankReport(rank=0)
    meter.start(None)
    cuda.take(10 * GIB)
    meter.finish(report)
    assert report.room_bytes == TOTAL - OTHERS - CONTEXT - 10 * GIB
    assert report.unclaimed_bytes == 0


def test_a_device_in_an_error_state_says_nothing_of_others(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    meter, report = Meter(meter_cuda.CudaBackend(0)), RankReport(rank=0)
    meter.start(None)

    def gone(_device: Any = None) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "mem_get_info", gone)
    meter.finish(report)
    assert (report.room_bytes, report.unclaimed_bytes) == (None, None)
