"""The driver with a stub worker: what it stores, how it stops, how it goes on. Every trial is a real process."""

import json
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autofit.config.legality import training_changes
from autofit.config.record import TrialRecord
from autofit.config.space import enumerate_space
from autofit.errors import AutofitError, Interrupted, StoreError, UsageError
from autofit.launch.local import Heartbeat, Limits
from autofit.store.store import Store
from autofit.tuning.driver import SearchReport, StopRule, run_search
from autofit.tuning.plan import Plan, SearchRequest, plan_study
from autofit.tuning.replan import replan, stored_study

MIB = 1024**2
QUICK = Limits(trial=20.0, load=10.0, hang=1.0, term_grace=0.3)


class Watcher:
    """A listener that can stop the search."""

    def __init__(self, interrupt_in: int | None = None) -> None:
        self.messages: list[str] = []
        self.ended: list[TrialRecord] = []
        self._interrupt_in = interrupt_in

    def started(self, trial: TrialRecord) -> None: ...

    def ticked(self, trial: TrialRecord, beat: Heartbeat | None) -> None:
        if beat is not None and trial.trial_number == self._interrupt_in:
            raise KeyboardInterrupt

    def finished(self, trial: TrialRecord) -> None:
        self.ended.append(trial)

    def said(self, message: str) -> None:
        self.messages.append(message)


@pytest.fixture
def request_for(stub_python: str) -> Callable[..., SearchRequest]:
    def build(**fields: Any) -> SearchRequest:
        base = {"gpu_mem_bytes": 206 * MIB, "space": "tiny_qwen2_5_vl", "device": "cpu", "python": stub_python, "study": "s"}
        return SearchRequest(**{**base, **fields})

    return build


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(f"sqlite:///{tmp_path}/autofit.db")


@pytest.fixture
def go(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., SearchReport]:
    monkeypatch.setenv("AUTOFIT_STUB_LOG", str(tmp_path / "ran.log"))

    def search(plan: Plan, trials: int = 8, seconds: float | None = None, listener: Watcher | None = None) -> SearchReport:
        if plan.study.name not in [study.name for study in store.studies()]:
            store.create_study(plan.study)
        stop = StopRule(trials, seconds)
        return run_search(store, plan, runs_dir=tmp_path / "runs", stop=stop, listener=listener or Watcher(), limits=QUICK)

    return search


def test_a_search_finds_stores_and_confirms_a_winner(
    store: Store, go: Callable[..., SearchReport], request_for: Callable[..., SearchRequest]
) -> None:
    report = go(plan_study(request_for()), trials=9)
    trials = store.trials("s")
    assert [trial.trial_number for trial in trials] == list(range(len(trials)))
    assert Counter(trial.purpose for trial in trials) == {"search": 9, "confirm": 1}
    assert any(trial.out_of_memory for trial in trials)
    assert report.winner is not None and report.reference is not None and report.confirmed_by is not None
    assert report.confirmed_by.result is not None and report.confirmed_by.result.timed_steps == 39  # 10 x (1 + 3) less warm-up
    budget = report.study.memory_budget_bytes
    for trial in trials:
        assert trial.result is not None
        if trial.fits:
            assert trial.result.peak_device_bytes is not None and trial.result.peak_device_bytes <= budget
    assert report.study.status == "FINISHED"
    assert report.study.winner_trial_number == report.winner.trial_number
    assert report.winner.spec.global_batch_size == 8
    assert training_changes(report.winner.spec, report.reference.spec) == []


