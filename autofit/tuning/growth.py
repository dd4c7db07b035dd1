"""Does a run that completed creep towards its end? From the figures of its steps: memory, allocator retries, step time.

Theil-Sen regression (Sen, JASA 63, 1968): the slope is the median over all pairs of steps, which a few odd steps do not move;
its interval takes the order statistics of those slopes that Kendall's rank test gives. What a step's batch takes is estimated
the same way and taken out first, or a long batch late in the run would look like growth.
Settling in is no growth: memory that rises at first and then stays must rise in the second half of the steps as well.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from autofit.config.result import RankResult, TrialResult
from autofit.units import format_bytes

MIN_STEPS = 16
"""Steps after the warm-up below which nothing is said: in fewer, settling in cannot be told from growth."""
MAX_POINTS = 200
"""Steps that enter the regression, evenly taken from longer runs: its cost grows with their square."""
HORIZON_STEPS = 10_000
"""A budget that is crossed later counts as not crossed: few fine-tunings have more optimizer steps."""
EXTRAPOLATION = 100
"""Times its own length that a run's trend is followed: beyond, a heap that is still settling would be given a date."""
HEAP_SLACK_BYTES = 8 * 2**20
"""What a process's heap may keep of what was freed (MALLOC_TRIM_THRESHOLD_ of CPU trials): on a CPU, no less is growth."""
SHAPES_SLACK_BYTES = 16 * 2**20
"""Rise over the second half of a CPU run that batches of ever new shapes may cause: oneDNN keeps kernels for each shape, and
blocks of other sizes fill the heap's gaps badly. Six runs of 62 steps of a tiny Qwen2.5-VL rose by 18 MiB and then stayed; with
`ONEDNN_PRIMITIVE_CACHE_CAPACITY=0` by 5."""
SLOWDOWN = 0.5
"""Share of the median step time by which steps may get slower over the run."""
RETRYING_STEPS = 0.2
"""Share of the steps in which the allocator may have to start over."""
_Z = 2.576
"""Both ends of the interval together leave out one in a hundred."""
_ROUNDS = 8


@dataclass(frozen=True)
class Trend:
    """A figure's change with the steps."""

    slope: float
    """A step; `low` and `high` hold 99 % of what it could be."""
    low: float
    high: float
    centre: float
    """Step in the middle of the data, and the figure there with the largest batch of the run."""
    level: float

    def crosses(self, limit: float, slope: float | None = None) -> float:
        """The step at which `limit` is reached at `slope` (this trend's own by default); infinite where it never is."""
        slope = self.slope if slope is None else slope
        return self.centre + (limit - self.level) / slope if slope > 0 else math.inf


def judge(
    result: TrialResult, budget_bytes: int, warmup_steps: int, device: str, horizon_steps: int = HORIZON_STEPS
) -> TrialResult:
    """`result` with the verdict on its steps: outcome GROWTH or THRASH in place of COMPLETED, or as it is.

    `budget_bytes` is what a rank may take, `horizon_steps` the length of the run that is to be launched.
    """
    if result.outcome != "COMPLETED":
        return result
    trends = {rank.rank: trend for rank in result.ranks if (trend := memory_trend(rank, warmup_steps, device))}
    if not trends:
        return result
    worst = min(trends, key=lambda rank: (trends[rank].crosses(budget_bytes), -trends[rank].slope))
    trend, figures = trends[worst], next(rank for rank in result.ranks if rank.rank == worst)
    result = result.model_copy(update={"growth_bytes_per_step": trend.slope})
    horizon = min(horizon_steps, EXTRAPOLATION * len(figures.step_peak_bytes))
    if persists(trend, figures.step_peak_bytes, figures, warmup_steps, device) and trend.crosses(budget_bytes) <= horizon:
        return _growth(result, trend, worst, budget_bytes)
    for rank in result.ranks:
        if message := _thrash(rank, warmup_steps):
            kind, words = message
            return result.model_copy(
                update={"outcome": "THRASH", "error_type": kind, "message": words, "failed_rank": rank.rank}
            )
    return result


