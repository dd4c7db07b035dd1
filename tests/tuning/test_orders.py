"""What a trial is told: the samples that the data's profile chose, and what a confirmation does beyond a trial."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from autofit.config.record import Purpose, TrialRecord
from autofit.config.trial import TrialSpec
from autofit.tuning.batches import Chosen
from autofit.tuning.orders import CONFIRM_FACTOR, order, timed_steps
from autofit.tuning.plan import Plan, SearchRequest, plan_study


class Chooser:
    """Stands for the study's batches: names samples that nobody else would."""

    def choose(self, spec: TrialSpec, steps: int, said: Callable[[str], None]) -> Chosen:
        said(f"chosen for {steps} steps")
        count = steps * spec.global_batch_size
        samples = np.arange(100, 100 + count).reshape(steps, -1, spec.micro_batch_size)
        worst: Any = SimpleNamespace(samples=tuple(range(7, 7 + spec.micro_batch_size)))
        timed: Any = SimpleNamespace(samples=samples)
        return Chosen(worst=worst, timed=timed)


@pytest.fixture
def plan(stub_python: str) -> Plan:
    request = SearchRequest(
        gpu_mem_bytes=2**28, space="tiny_qwen2_5_vl", device="cpu", python=stub_python, study="s", engine="transformers"
    )
    return plan_study(request)


def trial_of(plan: Plan, purpose: Purpose) -> TrialRecord:
    spec = plan.legal.reference
    return TrialRecord(
        study="s", trial_number=0, purpose=purpose, spec=spec, reason="r", run_dir=str(Path()), started_at=datetime.now(UTC)
    )


@pytest.mark.parametrize("purpose", ["search", "confirm"])
def test_a_trial_gets_the_samples_that_were_chosen_for_it(plan: Plan, purpose: Purpose) -> None:
    said: list[str] = []
    chooser: Any = Chooser()
    told = order(replace(plan, batches=chooser), trial_of(plan, purpose), said.append, checkpoint=True)
    steps = timed_steps(plan.study, purpose)
    assert said == [f"chosen for {steps} steps"] and told.measure.steps == steps
    assert told.worst_batch == tuple(range(7, 7 + told.trial.micro_batch_size))
    assert told.timed_batches is not None and len(told.timed_batches) == steps
    assert told.timed_batches[0] == tuple(range(100, 100 + told.trial.global_batch_size))
    without = order(plan, trial_of(plan, purpose), said.append, checkpoint=True)
    assert (without.worst_batch, without.timed_batches) == (None, None)


@pytest.mark.parametrize("checkpoint", [True, False])
def test_a_confirmation_is_ten_times_as_long_and_lives_a_whole_life(plan: Plan, checkpoint: bool) -> None:
    search, confirm = (
        order(plan, trial_of(plan, purpose), lambda _: None, checkpoint=checkpoint).measure for purpose in ("search", "confirm")
    )
    assert (search.evaluate, search.save, search.resume) == (False, False, False)
    assert (confirm.evaluate, confirm.save, confirm.resume) == (True, checkpoint, checkpoint)
    assert confirm.warmup_steps + confirm.steps == CONFIRM_FACTOR * (search.warmup_steps + search.steps)
