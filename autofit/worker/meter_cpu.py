"""The CPU as a device: physical peak of the process, and a resource limit as its memory's size.

Peak: `VmHWM`, reset through `/proc/self/clear_refs`, minus `VmRSS` at the baseline. Budget: `RLIMIT_DATA` = `VmData` at the
baseline + budget, so that the allocation that oversteps it really fails. The two differ: `VmData` counts what is mapped, not
what is touched (8 MiB for each new thread's stack, buffers not yet written), and leaves out files' pages, which `VmHWM` counts.

So the supervisor has malloc give memory back at once (`supervisor.CPU_MALLOC`) and the engine loads libraries, kernels and
helper threads before the baseline. Measured on a trial of the tiny Qwen2.5-VL (1 rank, ZeRO-0, micro-batch 8, 8 steps, twice):
each step's peak after the first lay within 400.0-400.5 MiB, against 482-504 MiB and rising under malloc's defaults; growth of
`VmData` was within 1.5 MiB of that of resident anonymous memory. The price is page faults: half as much CPU time again in such
a step. A plain run that is to be compared in speed needs the same environment.
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
        """Nothing to look after."""

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
