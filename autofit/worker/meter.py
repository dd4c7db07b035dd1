"""Peak memory by phase and step, and step times, on CUDA and on the CPU behind one interface.

`Meter` keeps the books; a back-end knows how to read and reset a peak, to synchronise, and to enforce a budget.
"""

import time
from typing import Protocol

from autofit.worker.report import RankReport


class Backend(Protocol):
    """One kind of device."""

    memory_limit: str | None
    not_measured: list[str]
    allocated_peak: int | None
    """Highest bytes of tensors in what the last `take_peak` was about; None where only the device's memory is known."""

    def start(self, budget: int | None) -> int:
        """Takes the baseline (returned, bytes), resets the peak and enforces `budget` from here on."""

    def take_peak(self) -> int:
        """Highest `peak_device_bytes` since the last call; resets it."""

    def synchronise(self) -> None:
        """Waits until the device has done all that it was given."""

    def step_ended(self) -> int | None:
        """Called once an optimizer step, outside the timed code's hot path.

        Returns how often the allocator has had to release its blocks and try again so far; None where there is none.
        """

    def lift(self) -> None:
        """Takes the budget's enforcement away, so that the report can be written."""

    def fill(self, report: RankReport) -> None:
        """Writes the figures that only this kind of device has."""


class Meter:
    """Keeps the highest peak of each phase and step. All methods are cheap enough for every micro-batch."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._phase: str | None = None
        self._phase_peaks: dict[str, int] = {}
        self._phase_allocated: dict[str, int] = {}
        self._step_peaks: list[int] = []
        self._step_seconds: list[float] = []
        self._step_cpu_seconds: list[float] = []
        self._cpu_mark = 0.0
        self._retries: list[int] = []
        self._retries_before = 0
        self._this_step = 0
        self._mark: float | None = None
        self._baseline: int | None = None

    def start(self, budget: int | None) -> None:
        """Takes the baseline and enforces the budget. Call it with every library loaded and every helper thread running."""
        self._baseline = self._backend.start(budget)
        self._phase = "load"

    def enter(self, phase: str) -> None:
        """The phase that begins now; the one before ends."""
        if self._phase is None or phase == self._phase:
            return
        self._close()
        self._phase = phase

    def step_begins(self) -> None:
        """An optimizer step begins. The first one's time starts here, each later one's where the step before ended.

        So fetching a batch and the loop's own work count, as they do for whoever waits for the training.
        """
        if self._mark is None:
            self._close()
            self._this_step = 0
            self._backend.synchronise()
            self._mark, self._cpu_mark = time.perf_counter(), time.process_time()

    def step_ends(self) -> None:
        """An optimizer step is done."""
        self._backend.synchronise()
        now, cpu = time.perf_counter(), time.process_time()
        self._step_seconds.append(now - (self._mark if self._mark is not None else now))
        self._step_cpu_seconds.append(cpu - (self._cpu_mark if self._mark is not None else cpu))
        self._mark, self._cpu_mark = now, cpu
        self._close()
        self._step_peaks.append(self._this_step)
        self._this_step = 0
        retries = self._backend.step_ended()
        if retries is not None:
            self._retries.append(retries - self._retries_before)
            self._retries_before = retries

    def pause(self) -> None:
        """Something that is no step is over (an evaluation, a save): the next step's time does not begin before it."""
        self._mark = None

    def finish(self, report: RankReport) -> None:
        """Lifts the budget and writes all figures into the report; also after a failure, with what there is."""
        self._backend.lift()
        report.memory_limit = self._backend.memory_limit
        if self._phase is None:
            return
        self._close()
        report.baseline_bytes = self._baseline
        report.phase_peak_bytes = dict(self._phase_peaks)
        report.phase_allocated_bytes = dict(self._phase_allocated)
        report.step_peak_bytes = list(self._step_peaks)
        report.step_seconds = list(self._step_seconds)
        report.step_cpu_seconds = list(self._step_cpu_seconds)
        report.step_alloc_retries = list(self._retries)
        report.peak_device_bytes = max(self._phase_peaks.values()) or None  # ended before it took anything: not measured
        self._backend.fill(report)
        report.not_measured += self._backend.not_measured

    def _close(self) -> None:
        peak = self._backend.take_peak()
        if self._phase is not None:
            self._phase_peaks[self._phase] = max(peak, self._phase_peaks.get(self._phase, 0))
            if (allocated := self._backend.allocated_peak) is not None:
                self._phase_allocated[self._phase] = max(allocated, self._phase_allocated.get(self._phase, 0))
        self._this_step = max(self._this_step, peak)
