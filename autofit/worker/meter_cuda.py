"""CUDA: the caching allocator's peaks, plus what the device loses outside it (context, NCCL, cuBLAS handles, modules).

Non-torch memory = the device's used memory now - what others held before this process touched it - the allocator's reserved.
The device is leased to this trial alone, so a difference is ours. The budget is emulated: the allocator may reserve
budget - non-torch memory. `set_per_process_memory_fraction` alone would not do: it knows nothing of the rest.

A process that has no lease can take memory all the same. What it takes looks like non-torch memory of ours, so a jump that no
library makes is left out of it, and the report says what the budget would still have granted (`room_bytes`) and what on the
device is nobody's we know of (`unclaimed_bytes`): by these `outcomes.acquit` judges a failed allocation.
"""

import os
from typing import Any

import torch

from autofit.worker.report import RankReport

_NO_NVML = "memory that others held on the device before: NVML is missing or too old; taken as 0"

PLAUSIBLE_GROWTH_BYTES = 2 * 2**30
"""What libraries take outside the allocator in one step at most (a communicator 0.3 to 1 GiB, modules some hundred MiB)."""


class CudaBackend:
    """The current CUDA device of this rank. Create it before anything touches the device."""

    def __init__(self, local_rank: int) -> None:
        self.memory_limit: str | None = None
        self.not_measured: list[str] = []
        self.allocated_peak: int | None = None
        held = _used_by_others(local_rank)
        self._others = held or 0
        if held is None:
            self.not_measured.append(_NO_NVML)
        self._device = torch.device("cuda", local_rank)
        self._budget: int | None = None
        self._non_torch = 0
        self._taken = 0
        self._allocated = 0
        self._reserved = 0

    def start(self, budget: int | None) -> int:
        """See `Backend`. Returns the device memory in use by this process and others, context and communicators included."""
        torch.cuda.set_device(self._device)
        self.synchronise()
        self._budget = budget
        self._look_outside()
        torch.cuda.reset_peak_memory_stats(self._device)
        free, total = torch.cuda.mem_get_info(self._device)
        return int(total - free)

    def take_peak(self) -> int:
        """See `Backend`. The allocator works when the host asks, so no synchronisation is needed for the right phase."""
        allocated = torch.cuda.max_memory_allocated(self._device)
        reserved = torch.cuda.max_memory_reserved(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        self.allocated_peak = int(allocated)
        self._allocated = max(self._allocated, allocated)
        self._reserved = max(self._reserved, reserved)
        return int(reserved) + self._non_torch

    def synchronise(self) -> None:
        """See `Backend`."""
        torch.cuda.synchronize(self._device)

    def step_ended(self) -> int:
        """Looks again at what lies outside the allocator: NCCL and lazily loaded kernels grow in the first steps."""
        self._look_outside()
        return int(torch.cuda.memory_stats(self._device).get("num_alloc_retries", 0))

    def lift(self) -> None:
        """See `Backend`. The report is written in host memory: nothing to lift."""

    def fill(self, report: RankReport) -> None:
        """See `Backend`."""
        try:
            retries: int | None = int(torch.cuda.memory_stats(self._device).get("num_alloc_retries", 0))
        except RuntimeError:  # the device is in an error state: what was read before stands
            retries = None
        report.peak_allocated_bytes = self._allocated
        report.peak_reserved_bytes = self._reserved
        report.peak_device_bytes = max(self._reserved + self._non_torch, report.peak_device_bytes or 0)
        report.num_alloc_retries = retries
        report.room_bytes, report.unclaimed_bytes = self._left()
        if self._taken:
            self.not_measured.append(
                f"{self._taken} bytes that another process took of the device are not in peak_device_bytes"
            )
        properties = torch.cuda.get_device_properties(self._device)
        report.hardware = {
            "device": "cuda",
            "name": properties.name,
            "memory_bytes": int(properties.total_memory),
            "compute_capability": f"{properties.major}.{properties.minor}",
            "non_torch_bytes": self._non_torch,
            "cpu_count": os.cpu_count(),
        }

    def _look_outside(self) -> None:
        """Measures non-torch memory (its maximum counts) and fits the allocator's cap to it."""
        outside, total = self._outside()
        if outside <= self._non_torch:
            return
        if self._non_torch and outside - self._non_torch > PLAUSIBLE_GROWTH_BYTES:
            self._taken = max(self._taken, outside - self._non_torch)
            return
        self._non_torch = outside
        if self._budget is not None:
            cap = max(0, self._budget - outside)
            torch.cuda.set_per_process_memory_fraction(min(1.0, cap / total), self._device)
            self.memory_limit = "allocator cap (emulated)"

    def _outside(self) -> tuple[int, int]:
        """(bytes on the device that neither the allocator holds nor others held before, the device's bytes)"""
        free, total = torch.cuda.mem_get_info(self._device)
        return int(total - free) - self._others - int(torch.cuda.memory_reserved(self._device)), int(total)

    def _left(self) -> tuple[int | None, int | None]:
        """(bytes that the budget would still grant the allocator, bytes on the device that nobody is known to hold)

        (None, None) where the device answers no more.
        """
        try:
            outside, total = self._outside()
        except RuntimeError:
            return None, None
        granted = min(self._budget or total, total - self._others)
        room = granted - self._non_torch - int(torch.cuda.memory_reserved(self._device))
        return max(0, room), max(0, outside - self._non_torch)


def warm_up(local_rank: int) -> None:
    """Makes the context and the cuBLAS handle exist, so that the baseline holds them."""
    torch.cuda.set_device(local_rank)
    square = torch.ones(64, 64, device="cuda", dtype=torch.bfloat16)
    (square @ square).sum().item()
    del square
    torch.cuda.empty_cache()


def _used_by_others(local_rank: int) -> int | None:
    """Bytes used on this rank's device before CUDA starts here, by NVML; None without NVML."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        try:
            # Version 2 keeps what the driver reserves for itself apart from `used`, as CUDA's own count does.
            return int(pynvml.nvmlDeviceGetMemoryInfo(_handle(pynvml, local_rank), version=pynvml.nvmlMemory_v2).used)
        finally:
            pynvml.nvmlShutdown()
    except (pynvml.NVMLError, ValueError, IndexError, TypeError, AttributeError):
        return None  # also an NVML binding too old for version 2


def _handle(nvml: Any, local_rank: int) -> Any:
    """The NVML handle of CUDA device `local_rank` (CUDA_DEVICE_ORDER is PCI_BUS_ID, as in NVML)."""
    visible = [entry.strip() for entry in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if entry.strip()]
    if not visible:
        return nvml.nvmlDeviceGetHandleByIndex(local_rank)
    entry = visible[local_rank]
    return nvml.nvmlDeviceGetHandleByIndex(int(entry)) if entry.isdigit() else nvml.nvmlDeviceGetHandleByUUID(entry)
