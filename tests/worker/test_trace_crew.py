"""The processes that trace many specs: what fails, dies or takes too long costs itself; the rest is answered, in parallel."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autofit.resources import worker_entry

DRIVER = """
import os, sys, time
from autofit.worker import trace_crew

def trace(name):
    what, _, rest = name.partition(" ")
    print("noise of a library")
    if what == "sleep":
        time.sleep(float(rest))
    if what == "fail":
        raise ValueError("cannot do it")
    if what == "odd":
        raise KeyError("odd")
    if what == "die":
        sys.stderr.write("the last word\\n")
        sys.stderr.flush()
        os._exit(3)
    return str(os.getpid())

def prepare():
    print("noise of an import")

trace_crew.IDLE_SECONDS = float(sys.argv[3])
sys.exit(trace_crew.serve(int(sys.argv[1]), float(sys.argv[2]), prepare, trace))
"""
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """A crew whose "traces" do what their name says."""
    script = tmp_path / "crew.py"
    script.write_text(DRIVER)

    def begin(processes: int = 2, seconds: float = 60, idle: float = 60) -> subprocess.Popen[str]:
        command = [sys.executable, str(script), str(processes), str(seconds), str(idle)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    return begin


def ask(crew: subprocess.Popen[str], *names: str) -> list[dict[str, Any]]:
    assert crew.stdin and crew.stdout
    crew.stdin.write("".join(f"{name}\n" for name in names))
    crew.stdin.flush()
    return [json.loads(crew.stdout.readline()) for _ in names]


def test_each_is_answered_and_a_process_takes_one_after_the_other(start: Start):
    with start(processes=2) as crew:
        answers = ask(crew, *(f"fine {number}" for number in range(8)))
        assert {answer["spec"] for answer in answers} == {f"fine {number}" for number in range(8)}
        workers = {answer["answer"] for answer in answers}
        assert 1 <= len(workers) <= 2 and str(crew.pid) not in workers
        assert ask(crew, "fine")[0]["answer"] in workers
        crew.stdin.close()  # type: ignore[union-attr]
        assert crew.wait(10) == 0
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


def test_two_work_at_once(start: Start):
    with start(processes=2) as crew:
        first, second = ask(crew, "sleep 3", "fine")
        assert (first["spec"], second["spec"]) == ("fine", "sleep 3")
        crew.stdin.close()  # type: ignore[union-attr]


def test_what_fails_dies_or_takes_too_long_costs_only_itself(start: Start):
    with start(processes=1, seconds=2) as crew:
        answers = {answer["spec"]: answer for answer in ask(crew, "fine", "fail", "odd", "die", "sleep 60", "fine again")}
        assert answers["fail"]["error"] == "cannot do it"
        assert answers["odd"]["error"] == "KeyError: 'odd'"
        assert answers["die"]["error"] == "the worker ended with status 3 (the last word)"
        assert answers["sleep 60"]["error"] == "tracing took more than 2 s; trace a smaller model"
        assert answers["fine"]["answer"] != answers["fine again"]["answer"]  # two processes have ended in between
        crew.stdin.close()  # type: ignore[union-attr]
        assert crew.wait(10) == 0


def test_a_crew_without_work_leaves(start: Start):
    with start(idle=0.5) as crew:
        ask(crew, "fine")
        assert crew.wait(10) == 0


def test_members_at_work_die_with_their_crew(start: Start):
    with start(processes=1) as crew:
        worker = int(ask(crew, "fine")[0]["answer"])
        crew.stdin.write("sleep 600\n")  # type: ignore[union-attr]
        crew.stdin.flush()  # type: ignore[union-attr]
        time.sleep(0.2)
        crew.kill()
        crew.wait()
        deadline = time.monotonic() + 10
        while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not Path(f"/proc/{worker}").exists()


@pytest.mark.parametrize("arguments", [["-"], ["-", "2"], ["-", "two", "60"]])
def test_usage(arguments: list[str]):
    command = [sys.executable, str(worker_entry()), "trace", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "trace - PROCESSES SECONDS" in done.stderr
