"""Growth told from noise, from long batches and from settling in; on figures made up with a known truth."""

import random
from collections.abc import Callable

import pytest

from autofit.config.result import RankResult, TrialResult
from autofit.tuning.growth import EXTRAPOLATION, MIN_STEPS, fit, judge

MIB = 2**20
BASE = 500 * MIB
WARMUP = 2


def completed(peaks: list[float], **figures: list[float]) -> TrialResult:
    rank = RankResult(rank=0, outcome="COMPLETED", step_peak_bytes=[round(peak) for peak in peaks], **figures)
    speeds = dict.fromkeys(("step_time_seconds", "samples_per_second", "tokens_per_second"), 1.0)
    return TrialResult(
        outcome="COMPLETED", phase="backward", peak_device_bytes=max(rank.step_peak_bytes), ranks=[rank], **speeds
    )


def series(steps: int, rise: Callable[[int], float], noise: float = 0.5 * MIB, seed: int = 0) -> list[float]:
    draw = random.Random(seed)
    return [BASE + rise(step) + draw.uniform(-noise, noise) for step in range(steps)]


@pytest.mark.parametrize("leak", [0.2, 1.0, 8.0])
def test_a_leak_is_growth_and_its_date_is_known(leak: float) -> None:
    budget = BASE + round(400 * leak) * MIB
    result = judge(completed(series(60, lambda step: leak * MIB * step)), budget, WARMUP, "cpu")
    assert result.outcome == "GROWTH"
    assert result.growth_bytes_per_step == pytest.approx(leak * MIB, rel=0.1)
    assert result.crossing_step == pytest.approx(400, rel=0.1)
    assert result.crossing_step_low <= 400 <= result.crossing_step_high
    assert "crossed at step" in str(result.message)


@pytest.mark.parametrize("seed", range(20))
def test_noise_alone_is_no_growth(seed: int) -> None:
    result = judge(completed(series(60, lambda _: 0.0, seed=seed)), BASE + 5 * MIB, WARMUP, "cpu")
    assert (result.outcome, result.message) == ("COMPLETED", None)


def test_settling_in_is_no_growth() -> None:
    settling = completed(series(60, lambda step: 10 * MIB * min(step, 25) / 25, noise=0.1 * MIB))
    assert judge(settling, BASE + 50 * MIB, WARMUP, "cpu").outcome == "COMPLETED"


def test_longer_batches_late_in_the_run_are_no_growth() -> None:
    draw = random.Random(1)
    tokens = [draw.randint(100, 150) + 10 * step for step in range(60)]
    peaks = [BASE + count * 0.1 * MIB + draw.uniform(0, MIB / 10) for count in tokens]
    assert judge(completed(peaks), BASE + 100 * MIB, WARMUP, "cpu").outcome == "GROWTH"  # without the batches it looks so
    known = completed(peaks, step_batch_tokens=tokens, step_batch_patches=[0] * 60)
    assert judge(known, BASE + 100 * MIB, WARMUP, "cpu").outcome == "COMPLETED"


def test_growth_is_seen_under_batches_of_all_sizes() -> None:
    draw = random.Random(2)
    tokens = [draw.randint(100, 4000) for _ in range(70)]
    patches = [draw.randint(0, 2000) for _ in range(70)]
    parts = zip(tokens, patches, range(70), strict=True)
    peaks = [BASE + count * 0.1 * MIB + boxes * 0.05 * MIB + 2 * MIB * step for count, boxes, step in parts]
    worst = BASE + 400 * MIB + 100 * MIB
    result = judge(completed(peaks, step_batch_tokens=tokens, step_batch_patches=patches), worst + 2 * 300 * MIB, WARMUP, "cpu")
    assert result.growth_bytes_per_step == pytest.approx(2 * MIB, rel=0.1)
    assert result.crossing_step == pytest.approx(300, rel=0.1)


def test_a_caching_allocator_keeps_what_its_largest_batch_took() -> None:
    tokens = [100 + 15 * step if step % 3 == 0 else 100 for step in range(60)]  # records all along, short batches between
    peaks = [BASE + max(tokens[: step + 1]) * 0.1 * MIB for step in range(60)]
    kept = completed(peaks, step_batch_tokens=tokens, step_batch_patches=[0] * 60)
    assert judge(kept, BASE + 110 * MIB, WARMUP, "cuda").outcome == "COMPLETED"


def test_a_budget_that_is_crossed_after_the_end_is_not_crossed() -> None:
    slow = completed(series(60, lambda step: 0.2 * MIB * step, noise=0.01 * MIB))
    budget = BASE + round(0.2 * 3000) * MIB
    assert judge(slow, budget, WARMUP, "cpu").outcome == "GROWTH"
    assert judge(slow, budget, WARMUP, "cpu", horizon_steps=2000).outcome == "COMPLETED"


def test_a_trend_is_not_followed_further_than_its_steps_can_tell() -> None:
    budget = BASE + round(0.2 * EXTRAPOLATION * 80) * MIB
    short, long = (completed(series(steps, lambda step: 0.2 * MIB * step, noise=0.01 * MIB)) for steps in (60, 120))
    assert judge(short, budget, WARMUP, "cpu").outcome == "COMPLETED"
    assert judge(long, budget, WARMUP, "cpu").outcome == "GROWTH"


def test_a_short_run_is_not_judged() -> None:
    short = completed(series(WARMUP + MIN_STEPS - 1, lambda step: 8.0 * MIB * step))
    assert judge(short, BASE + 400 * MIB, WARMUP, "cpu") == short


def test_a_failure_stays_what_it_is() -> None:
    failed = TrialResult(outcome="OOM", phase="forward")
    assert judge(failed, BASE, WARMUP, "cpu") is failed


def test_an_allocator_that_starts_over_thrashes() -> None:
    steady = series(40, lambda _: 0.0)
    once = judge(completed(steady, step_alloc_retries=[1, 0, 1] + [0] * 37), 2 * BASE, WARMUP, "cuda")
    often = judge(completed(steady, step_alloc_retries=[0, 1, 0, 2] * 10), 2 * BASE, WARMUP, "cuda")
    assert once.outcome == "COMPLETED"
    assert (often.outcome, often.error_type) == ("THRASH", "AllocatorRetries")


def test_steps_that_get_slower_thrash_unless_their_work_grows() -> None:
    draw = random.Random(4)
    seconds = [1.0 + 0.02 * step + draw.uniform(0, 0.05) for step in range(60)]
    steady = series(60, lambda _: 0.0)
    slower = judge(completed(steady, step_seconds=seconds), 2 * BASE, WARMUP, "cpu")
    assert (slower.outcome, slower.error_type) == ("THRASH", "StepTimeGrowth")
    work = completed(steady, step_seconds=seconds, step_tokens=[1000 + 20 * step + draw.randint(0, 400) for step in range(60)])
    assert judge(work, 2 * BASE, WARMUP, "cpu").outcome == "COMPLETED"


def test_a_long_run_is_thinned_out() -> None:
    trend = fit([5.0 * step for step in range(5000)], [], 0, MIN_STEPS)
    assert trend is not None and trend.slope == pytest.approx(5.0)


def test_what_a_heap_may_keep_is_no_growth_on_a_cpu() -> None:
    creeping = completed(series(40, lambda step: 0.15 * MIB * step, noise=0.01 * MIB))
    assert judge(creeping, BASE + 100 * MIB, WARMUP, "cpu").outcome == "COMPLETED"
    assert judge(creeping, BASE + 100 * MIB, WARMUP, "cuda").outcome == "GROWTH"
