"""What earlier studies measured: taken over where it holds for the new budget, and nothing run where it decides."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autofit.config.record import TrialRecord
from autofit.launch.local import Heartbeat, Limits
from autofit.store.store import Store
from autofit.tuning.driver import SearchReport, StopRule, run_search
from autofit.tuning.plan import SearchRequest, plan_study
from autofit.tuning.replan import replan
from autofit.tuning.reuse import earlier_trials, own_trials, same_things
from autofit.tuning.winner import within_budget

MIB = 1024**2
QUICK = Limits(trial=20.0, load=10.0, hang=1.0, term_grace=0.3)


class Watcher:
    """Counts what ran and keeps what was said."""

    def __init__(self) -> None:
        self.ran: list[TrialRecord] = []
        self.messages: list[str] = []

    def started(self, trial: TrialRecord) -> None: ...

    def ticked(self, trial: TrialRecord, beat: Heartbeat | None) -> None: ...

    def finished(self, trial: TrialRecord) -> None:
        self.ran.append(trial)

    def said(self, message: str) -> None:
        self.messages.append(message)


@pytest.fixture
def searched(
    tmp_path: Path, stub_python: str, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Store, SearchReport, Watcher]]:
    monkeypatch.setenv("AUTOFIT_STUB_SECONDS", "0.02")

    def search(
        study: str, mib: int, database: str = "one", *, reuse: bool = True, trials: int = 60, **fields: Any
    ) -> tuple[Store, SearchReport, Watcher]:
        store = Store.open(f"sqlite:///{tmp_path}/{database}.db")
        base = {"space": "tiny_qwen2_5_vl", "device": "cpu", "python": stub_python, "engine": "transformers"}
        plan = plan_study(SearchRequest(gpu_mem_bytes=mib * MIB, study=study, **{**base, **fields}))
        store.create_study(plan.study)
        watcher = Watcher()
        runs = tmp_path / database / study
        report = run_search(store, plan, runs_dir=runs, stop=StopRule(trials), listener=watcher, limits=QUICK, reuse=reuse)
        return store, report, watcher

    return search


@pytest.mark.parametrize("mib", [180, 206])
def test_a_new_budget_is_answered_without_a_trial_as_a_fresh_search_answers_it(searched: Callable[..., Any], mib: int) -> None:
    store, first, _ = searched("first", 206)
    store, again, watcher = searched("second", mib)
    _, fresh, _ = searched("third", mib, database="other")
    assert first.stop_reason and again.winner is not None and fresh.winner is not None
    assert again.winner.spec == fresh.winner.spec
    if not own_trials(again.study, again.trials):
        assert watcher.ran == []
        assert any("nothing was run" in message for message in watcher.messages)
    assert len(watcher.ran) < len(fresh.trials)
    assert any("of study first hold for this budget" in message for message in watcher.messages)
    assert all(trial.reason.startswith("taken over from trial") for trial in store.trials("second")[:3])


def test_a_sampler_that_is_there_to_be_compared_runs_its_own_trials(searched: Callable[..., Any]) -> None:
    searched("first", 206)
    _, report, watcher = searched("second", 206, sampler="random", trials=3)
    assert [trial.purpose for trial in watcher.ran][:3] == ["search"] * 3
    assert len(report.trials) == len(own_trials(report.study, report.trials)) == 3


def test_the_same_budget_again_runs_nothing(searched: Callable[..., Any]) -> None:
    _, first, _ = searched("first", 206)
    store, again, watcher = searched("second", 206)
    assert watcher.ran == [] and again.winner is not None
    assert again.winner.spec == first.winner.spec
    assert again.confirmed_by is not None  # the confirmation holds too
    assert store.study("second").status == "FINISHED" and store.study("second").stop_reason == again.stop_reason
    replanned = replan(store.study("second"), {})
    assert replanned.study.stop_reason == again.stop_reason


def test_what_is_taken_over_is_true_under_the_new_budget(searched: Callable[..., Any]) -> None:
    searched("first", 206)
    store, report, _ = searched("smaller", 150)
    taken = [trial for trial in store.trials("smaller") if trial.started_at < report.study.created_at]
    assert taken
    for trial in taken:
        assert trial.result is not None
        if within_budget(trial, report.study):
            assert trial.result.peak_device_bytes <= report.study.memory_budget_bytes
    assert report.winner is not None and within_budget(report.winner, report.study)
    store, larger, _ = searched("larger", 260)
    old = [t for t in store.trials("larger") if t.started_at < larger.study.created_at]
    assert not any(t.out_of_memory for t in old), "an out-of-memory under less says nothing here"


def test_another_model_or_length_of_trial_is_no_answer(searched: Callable[..., Any]) -> None:
    _, first, _ = searched("first", 206)
    other = first.study.model_copy(
        update={"name": "x", "space": first.study.space.model_copy(update={"objective": "tokens_per_second"})}
    )
    assert same_things(other, first.study)
    longer = first.study.space.measure.model_copy(update={"steps": 30})
    assert not same_things(
        first.study.model_copy(update={"space": first.study.space.model_copy(update={"measure": longer})}), first.study
    )
    assert not same_things(first.study.model_copy(update={"engine": "llamafactory"}), first.study)
    bare = first.study.model.model_copy(update={"label": "another"})
    assert not same_things(first.study.model_copy(update={"model": bare}), first.study)


def test_fresh_runs_everything_again(searched: Callable[..., Any]) -> None:
    searched("first", 206)
    _, report, watcher = searched("second", 206, reuse=False)
    assert len(own_trials(report.study, report.trials)) == len(report.trials) > 3
    assert len(watcher.ran) > len(report.trials)  # and the confirmation


def test_earlier_trials_of_other_versions_are_no_priors(searched: Callable[..., Any]) -> None:
    store, first, _ = searched("first", 206)
    study = first.study.model_copy(update={"name": "next"})
    assert earlier_trials(store, study, []) == []  # the stub tells no versions with its results


def test_nothing_fits_says_what_would(searched: Callable[..., Any]) -> None:
    _, report, _ = searched("tight", 60)
    assert report.winner is None and report.stop_reason is not None and "expected to fit" in report.stop_reason
    assert report.miss is not None and report.miss.gpu_mem_bytes > 60 * MIB
    assert report.miss.peak_bytes > 60 * MIB
    assert len(report.trials) < 20
