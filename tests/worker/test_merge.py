"""Rank reports become one result: blame, worst memory, slowest steps."""

from pathlib import Path

import pytest
from worker_orders import write_spec

from autofit.config.result import RankResult, TrialResult
from autofit.worker.merge import merge
from autofit.worker.order import Order, read_order
from autofit.worker.report import RANK_RESULT_FIELDS, RankReport


@pytest.fixture
def order(tmp_path: Path) -> Order:
    return read_order(write_spec(tmp_path, gradient_accumulation_steps=2))


def done(rank: int, seconds: list[float], peak: int) -> RankReport:
    return RankReport(
        rank=rank,
        outcome="COMPLETED",
        phase=None,
        step_seconds=seconds,
        losses=[1.0 + rank] * len(seconds),
        peak_device_bytes=peak,
        phase_peak_bytes={"forward": peak - 1, "backward": peak},
        step_tokens=[2 * 128] * len(seconds),
        step_effective_tokens=[2 * 100] * len(seconds),
        timings={"total": 1.0 + rank},
        finished_at=1.0,
    )


def failed(rank: int, outcome: str, message: str, at: float, died: str | None = None) -> RankReport:
    return RankReport(rank=rank, outcome=outcome, message=message, finished_at=at, died=died)


def test_fields_of_a_rank_are_those_of_the_contract() -> None:
    assert set(RANK_RESULT_FIELDS) == set(RankResult.model_fields)


def test_speed_is_the_median_of_the_slowest_ranks_timed_steps(order: Order) -> None:
    reports = [done(1, [9.0, 2.0, 1.0], 20), done(0, [9.0, 1.0, 4.0], 10)]
    result = TrialResult.model_validate(merge(order, reports))
    assert result.step_time_seconds == pytest.approx(3.0)  # warm-up (9) left out; max per step is 2 and 4
    assert result.samples_per_second == pytest.approx(4 / 3)
    assert result.effective_tokens_per_second == pytest.approx(400 / 3)
    assert result.timed_steps == 2
    assert (result.peak_device_bytes, result.phase, result.failed_rank) == (20, "backward", None)
    assert result.losses == [1.5] * 3
    assert result.timings == {"total": 2.0}


@pytest.mark.parametrize(
    ("first", "second", "outcome", "blamed"),
    [
        (failed(0, "CRASHED", "Connection closed by peer", 1), failed(1, "OOM", "can't allocate", 2), "OOM", 1),
        (failed(0, "CRASHED", "Connection closed by peer", 1), failed(1, "CRASHED", "shape mismatch", 2), "CRASHED", 1),
        (failed(0, "CRASHED", "SIGKILL", 3, "ended"), failed(1, "CRASHED", "Connection reset by peer", 2), "CRASHED", 1),
        (failed(0, "DATA_ERROR", "no image", 2), failed(1, "CRASHED", "terminated", 1), "DATA_ERROR", 0),
        (failed(0, "OOM", "a", 2), failed(1, "OOM", "b", 1), "OOM", 1),
    ],
)
def test_causes_are_blamed_before_consequences(
    order: Order, first: RankReport, second: RankReport, outcome: str, blamed: int
) -> None:
    result = TrialResult.model_validate(merge(order, [first, second]))
    assert (result.outcome, result.failed_rank) == (outcome, blamed)


def test_a_rank_that_completed_does_not_hide_one_that_did_not(order: Order) -> None:
    result = TrialResult.model_validate(merge(order, [done(0, [1.0] * 3, 10), failed(1, "CRASHED", "boom", 2)]))
    assert result.outcome == "CRASHED"
    assert result.samples_per_second is None
    assert result.peak_device_bytes == 10
