"""The launcher's verdicts, each with its fault planted in a worker that is a real process."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from autofit.config.hardware import Hardware
from autofit.config.result import TrialResult
from autofit.config.trial import RunSpec
from autofit.errors import LaunchError
from autofit.launch import local, processes
from autofit.launch.local import Limits, LocalExecutor

QUICK = Limits(trial=20.0, load=10.0, hang=0.6, term_grace=0.4)
Build = Callable[..., RunSpec]


@pytest.fixture(params=[False, True], ids=["fresh", "warm"])
def run(
    stub_python: str,
    cpu: Hardware,
    tmp_path: Path,
    run_spec: Build,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Callable[..., TrialResult]:
    def go(fault: str = "", limits: Limits = QUICK, **fields: object) -> TrialResult:
        monkeypatch.setenv("AUTOFIT_STUB", fault)
        with LocalExecutor(stub_python, cpu, limits, warm=request.param) as executor:
            return executor.run(tmp_path / "run", run_spec(**fields), lambda beat: None)

    return go


def alive(marker: str) -> list[int]:
    """Processes whose command line names `marker`, zombies left out."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if marker in " ".join(process.info["cmdline"] or []) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process.pid)
    return found


def test_a_worker_that_completes_is_read(run: Callable[..., TrialResult], tmp_path: Path) -> None:
    result = run()
    assert result.outcome == "COMPLETED"
    assert result.samples_per_second is not None
    spec = RunSpec.model_validate_json((tmp_path / "run" / "spec.json").read_bytes())
    assert spec.trial.cutoff_len == 256


def test_an_oom_of_the_worker_is_kept_with_its_bytes(run: Callable[..., TrialResult]) -> None:
    result = run(budget=50 * 1024**2)
    assert (result.outcome, result.phase) == ("OOM", "forward")
    assert result.requested_bytes is not None and result.requested_bytes > 0


def test_no_progress_is_a_hang_and_names_phase_and_rank(run: Callable[..., TrialResult]) -> None:
    result = run("hang")
    assert (result.outcome, result.phase, result.failed_rank) == ("HANG", "forward", 0)


def test_slow_is_no_hang(run: Callable[..., TrialResult]) -> None:
    result = run("slow", limits=Limits(trial=2.0, hang=0.6, term_grace=0.4))
    assert result.outcome == "TIMEOUT"


@pytest.mark.parametrize(
    ("fault", "words"), [("garbage", "unreadable"), ("torn", "unreadable"), ("no-peak", "peak_device_bytes")]
)
def test_a_result_that_cannot_be_read_is_a_crash_in_one_line(run: Callable[..., TrialResult], fault: str, words: str) -> None:
    result = run(fault)
    assert result.outcome == "CRASHED"
    assert result.message is not None and words in result.message and "\n" not in result.message


def test_no_result_quotes_the_log(run: Callable[..., TrialResult]) -> None:
    result = run("silent")
    assert result.outcome == "CRASHED"
    assert "No space left on device" in str(result.message)


def test_a_killed_worker_crashed(run: Callable[..., TrialResult]) -> None:
    result = run("die")
    assert result.outcome == "CRASHED"
    assert "SIGKILL" in str(result.message)


def test_killed_by_the_kernel_for_memory_is_host_oom(run: Callable[..., TrialResult], monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([4, 5])
    monkeypatch.setattr(local, "kernel_oom_kills", lambda: next(counts))
    assert run("die").outcome == "HOST_OOM"


@pytest.mark.parametrize("fault", ["ignore-sigterm", "child", "hang"])
def test_no_process_is_left(run: Callable[..., TrialResult], tmp_path: Path, fault: str) -> None:
    run(fault, limits=Limits(trial=1.0, hang=0.5, term_grace=0.3))
    assert alive(str(tmp_path)) == []
    pgid = json.loads((tmp_path / "run" / "process.json").read_text())["pgid"]
    assert processes.group_members(pgid) == []


def test_an_exception_while_watching_ends_the_trial(
    stub_python: str, cpu: Hardware, tmp_path: Path, run_spec: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOFIT_STUB", "slow")

    def interrupt(beat: object) -> None:
        if beat is not None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LocalExecutor(stub_python, cpu, QUICK).run(tmp_path / "run", run_spec(), interrupt)
    assert alive(str(tmp_path)) == []


def test_a_second_attempt_forgets_the_first(run: Callable[..., TrialResult]) -> None:
    assert run().outcome == "COMPLETED"
    assert run("silent").outcome == "CRASHED"  # not the first attempt's result


def test_recover_takes_a_finished_result_and_only_of_that_trial(
    stub_python: str, cpu: Hardware, tmp_path: Path, run_spec: Build
) -> None:
    executor = LocalExecutor(stub_python, cpu, QUICK)
    spec = run_spec()
    executor.run(tmp_path / "run", spec, lambda beat: None)
    recovered = executor.recover(tmp_path / "run", spec.trial)
    assert recovered is not None and recovered.outcome == "COMPLETED"
    assert executor.recover(tmp_path / "run", run_spec(micro_batch_size=2).trial) is None
    assert executor.recover(tmp_path / "elsewhere", spec.trial) is None


def test_leftovers_of_a_killed_driver_are_ended(tmp_path: Path) -> None:
    group = processes.ProcessGroup(["sleep", "600"], os.environ, tmp_path, 0.2)
    assert processes.end_leftover(tmp_path)
    assert processes.group_members(group.pgid) == []
    group.stop()


def test_a_reused_process_id_is_left_alone(tmp_path: Path) -> None:
    with processes.ProcessGroup(["sleep", "600"], os.environ, tmp_path, 0.2) as group:
        note = tmp_path / "process.json"
        noted = json.loads(note.read_text())
        note.write_text(json.dumps({**noted, "create_time": noted["create_time"] - 3600}))
        assert not processes.end_leftover(tmp_path)
        assert group.poll() is None


def test_a_program_that_is_not_there_is_one_line(cpu: Hardware, tmp_path: Path, run_spec: Build) -> None:
    with pytest.raises(LaunchError, match="cannot start"):
        LocalExecutor(str(tmp_path / "no-python"), cpu).run(tmp_path / "run", run_spec(), lambda beat: None)


def test_a_full_disk_is_one_line(
    stub_python: str, cpu: Hardware, tmp_path: Path, run_spec: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(local, "write_atomically", full)
    with pytest.raises(LaunchError, match="No space left on device"):
        LocalExecutor(stub_python, cpu).run(tmp_path / "run", run_spec(), lambda beat: None)


def test_writing_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "spec.json"
    processes.write_atomically(file, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        processes.write_atomically(file, "new")
    assert file.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["spec.json"]


def test_heartbeats_name_the_rank_furthest_behind(tmp_path: Path) -> None:
    for rank, progress in ((0, 9), (1, 4)):
        beat = {"pid": 1, "phase": "backward", "step": 2, "progress": progress, "time": time.time()}
        (tmp_path / f"heartbeat.rank{rank}.json").write_text(json.dumps(beat))
    (tmp_path / "heartbeat.rank2.json").write_text('{"pid": 1, "pha')  # torn
    beat = local.read_heartbeat(tmp_path)
    assert beat == local.Heartbeat(phase="backward", step=2, progress=13, laggard=1)