def test_a_winner_that_does_not_hold_when_run_longer_is_passed_over(
    go: Callable[..., SearchReport], request_for: Callable[..., SearchRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOFIT_STUB", "leaky")
    watcher = Watcher()
    report = go(plan_study(request_for()), listener=watcher)
    assert report.winner is None
    assert (
        sum("did not hold when run longer (" in message and "over the budget)" in message for message in watcher.messages) > 1
    )


def test_a_winner_whose_memory_grows_is_passed_over_with_a_date(
    store: Store,
    go: Callable[..., SearchReport],
    request_for: Callable[..., SearchRequest],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AUTOFIT_STUB", "creeping")
    report = go(plan_study(request_for()))
    assert report.winner is None
    confirmed = [trial.result for trial in store.trials("s") if trial.purpose == "confirm" and trial.result]
    assert confirmed and {result.outcome for result in confirmed} == {"GROWTH"}
    assert all(result.crossing_step and "is crossed at step" in str(result.message) for result in confirmed)
    assert any(trial.fits for trial in report.trials)


def test_a_full_disk_is_said_and_the_search_goes_on_without_a_checkpoint(
    store: Store,
    go: Callable[..., SearchReport],
    request_for: Callable[..., SearchRequest],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    room = shutil.disk_usage("/")
    for free, saves in ((100, False), (10_000, True)):  # the stub's model has 10 parameters: 160 bytes
        monkeypatch.setattr("autofit.tuning.orders.shutil.disk_usage", lambda _, free=free: room._replace(free=free))
        watcher = Watcher()
        report = go(plan_study(request_for(study=f"s{free}")), trials=3, listener=watcher)
        assert report.winner is not None and report.confirmed_by is not None
        measure = json.loads((Path(report.confirmed_by.run_dir) / "spec.json").read_text())["measure"]
        assert (measure["save"], measure["resume"], measure["evaluate"]) == (saves, saves, True)
        said = [line for line in watcher.messages if "no room for a checkpoint" in line and str(report.study.name) in line]
        assert bool(said) is not saves, watcher.messages


def test_ctrl_c_keeps_what_is_finished_and_resume_goes_on(
    store: Store, go: Callable[..., SearchReport], request_for: Callable[..., SearchRequest], tmp_path: Path
) -> None:
    plan = plan_study(request_for())
    with pytest.raises(Interrupted, match="--resume --study s"):
        go(plan, listener=Watcher(interrupt_in=3))
    assert store.study("s").status == "INTERRUPTED"
    before = [trial for trial in store.trials("s") if trial.result]
    assert len(before) == 3
    report = go(replan(stored_study(store, None), {}))
    assert len(report.trials) == 8
    assert store.trials("s")[:3] == before
    assert store.trial("s", 3).attempt == 2
    ran = Counter(line.split()[0] for line in (tmp_path / "ran.log").read_text().splitlines())
    assert [ran[f"{trial.trial_number:04d}"] for trial in before] == [1, 1, 1]


def test_resume_of_a_finished_study_runs_nothing(
    go: Callable[..., SearchReport], request_for: Callable[..., SearchRequest]
) -> None:
    first = go(plan_study(request_for()))
    watcher = Watcher()
    again = go(replan(first.study, {}), listener=watcher)
    assert watcher.ended == []
    assert again.winner == first.winner


@pytest.mark.parametrize("setting", [{"gpu-mem": 1}, {"sampler": "gp"}, {"num-gpus": 7}, {"space": "qwen2_5_vl_7b"}])
def test_resume_with_other_settings_is_refused(
    go: Callable[..., SearchReport], request_for: Callable[..., SearchRequest], setting: dict[str, Any]
) -> None:
    report = go(plan_study(request_for()), trials=1)
    with pytest.raises(UsageError, match=f"--{next(iter(setting))}"):
        replan(report.study, setting)


def test_resume_takes_the_file_of_the_space_as_long_as_it_says_the_same(
    go: Callable[..., SearchReport], request_for: Callable[..., SearchRequest], tmp_path: Path
) -> None:
    study = go(plan_study(request_for()), trials=1).study
    file = tmp_path / "space.yaml"
    file.write_text(study.space.model_dump_json(exclude_defaults=True))
    assert replan(study, {"space": str(file)}).legal.points == enumerate_space(study.space, study.model, 2).points
    knob, values = next((name, values) for name, values in study.space.knobs.items() if len(values) > 2)
    changed = study.space.model_copy(update={"knobs": {**study.space.knobs, knob: values[:-1]}})
    file.write_text(changed.model_dump_json(exclude_defaults=True))
    with pytest.raises(UsageError, match="has changed since study s began \\(knobs\\)"):
        replan(study, {"space": str(file)})


def test_two_drivers_never_share_a_study(
    store: Store,
    go: Callable[..., SearchReport],
    request_for: Callable[..., SearchRequest],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second one is told at once, and the first goes on."""
    plan = plan_study(request_for())
    second: list[str] = []

    class Intruder(Watcher):
        def started(self, trial: TrialRecord) -> None:
            if not second:
                thread = threading.Thread(target=self.intrude)
                thread.start()
                thread.join()

        def intrude(self) -> None:
            other = Store.open(f"sqlite:///{tmp_path}/autofit.db")
            try:
                run_search(other, plan, runs_dir=tmp_path / "runs", stop=StopRule(2), listener=Watcher(), limits=QUICK)
            except AutofitError as error:
                second.append(str(error))

    report = go(plan, trials=2, listener=Intruder())
    assert second == ["study s is being searched by another autofit; wait for it, or start another study"]
    assert len(report.trials) == 2


def test_the_same_crash_again_and_again_stops_the_search_and_shows_the_cause(
    store: Store, go: Callable[..., SearchReport], request_for: Callable[..., SearchRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOFIT_STUB", "crash")
    with pytest.raises(AutofitError, match="the last 3 trials ended alike, CRASHED: no module named flash"):
        go(plan_study(request_for()))
    assert len(store.trials("s")) == 3
    assert store.study("s").status == "INTERRUPTED"


def test_no_trial_starts_after_the_time_limit(
    go: Callable[..., SearchReport], request_for: Callable[..., SearchRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOFIT_STUB_SECONDS", "0.6")
    report = go(plan_study(request_for()), trials=100, seconds=2.0)
    assert 1 <= len(report.trials) <= 3


def test_nothing_fits_is_an_answer(go: Callable[..., SearchReport], request_for: Callable[..., SearchRequest]) -> None:
    report = go(plan_study(request_for(gpu_mem_bytes=60 * MIB, sampler="random")), trials=400)
    assert report.winner is None and report.exhausted
    assert all(trial.out_of_memory for trial in report.trials)


def test_a_stale_folder_of_another_study_is_not_taken_for_a_result(
    store: Store, go: Callable[..., SearchReport], request_for: Callable[..., SearchRequest], tmp_path: Path
) -> None:
    """The database was deleted, the run folder was not; and the row is there without its process."""
    go(plan_study(request_for()), trials=2)
    plan = plan_study(request_for(study="t"))
    store.create_study(plan.study)
    (tmp_path / "runs" / "s").rename(tmp_path / "runs" / "t")
    other = plan.legal.points[5]
    first = store.trial("s", 0)
    store.start_trial(
        first.model_copy(
            update={"study": "t", "spec": other, "run_dir": str(tmp_path / "runs/t/0000"), "finished_at": None, "result": None}
        )
    )
    report = go(plan, trials=1)
    assert report.trials[0].spec == other
    assert report.trials[0].attempt == 2


def test_a_result_on_disk_that_was_not_stored_is_kept_and_not_run_again(
    store: Store, go: Callable[..., SearchReport], request_for: Callable[..., SearchRequest], tmp_path: Path
) -> None:
    """The driver was killed between the worker's last word and its own."""
    go(plan_study(request_for(study="model")), trials=1)
    done = store.trial("model", 0)
    plan = plan_study(request_for())
    store.create_study(plan.study)
    (tmp_path / "runs" / "model").rename(tmp_path / "runs" / "s")
    unfinished = {"study": "s", "run_dir": str(tmp_path / "runs/s/0000"), "finished_at": None, "result": None}
    store.start_trial(done.model_copy(update=unfinished))
    (tmp_path / "ran.log").unlink()
    watcher = Watcher()
    report = go(plan, trials=1, listener=watcher)
    assert report.trials[0].result == done.result
    assert report.trials[0].attempt == 1
    assert "0000" not in (tmp_path / "ran.log").read_text()  # only the confirmation ran
    assert any("its result is kept" in message for message in watcher.messages)


def test_a_study_of_that_name_is_not_overwritten(store: Store, request_for: Callable[..., SearchRequest]) -> None:
    store.create_study(plan_study(request_for()).study)
    with pytest.raises(StoreError, match="exists"):
        store.create_study(plan_study(request_for()).study)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"gpu_mem_bytes": 1000}, "impossible"),
        ({"space": "qwen2_5_vl_7b"}, "too large"),
        ({"device": "cuda"}, r"GPU\(s\) wanted, 0 visible"),
        ({"model": "tiny-lama"}, "did you mean the preset"),
        ({"global_batch_size": 3}, "does not divide the global batch 3"),
        ({"dataset": "no.json"}, "no such file"),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(
    request_for: Callable[..., SearchRequest], fields: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autofit.launch.gpus.cuda_devices", list)
    with pytest.raises(AutofitError, match=words) as caught:
        plan_study(request_for(**fields))
    assert "\n" not in str(caught.value)


def test_flags_override_the_space(request_for: Callable[..., SearchRequest], tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text('{"mine": {"file_name": "rows.json"}}')
    (tmp_path / "rows.json").write_text("[]")
    plan = plan_study(request_for(num_gpus=1, global_batch_size=8, dataset=str(tmp_path / "rows.json")))
    assert {point.global_batch_size for point in plan.legal.points} == {8}
    assert len(plan.study.hardware.devices) == 1
    assert plan.study.space.dataset is not None and plan.study.space.dataset.name == "mine"
    assert plan.study.memory_budget_bytes == int(206 * MIB * 0.98)
