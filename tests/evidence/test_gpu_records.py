"""A part that is killed goes on where it was: nothing recorded is lost, nothing is recorded twice, nothing torn is believed."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
from autofit.config.hardware import Device, Hardware
from autofit.config.result import TrialResult
from autofit.launch.environment import TrainingEnvironment
from benchmarks.gpu import accuracy
from benchmarks.gpu.forecast import Forecast
from benchmarks.gpu.place import OutOfTimeError, Place, Ran
from benchmarks.gpu.records import Ledger, Stamp, read
from benchmarks.gpu.workload import workload

STAMP = Stamp("cuda", "card", 80 * 2**30, "1.0", {"torch": "2.11.0"}, "a" * 40)


def test_records_of_another_commit_or_device_are_not_this_runs(tmp_path: Path) -> None:
    file = tmp_path / "part.jsonl"
    Ledger(file, "part", STAMP).add("one", value=1)
    assert Ledger(file, "part", STAMP).mine()["one"]["value"] == 1
    for other in ({"commit": "b" * 40}, {"device_name": "another"}, {"versions": {"torch": "2.12.0"}}):
        assert Ledger(file, "part", replace(STAMP, **other)).mine() == {}


def test_what_was_torn_by_a_kill_is_left_out_and_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "part.jsonl"
    ledger = Ledger(file, "part", STAMP)
    ledger.add("one")
    with file.open("ab") as stream:
        stream.write(b'{"part": "part", "key": "tw')
    assert list(ledger.mine()) == ["one"]
    ledger.add("two")
    assert [record["key"] for record in read(file)] == ["one", "two"]


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    file = tmp_path / "part.jsonl"
    file.write_text('{"part": "p", "key": "k", "device": "cuda"}\nnonsense\n')
    with pytest.raises(ValueError, match=r"part\.jsonl:2"):
        list(read(file))


class Interrupted(Place):
    """A place whose time is over after so many trials; nothing is trained."""

    trials_left: int
    ran: list[str]

    def forecaster(self) -> Any:
        said = Forecast(allocated=1, device=2)
        return SimpleNamespace(prepare=lambda specs: None, of=lambda spec, whole=False: said, card="card")

    def run(self, name: str, trial: Any, **_: Any) -> Ran:
        if self.trials_left == 0:
            raise OutOfTimeError
        self.trials_left -= 1
        self.ran.append(trial.config_key())
        return Ran(TrialResult(outcome="OOM", phase="load"), 1.0, None, None, None, 0)


def place(folder: Path, trials: int) -> Interrupted:
    device = Device(index=0, uuid="cpu", name="cpu", memory_bytes=2**30)
    made = Interrupted(
        kind="cpu",
        hardware=Hardware(device="cpu", devices=(device,), cpu_count=1, host_memory_bytes=2**30),
        environment=TrainingEnvironment(python=sys.executable, versions={"torch": "0", "deepspeed": "0"}),
        load=workload("cpu"),
        records=folder,
        work=folder / "work",
        commit="c",
        seed=0,
        limit_seconds=100.0,
    )
    made.trials_left, made.ran = trials, []
    return made


def test_a_part_goes_on_where_its_time_ended(tmp_path: Path) -> None:
    first = place(tmp_path, trials=2)
    with pytest.raises(OutOfTimeError):
        accuracy.run(first)
    second = place(tmp_path, trials=100)
    done, planned = accuracy.run(second)
    assert done == planned == len(first.ran) + len(second.ran)
    assert not set(first.ran) & set(second.ran)
    third = place(tmp_path, trials=0)
    assert accuracy.run(third) == (done, planned)


def test_the_plan_and_its_predictions_are_recorded_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(OutOfTimeError):
        accuracy.run(place(tmp_path, trials=0))
    (plan,) = read(tmp_path / "accuracy.jsonl")
    assert plan["key"] == accuracy.PLAN
    assert all(item["predicted"]["allocated"] == 1 for item in plan["configurations"])
