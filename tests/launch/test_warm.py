"""Trials forked from a server: they share it, and whatever goes wrong with it costs time but no result."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from autofit.config.hardware import Hardware
from autofit.config.result import TrialResult
from autofit.config.trial import RunSpec
from autofit.launch.local import Limits, LocalExecutor
from autofit.launch.warm import MAX_DOUBTS

QUICK = Limits(trial=20.0, load=1.5, hang=1.0, term_grace=0.4)


class Trials:
    """Runs trials with one executor, and knows how each was run."""

    def __init__(self, python: str, hardware: Hardware, folder: Path, build: Callable[..., RunSpec]) -> None:
        self.said: list[str] = []
        self.executor = LocalExecutor(python, hardware, QUICK, warm=True, say=self.said.append)
        self.servers: list[set[int]] = []
        self._folder, self._build = folder, build

    def run(self, name: str, *, fresh: bool = False, **fields: object) -> TrialResult:
        seen: set[int] = set()
        spec = self._build(**fields)
        result = self.executor.run(self._folder / name, spec, lambda _: seen.update(self.servers_now()), fresh=fresh)
        self.servers.append(seen)
        return result

    def servers_now(self) -> set[int]:
        """Servers of this folder: children of this process, for a trial's own processes are grandchildren."""
        found = set()
        for child in psutil.Process().children():
            try:
                if "serve" in child.cmdline() and str(self._folder) in " ".join(child.cmdline()):
                    found.add(child.pid)
            except psutil.NoSuchProcess:
                continue
        return found

    def ways(self) -> list[str]:
        """`serve` or `run`, for every start of a trial, in order."""
        return [line.split()[2] for line in (self._folder / "log").read_text().splitlines()]


@pytest.fixture
def trials(
    stub_python: str, cpu: Hardware, tmp_path: Path, run_spec: Callable[..., RunSpec], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Trials]:
    monkeypatch.setenv("AUTOFIT_STUB_LOG", str(tmp_path / "log"))
    found = Trials(stub_python, cpu, tmp_path, run_spec)
    with found.executor:
        yield found
    left = [process for process in psutil.process_iter(["cmdline", "status"]) if str(tmp_path) in str(process.info["cmdline"])]
    assert [process for process in left if process.info["status"] != psutil.STATUS_ZOMBIE] == []


def test_trials_share_a_server_and_are_read_like_others(trials: Trials, tmp_path: Path) -> None:
    results = [trials.run("a"), trials.run("b", micro_batch_size=2), trials.run("c", zero_stage=2, budget=50 * 1024**2)]
    assert [result.outcome for result in results] == ["COMPLETED", "COMPLETED", "OOM"]
    assert trials.ways() == ["serve"] * 3
    assert len(set.union(*trials.servers)) == 1
    assert (tmp_path / "a" / "process.json").exists() and (tmp_path / "a" / "stderr.log").exists()
    assert results[0] == trials.run("d", fresh=True)
    assert trials.ways()[-1] == "run"
    assert trials.said == []


def test_a_server_that_was_started_ahead_runs_the_first_trial(
    trials: Trials, tmp_path: Path, run_spec: Callable[..., RunSpec]
) -> None:
    trials.executor.warm_up(tmp_path, run_spec(zero_stage=3))
    deadline = time.monotonic() + 10
    while not (ahead := trials.servers_now()) and time.monotonic() < deadline:
        time.sleep(0.02)  # until it is the program that it was started as
    assert len(ahead) == 1
    assert trials.run("a").outcome == "COMPLETED"
    assert trials.servers == [ahead]


def test_an_executor_that_forks_nothing_starts_nothing_ahead(
    stub_python: str, cpu: Hardware, tmp_path: Path, run_spec: Callable[..., RunSpec]
) -> None:
    LocalExecutor(stub_python, cpu, QUICK).warm_up(tmp_path / "runs", run_spec())
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("change", ["environment", "ranks"])
def test_what_a_process_has_from_its_start_has_a_server_of_its_own(
    trials: Trials, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    trials.run("a")
    if change == "environment":
        monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    trials.run("b", num_gpus=1 if change == "ranks" else 2)
    assert trials.ways() == ["serve", "serve"]
    (first,), second = trials.servers[0], trials.servers_now()
    assert len(second) == 1 and first not in second


@pytest.mark.parametrize(
    ("fault", "words"), [("refuse", "planted refusal"), ("die", "has ended"), ("garbage", "Segmentation fault")]
)
def test_a_doubtful_server_is_ended_and_the_trial_runs_by_itself(
    trials: Trials, monkeypatch: pytest.MonkeyPatch, fault: str, words: str
) -> None:
    monkeypatch.setenv("AUTOFIT_STUB_SERVER", fault)
    monkeypatch.setenv("AUTOFIT_STUB_SECONDS", "0.5")
    assert trials.run("a").outcome == "COMPLETED"
    assert trials.ways()[-1] == "run"
    assert trials.servers_now() == set()
    assert len(trials.said) == 1 and words in trials.said[0]
    monkeypatch.delenv("AUTOFIT_STUB_SERVER")
    trials.run("b")
    assert trials.ways()[-1] == "serve"


def test_servers_that_fail_again_and_again_are_given_up(trials: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOFIT_STUB_SERVER", "refuse")
    assert {trials.run(f"{number}").outcome for number in range(MAX_DOUBTS + 1)} == {"COMPLETED"}
    assert len(trials.said) == MAX_DOUBTS


@pytest.mark.parametrize(("fault", "outcome"), [("crash", "CRASHED"), ("deaf", "HANG")])
def test_a_failure_that_only_forks_have_ends_the_forking(
    trials: Trials, monkeypatch: pytest.MonkeyPatch, fault: str, outcome: str
) -> None:
    monkeypatch.setenv("AUTOFIT_STUB_SERVER", fault)
    assert trials.run("a").outcome == "COMPLETED"
    assert outcome in trials.said[0] and "no further trial is forked" in trials.said[1]
    monkeypatch.delenv("AUTOFIT_STUB_SERVER")
    trials.run("b")
    assert trials.ways()[-2:] == ["run", "run"]


def test_a_failure_that_new_processes_have_too_is_the_trials(trials: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOFIT_STUB", "crash")
    assert trials.run("a").message == "no module named flash"
    assert trials.ways() == ["serve", "run"]
    monkeypatch.setenv("AUTOFIT_STUB", "")
    trials.run("b")
    assert trials.ways()[-1] == "serve"


def test_a_killed_server_takes_its_trial_along_and_another_takes_over(trials: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOFIT_STUB_SECONDS", "0.6")
    trials.run("a")
    for server in trials.servers_now():
        os.kill(server, 9)
    assert trials.run("b").outcome == "COMPLETED"
    assert trials.run("c").outcome == "COMPLETED"
    assert trials.ways() == ["serve", "run", "serve"]
