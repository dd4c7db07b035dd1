"""Ranks end together, the result says why, and nobody is left behind. The ranks are real processes that train nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from worker_orders import read_result, write_spec

from autofit.worker.files import read_json
from autofit.worker.heartbeat import heartbeat_path
from autofit.worker.processes import rest
from autofit.worker.report import read_report
from autofit.worker.supervisor import DRIVER_PID

FAKE_JOB = Path(__file__).with_name("fake_job.py")
DEADLINE = 60.0


def start(spec: Path, **env: str) -> subprocess.Popen[bytes]:
    stderr = (spec.parent / "stderr.log").open("wb")
    with stderr:
        command = [sys.executable, str(FAKE_JOB), str(spec)]
        return subprocess.Popen(command, env={**os.environ, **env}, stderr=stderr, stdout=subprocess.DEVNULL)


def run(spec: Path, **env: str) -> int:
    return start(spec, **env).wait(DEADLINE)


def wait_for(condition: Any) -> Any:
    """What `condition()` gives once it is true."""
    end = time.monotonic() + DEADLINE
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return value


def rank_pids(spec: Path) -> list[int]:
    """Pids of both ranks once they are in a step."""
    beats = [read_json(heartbeat_path(spec.parent, rank)) for rank in range(2)]
    return [beat["pid"] for beat in beats if beat and beat["phase"] == "forward"] if all(beats) else []


def test_all_ranks_complete(tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    assert run(spec) == 0
    result = read_result(spec)
    assert result.outcome == "COMPLETED"
    assert result.step_time_seconds == pytest.approx(0.04)  # the slower rank's
    assert result.samples_per_second == pytest.approx(2 / 0.04)
    assert result.tokens_per_second == pytest.approx(2 * 128 / 0.04)
    assert result.peak_device_bytes == 101
    assert result.phase == "forward"
    assert result.losses == [2.5, 12.5, 22.5]
    assert [rank.rank for rank in result.ranks] == [0, 1]


def test_ranks_that_completed_are_resumed_in_fresh_processes(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, measure={"save": True, "resume": True})
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer" / "checkpoint-1").touch()  # of an earlier attempt: the launcher would resume from it
    assert run(spec) == 0
    result = read_result(spec)
    assert result.outcome == "COMPLETED"
    assert result.losses == [2.5, 12.5, 22.5, 32.5]  # a step after the checkpoint
    assert result.resumed_loss == 32.5
    assert result.timed_steps == 2
    assert result.timings["resume"] > 0


def test_a_failure_after_resuming_says_so_and_keeps_what_was_measured(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, measure={"save": True, "resume": True})
    assert run(spec, FAKE_ENGINE="oom-resumed:1") == 1
    result = read_result(spec)
    assert (result.outcome, result.failed_rank, result.phase) == ("OOM", 1, "forward")
    assert str(result.message).startswith("after resuming from the checkpoint: DefaultCPUAllocator")
    assert (result.peak_device_bytes, len(result.ranks[1].step_seconds)) == (101, 4)


def test_one_ranks_oom_is_the_jobs(tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    assert run(spec, FAKE_ENGINE="oom:1") == 1
    result = read_result(spec)
    assert (result.outcome, result.failed_rank, result.phase, result.requested_bytes) == ("OOM", 1, "forward", 4096)
    assert result.ranks[0].outcome == "CRASHED"


@pytest.mark.parametrize(
    ("fault", "outcome", "error_type"),
    [
        ("die:1:1", "CRASHED", "SIGKILL"),
        ("oom-host:1:1", "HOST_OOM", "SIGKILL"),
        ("crash:0:1", "CRASHED", "RuntimeError"),
        ("data:0:1", "DATA_ERROR", "autofit.worker.outcomes.DataError"),
    ],
)
def test_planted_fault_is_named(tmp_path: Path, fault: str, outcome: str, error_type: str) -> None:
    spec = write_spec(tmp_path)
    assert run(spec, AUTOFIT_FAULT=fault) == 1
    result = read_result(spec)
    assert (result.outcome, result.error_type, result.failed_rank) == (outcome, error_type, int(fault.split(":")[1]))


def test_asked_for_its_stacks_a_trial_tells_those_of_its_ranks_and_lives_on(tmp_path: Path) -> None:
    """The launcher asks the whole group; a supervisor that died of it would take the ranks along before they had answered."""
    spec = write_spec(tmp_path)
    job = start(spec, AUTOFIT_FAULT="hang:0:1,hang:1:1")
    try:
        for pid in (*wait_for(lambda: rank_pids(spec)), job.pid):
            os.kill(pid, signal.SIGUSR1)
        wait_for(lambda: (tmp_path / "stderr.log").read_text().count("fake_job.py") >= 2)
        time.sleep(0.2)
        assert job.poll() is None
    finally:
        job.terminate()
        job.wait(DEADLINE)


def test_peer_that_hangs_is_ended_when_the_other_dies(tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    assert run(spec, AUTOFIT_FAULT="hang:0:1,die:1:1") == 1
    result = read_result(spec)
    assert (result.failed_rank, result.error_type) == (1, "SIGKILL")
    assert result.ranks[0].message == "terminated"


def test_death_in_native_code_by_a_failed_allocation_is_oom(tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    assert run(spec, FAKE_ENGINE="abort:0") == 1
    result = read_result(spec)
    assert (result.outcome, result.failed_rank, result.error_type) == ("OOM", 0, "SIGABRT")


def test_sigterm_reaches_the_ranks_and_is_reported(tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    job = start(spec, AUTOFIT_FAULT="hang:0:1,hang:1:1")
    pids = wait_for(lambda: rank_pids(spec))
    job.send_signal(signal.SIGTERM)
    assert job.wait(DEADLINE) == 1
    assert read_result(spec).message == "terminated"
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_ranks_share_the_supervisors_process_group(tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    job = start(spec, AUTOFIT_FAULT="hang:0:0,hang:1:0")
    try:
        pids = wait_for(lambda: rank_pids(spec))
        assert {os.getpgid(pid) for pid in pids} == {os.getpgid(job.pid)}
    finally:
        job.send_signal(signal.SIGTERM)
        job.wait(DEADLINE)


def test_ranks_die_with_a_killed_supervisor(tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    job = start(spec, AUTOFIT_FAULT="hang:0:1,hang:1:1,ignore-sigterm")
    pids = wait_for(lambda: rank_pids(spec))
    job.kill()
    job.wait(DEADLINE)
    wait_for(lambda: not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids))
    assert not (tmp_path / "result.json").exists()


def test_supervisor_dies_with_its_driver(tmp_path: Path) -> None:
    """A driver in between: it starts the job, tells the pid, and waits to be killed."""
    spec = write_spec(tmp_path)
    driver_code = (
        "import os, subprocess, sys, time\n"
        f"env = {{**os.environ, {DRIVER_PID!r}: str(os.getpid())}}\n"
        "print(subprocess.Popen(sys.argv[1:], env=env).pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    command = [sys.executable, "-c", driver_code, sys.executable, str(FAKE_JOB), str(spec)]
    env = {**os.environ, "AUTOFIT_FAULT": "hang:0:1,hang:1:1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as driver:
        assert driver.stdout is not None
        supervisor = int(driver.stdout.readline())
        pids = [supervisor, *wait_for(lambda: rank_pids(spec))]
        driver.kill()
    wait_for(lambda: not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids))


def test_leftovers_of_an_earlier_start_do_not_count(tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    assert run(spec) == 0
    assert read_report(tmp_path, 0, "another start") is None
    for rank in range(2):
        heartbeat_path(tmp_path, rank).unlink()  # or they would pass for signs of life of the second start
    job = start(spec, AUTOFIT_FAULT="hang:0:1,hang:1:1")
    wait_for(lambda: rank_pids(spec))
    job.kill()
    job.wait(DEADLINE)
    assert not (tmp_path / "result.json").exists()


def test_torn_and_garbage_results_are_what_they_say(tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    assert run(spec, AUTOFIT_FAULT="torn-result") == -signal.SIGKILL
    with pytest.raises(json.JSONDecodeError):
        json.loads((tmp_path / "result.json").read_text())
    assert run(spec, AUTOFIT_FAULT="garbage-result") == 0
    assert (tmp_path / "result.json").read_bytes().startswith(b"\x80")


def test_full_disk_leaves_no_half_result(tmp_path: Path) -> None:
    """A folder that cannot be written any more stands for the disk that is full; both are OSError."""
    from autofit.worker.files import write_json

    path = tmp_path / "gone" / "result.json"
    with pytest.raises(OSError, match="gone"):
        write_json(path, {})
    path = tmp_path / "result.json"
    path.write_text("{}")
    with pytest.raises(TypeError):
        write_json(path, {"x": object()})
    assert path.read_text() == "{}"


def test_a_wait_ends_with_the_first_child_that_does() -> None:
    with subprocess.Popen(["sleep", "0.2"]) as short, subprocess.Popen(["sleep", "600"]) as long:
        began = time.monotonic()
        rest([long.pid, short.pid], 30)
        long.kill()
        assert time.monotonic() - began < 15, "it slept as long as it may"


def test_a_wait_without_the_kernels_help_is_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    began = time.monotonic()
    rest([os.getpid()], 0.1)
    assert time.monotonic() - began >= 0.1, "whoever waits in a loop would keep a core busy"
