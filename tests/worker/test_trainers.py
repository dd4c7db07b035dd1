"""The subclass that both engines train with, around a made-up Trainer."""

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("transformers")

from autofit.worker.outcomes import DataError
from autofit.worker.report import RankReport
from autofit.worker.trainers import Watcher, guarded, observed


class Plain:
    """Trainer's part in resuming: it warns, no more."""

    def __init__(self) -> None:
        self.model = SimpleNamespace(_keys_to_ignore_on_save=None, all_tied_weights_keys={"lm_head.weight": "embed.weight"})
        self.warned = 0

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        self.warned += 1

    def save_model(self) -> str:
        return "saved"


def trainer(report: RankReport, **order: Any) -> Any:
    return observed(Plain, SimpleNamespace(**order), SimpleNamespace(), report)()


@pytest.mark.parametrize(
    ("missing", "problem"),
    [([], None), (["lm_head.weight"], None), (["lm_head.weight", "model.a", "model.b"], "2 of the model's")],
)
def test_weights_that_resuming_leaves_behind_are_told(missing: list[str], problem: str | None) -> None:
    report = RankReport(rank=0)
    resumed = trainer(report)
    resumed._issue_warnings_after_load(SimpleNamespace(missing_keys=missing, unexpected_keys=[]))
    assert resumed.warned == 1
    assert (report.resume_problem is None) if problem is None else (problem in str(report.resume_problem))
    assert problem is None or str(report.resume_problem).endswith("the checkpoint has no model.a")


def test_nothing_is_saved_that_was_not_ordered() -> None:
    assert trainer(RankReport(rank=0), save=False).save_model() is None


def test_evaluation_and_checkpoint_are_asked_for_at_their_step_only() -> None:
    ordered = SimpleNamespace(checkpoint_step=3, evaluate=True, save=False)
    watcher = Watcher(ordered, SimpleNamespace(step_ends=lambda: None), RankReport(rank=0))  # type: ignore[arg-type]
    asked = []
    for step in (2, 3, 4):
        control = SimpleNamespace(should_evaluate=False, should_save=False)
        watcher.on_step_end(None, SimpleNamespace(global_step=step), control)
        asked.append((control.should_evaluate, control.should_save))
    assert asked == [(False, False), (True, False), (False, False)]


def test_what_reading_data_raises_is_the_datas_fault_unless_room_ran_out() -> None:
    def fail(error: Exception) -> Any:
        raise error

    with pytest.raises(DataError, match="FileNotFoundError: a"):
        guarded(fail, FileNotFoundError("a.png"))
    with pytest.raises(OSError, match="No space"):
        guarded(fail, OSError(28, "No space left on device"))
    with pytest.raises(MemoryError):
        guarded(fail, MemoryError())
