"""The CPU as a device: physical peak of the process, and a resource limit as its memory's size.

Peak: `VmHWM`, reset through `/proc/self/clear_refs`, minus `VmRSS` at the baseline. Budget: `RLIMIT_DATA` = `VmData` at the
baseline + budget, so that the allocation that oversteps it really fails. The two differ: `VmData` counts what is mapped, not
what is touched (8 MiB for each new thread's stack, buffers not yet written), and leaves out files' pages, which `VmHWM` counts.

So the supervisor fixes malloc's thresholds (`supervisor.CPU_MALLOC`) and the engine loads libraries, kernels and helper threads
before the baseline. What the thresholds cost and buy, on the winner of the tiny Qwen2.5-VL space (2 ranks, ZeRO-0, 11 steps,
two runs each): giving back everything above 128 KiB keeps the steps' peaks within 151.4-152.7 MiB, but page faults take a
third of the speed (7.0-7.3 against 10.7-11.7 samples/s of a plain run). From 1 MiB on, with 8 MiB kept: 165.9-172.6 MiB, at
11.5-11.7 samples/s. The trial must run at the speed of the real run, so the latter.
"""

import ctypes
import gc
import os
import platform
import resource

from autofit.worker.report import RankReport

_STATUS = "/proc/self/status"
_CLEAR_REFS = "/proc/self/clear_refs"
_RESET_PEAK = b"5"


class CpuBackend:
    """Linux only."""

    def __init__(self) -> None:
        self.memory_limit: str | None = None
        self.allocated_peak: int | None = None
        self.not_measured = ["peak_allocated_bytes and peak_reserved_bytes: the CPU has no caching allocator"]
        self._baseline = 0
        self._hard: int | None = None

    def start(self, budget: int | None) -> int:
        """See `Backend`. Gives free heap back first: reused, it would hide the first allocations from the peak."""
        gc.collect()
        try:
            ctypes.CDLL(None).malloc_trim(0)
        except (OSError, AttributeError):
            pass  # another C library: the baseline is a little higher
        now = _status("VmRSS", "VmData")
        self._baseline = now["VmRSS"]
        self._reset_peak()
        if budget is not None:
            self._hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
            resource.setrlimit(resource.RLIMIT_DATA, (now["VmData"] + budget, self._hard))
            self.memory_limit = "RLIMIT_DATA"
        return self._baseline

    def take_peak(self) -> int:
        """See `Backend`."""
        peak = _status("VmHWM")["VmHWM"]
        self._reset_peak()
        return max(0, peak - self._baseline)

    def synchronise(self) -> None:
        """The CPU is never behind."""

    def step_ended(self) -> None:
        """Nothing to look after; the CPU has no caching allocator."""

    def lift(self) -> None:
        """See `Backend`."""
        if self._hard is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (self._hard, self._hard))
            self._hard = None

    def fill(self, report: RankReport) -> None:
        """See `Backend`."""
        report.hardware = {
            "device": "cpu",
            "machine": platform.machine(),
            "cpu_count": os.cpu_count(),
            "host_memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        }

    def _reset_peak(self) -> None:
        descriptor = os.open(_CLEAR_REFS, os.O_WRONLY)
        try:
            os.write(descriptor, _RESET_PEAK)
        finally:
            os.close(descriptor)


def _status(*names: str) -> dict[str, int]:
    """Bytes of the named lines of /proc/self/status."""
    descriptor = os.open(_STATUS, os.O_RDONLY)
    try:
        text = os.read(descriptor, 16384).decode()
    finally:
        os.close(descriptor)
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name in names:
            found[name] = int(value.split()[0]) * 1024
    return found