def memory_trend(rank: RankResult, warmup_steps: int, device: str, skip: int = 0) -> Trend | None:
    """Of a rank's peaks after the warm-up and `skip` more steps; None where they are too few.

    A caching allocator keeps what its largest batch so far took; elsewhere a step's own batch decides.
    """
    batches = [rank.step_batch_tokens, rank.step_batch_patches]
    if device == "cuda":
        batches = [[max(sizes[: place + 1]) for place in range(len(sizes))] for sizes in batches]
    return fit(rank.step_peak_bytes, batches, warmup_steps + skip, MIN_STEPS if not skip else MIN_STEPS // 2)


def persists(trend: Trend, figures: Sequence[float], rank: RankResult, warmup_steps: int, device: str) -> bool:
    """Whether memory surely grows, over all the steps and over their second half; on a CPU by more than what its heap keeps."""
    half = (len(figures) - warmup_steps) // 2
    later = memory_trend(rank, warmup_steps, device, skip=half)
    if later is None or trend.low <= 0 or later.low <= 0:
        return False
    if device != "cpu":
        return True
    new_shapes = any(len(set(sizes[warmup_steps:])) > 1 for sizes in (rank.step_batch_tokens, rank.step_batch_patches))
    if new_shapes and later.slope * half < SHAPES_SLACK_BYTES:
        return False
    return trend.slope * (len(figures) - warmup_steps) >= HEAP_SLACK_BYTES


def fit(figures: Sequence[float], sizes: Sequence[Sequence[int]], first: int, least: int) -> Trend | None:
    """The trend of `figures` from step `first` on, with the effect of `sizes` (one sequence a kind) taken out.

    None for fewer than `least` steps.
    """
    last = min([len(figures), *(len(kind) for kind in sizes if kind)])
    every = max(1, math.ceil((last - first) / MAX_POINTS))
    steps = range(first, last, every)
    if last - first < least:
        return None
    values = [float(figures[step]) for step in steps]
    kinds = [[float(kind[step]) for step in steps] for kind in sizes if len(set(kind[first:last])) > 1]
    positions = [float(step) for step in steps]
    slope, effects = 0.0, [0.0] * len(kinds)
    for _ in range(_ROUNDS if kinds else 1):
        for number, kind in enumerate(kinds):
            others = [each for place, each in enumerate(zip(effects, kinds, strict=True)) if place != number]
            rest = [
                value - slope * position - sum(effect * sizes_[place] for effect, sizes_ in others)
                for place, (value, position) in enumerate(zip(values, positions, strict=True))
            ]
            effects[number] = max(0.0, _median(_slopes(kind, rest)))  # no larger batch takes less memory
        taken = [sum(effect * kind[place] for effect, kind in zip(effects, kinds, strict=True)) for place in range(len(values))]
        rest = [value - each for value, each in zip(values, taken, strict=True)]
        slope = _median(_slopes(positions, rest))
    low, high = _interval(sorted(_slopes(positions, rest)), len(rest))
    centre = statistics.median(positions)
    level = statistics.median(value - slope * (position - centre) for value, position in zip(rest, positions, strict=True))
    return Trend(slope, low, high, centre, level + max(taken))


def _growth(result: TrialResult, trend: Trend, rank: int, budget_bytes: int) -> TrialResult:
    earliest = trend.crosses(budget_bytes, trend.high)
    latest = min(trend.crosses(budget_bytes, trend.low), 1e12)
    step, low, high = (max(0, math.ceil(each)) for each in (trend.crosses(budget_bytes), earliest, latest))
    message = (
        f"memory grows by {format_bytes(trend.slope)} an optimizer step ({format_bytes(trend.low)} to"
        f" {format_bytes(trend.high)}); the budget of {format_bytes(budget_bytes)} is crossed at step {step} ({low} to {high})"
    )
    changes = {"crossing_step": step, "crossing_step_low": low, "crossing_step_high": high}
    return result.model_copy(
        update={"outcome": "GROWTH", "error_type": "MemoryGrowth", "message": message, "failed_rank": rank, **changes}
    )


def _thrash(rank: RankResult, warmup_steps: int) -> tuple[str, str] | None:
    """Kind and words, if the allocator keeps starting over or the steps get slower."""
    retries = rank.step_alloc_retries[warmup_steps:]
    retrying = sum(1 for count in retries if count)
    if len(retries) >= MIN_STEPS and retrying >= RETRYING_STEPS * len(retries):
        words = (
            f"in {retrying} of {len(retries)} steps the allocator had to release its blocks and try again, {sum(retries)} times"
            " in all: the run is at the edge of its memory, and slower for it"
        )
        return "AllocatorRetries", words
    whole = fit(rank.step_seconds, [rank.step_tokens], warmup_steps, MIN_STEPS)
    half = fit(rank.step_seconds, [rank.step_tokens], (warmup_steps + len(rank.step_seconds)) // 2, MIN_STEPS // 2)
    if whole is None or half is None or whole.low <= 0 or half.low <= 0:
        return None
    timed = rank.step_seconds[warmup_steps:]
    slower = whole.slope * len(timed) / statistics.median(timed)
    if slower < SLOWDOWN:
        return None
    return "StepTimeGrowth", f"steps get slower: by {slower:.0%} of the median over {len(timed)} steps of equal work"


def _slopes(places: Sequence[float], values: Sequence[float]) -> list[float]:
    """Between all pairs that differ in place."""
    return [
        (values[later] - values[earlier]) / (places[later] - places[earlier])
        for earlier in range(len(values))
        for later in range(earlier + 1, len(values))
        if places[later] != places[earlier]
    ]


def _median(slopes: Sequence[float]) -> float:
    return statistics.median(slopes) if slopes else 0.0


def _interval(ordered: Sequence[float], points: int) -> tuple[float, float]:
    """The order statistics of all pairs' slopes that enclose the true one (Sen 1968, without ties)."""
    spread = _Z * math.sqrt(points * (points - 1) * (2 * points + 5) / 18)
    low = max(0, math.floor((len(ordered) - spread) / 2))
    high = min(len(ordered) - 1, math.ceil((len(ordered) + spread) / 2))
    return ordered[low], ordered[high]
