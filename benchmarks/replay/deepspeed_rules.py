"""DeepSpeed Autotuning's rules (deepspeed/autotuning/autotuner.py, 0.19, mode `fast`, its default) as a strategy on a table.

What it tunes is the ZeRO stage and the micro-batch; everything else stays as the reference has it. In order:

1. one run at stage 3 and micro-batch 1 tells the activation memory of a sample;
2. stages 0, 1, 2, 3, each only if parameters x bytes (`get_instantiation_memory_required_per_gpu`: Adam, all parameters
   counted, 4 bytes each unless fp16 is on) and one sample's activations are below the memory;
3. in a stage: micro-batch 1 (or the largest of the stage before), then 1.05, 1.0 and 0.95 of the calculated largest, else a
   binary search that stops where throughput gains less than 5 % (`get_min_max_micro_batch_size`);
4. micro-batches from half of the largest on, in three strides, the accumulation following (`get_tuning_micro_batch_size_list`,
   `run_tuning_micro_batch_sizes`), then smaller ones downwards while each gains 5 %;
5. a stage whose largest micro-batch is below that of the stage before ends at once (`tune_space`).

Different here, each in its favour: a micro-batch that the table does not have is the next smaller that it has, and what has run
is not run again; the global batch stays constant; offloading and checkpointing, which it never tunes, are the reference's; the
tuning of bucket sizes that `fast: false` adds is left out.
"""

import math
from collections.abc import Generator

from autofit.config.record import TrialRecord
from autofit.config.trial import TrialSpec
from benchmarks.replay.course import Strategy
from benchmarks.replay.table import Table

GAIN = 0.05
"""METRIC_PERCENT_DIFF_CONST"""
SIZES = 3
"""DEFAULT num_tuning_micro_batch_sizes"""

Speed = float | None
Ask = Generator[TrialSpec, TrialRecord, Speed]


def deepspeed(table: Table, seed: int) -> Strategy:
    """The rules on a table. They are the same for every seed."""
    yield from _Tuner(table).tune()


class _Tuner:
    def __init__(self, table: Table) -> None:
        self._table = table
        self._done: dict[TrialSpec, Speed] = {}
        self._peaks: dict[TrialSpec, int] = {}
        reference = table.legal.reference
        same = [point for point in table.legal.points if self._like(point, reference)]
        self._points: dict[tuple[int, int], TrialSpec] = {(point.zero_stage, point.micro_batch_size): point for point in same}
        self._stages = sorted({stage for stage, _ in self._points})
        self._largest = max(micro for _, micro in self._points)

    def tune(self) -> Strategy:
        activation = yield from self._profile()
        if activation is None:
            return
        largest, best_micro = 0, 0
        for stage in self._stages:
            if self._table.budget_bytes <= self._states(stage) + activation:
                continue
            limit = int((self._table.budget_bytes - self._states(stage)) // activation)
            found = yield from self._stage(stage, largest, limit)
            if found is not None and found[1] > best_micro:
                largest, best_micro = found

    def _profile(self) -> Generator[TrialSpec, TrialRecord, int | None]:
        """Activation memory of one sample, from a run at the highest stage: its peak less what the formula says is held."""
        stage = self._stages[-1]
        spec = self._points[stage, 1]
        if (yield from self._run(stage, 1)) is None:
            return None
        held = int(self._states(stage))
        return max(self._peaks[spec] - held, self._peaks[spec] // 20)

    def _stage(self, stage: int, before: int, limit: int) -> Generator[TrialSpec, TrialRecord, tuple[int, int] | None]:
        """(largest micro-batch, best micro-batch) of a stage, or None."""
        if limit < before:
            return None
        low, high = yield from self._bounds(stage, before, limit)
        if high < 1 or high < before:
            return None
        sizes = self._sizes(low, high)
        speeds: dict[int, float] = {}
        for micro in sizes:
            speeds[micro] = (yield from self._run(stage, micro)) or 0.0
        yield from self._smaller(stage, sizes, low, speeds)
        best = max(speeds, key=lambda micro: speeds[micro])
        return high, best

    def _bounds(self, stage: int, before: int, limit: int) -> Generator[TrialSpec, TrialRecord, tuple[int, int]]:
        """Smallest and largest micro-batch that run; (-1, -1): none does."""
        low = max(1, before)
        if (yield from self._run(stage, low)) is None:
            return -1, -1
        used, high = {low}, min(limit, self._largest)
        for micro in (math.ceil(1.05 * high), high, int(0.95 * high)):
            if micro > self._largest:
                continue
            if micro in used:
                return low, micro
            if micro >= 1 and (yield from self._run(stage, micro)) is not None:
                return low, micro
        previous, left, right = self._done[self._point(stage, low)], low, high
        while left <= right:
            middle = (left + right) // 2
            if middle not in used:
                speed = yield from self._run(stage, middle)
                if speed is None:
                    right = middle - 1
                    continue
                used.add(middle)
                if previous and (speed - previous) / previous < GAIN:
                    left = middle + 1
                    break
                previous = speed
            left = middle + 1
        return low, left - 1

    def _sizes(self, low: int, high: int) -> list[int]:
        """The micro-batches to measure: those whose accumulation differs from the largest's."""
        samples = self._table.legal.reference.global_batch_size // self._table.legal.reference.num_gpus
        low = max(low, high // 2)
        stride = max(1, (high - low) // SIZES)
        return [micro for micro in range(low, high, stride) if samples // micro != samples // high] + [high]

    def _smaller(self, stage: int, sizes: list[int], low: int, speeds: dict[int, float]) -> Strategy:
        """Downwards from the largest while each gains `GAIN`: close to the limit it may not be the fastest."""
        high = sizes[-1]
        first = sizes[-2] + 1 if len(sizes) > 1 else low
        best = speeds[high]
        for micro in reversed(range(first, high, max(1, (high - first) // 3))):
            speed = yield from self._run(stage, micro)
            if speed is None or speed <= best * (1 + GAIN):
                return
            speeds[micro] = best = speed

    def _run(self, stage: int, micro: int) -> Ask:
        spec = self._point(stage, micro)
        if spec not in self._done:
            trial = yield spec
            result = trial.result
            self._done[spec] = result.samples_per_second if trial.fits and result else None
            if trial.fits and result and result.peak_device_bytes:
                self._peaks[spec] = result.peak_device_bytes
        return self._done[spec]

    def _point(self, stage: int, micro: int) -> TrialSpec:
        """The table's point of a stage with this micro-batch, or the next smaller that it has."""
        return self._points[stage, max(size for at, size in self._points if at == stage and size <= micro)]

    def _states(self, stage: int) -> float:
        """`get_instantiation_memory_required_per_gpu`: bytes of weights, gradients and Adam's moments on a device."""
        spec, count = self._table.legal.reference, self._table.header.total_parameters
        half = spec.precision == "fp16"
        weights, gradients, moments = (count * size for size in ((2, 2, 16) if half else (4, 4, 8)))
        shards = spec.num_gpus
        return (
            weights / (shards if stage >= 3 else 1)
            + gradients / (shards if stage >= 2 else 1)
            + moments / (shards if stage >= 1 else 1)
        )

    @staticmethod
    def _like(point: TrialSpec, reference: TrialSpec) -> bool:
        tuned = ("zero_stage", "micro_batch_size", "gradient_accumulation_steps")
        return all(getattr(point, name) == getattr(reference, name) for name in TrialSpec.model_fields if name not in tuned)
