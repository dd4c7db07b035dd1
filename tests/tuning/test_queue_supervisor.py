"""The queue's supervisor: runs what was submitted, obeys pause and cancel, and survives the death of any process."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from autofit.config.job import Job, JobRequest
from autofit.errors import Conflict, NotFound
from autofit.store import schema
from autofit.store.queue import Queue
from autofit.store.reader import Reader
from autofit.tuning.supervisor import is_supervised, search_arguments

KILLS = 20
TRIALS = 10


def _command(process: psutil.Process) -> list[str]:
    """Its arguments; none of one that has ended since it was listed."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


class Service:
    """A database with a queue, and a supervisor as a user starts it."""

    def __init__(self, folder: Path, python: str) -> None:
        self.folder, self.python = folder, python
        self.database, self.ran = folder / "autofit.db", folder / "ran.log"
        schema.upgrade(self.database)
        self.queue = Queue(self.database)
        self.process: subprocess.Popen[bytes] | None = None

    def submit(self, study: str, trials: int = TRIALS, **fields: object) -> None:
        asked = {"gpu_mem_bytes": 206 * 1024**2, "space": "tiny_qwen2_5_vl", "device": "cpu", "sampler": "random"}
        request = JobRequest.model_validate({**asked, "python": self.python, "trials": trials, **fields})
        self.queue.submit(study, request, "local")

    def start(self, *flags: str) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "autofit.cli", "--db", str(self.database), "supervise"]
        env = {**os.environ, "AUTOFIT_STUB_LOG": str(self.ran), "AUTOFIT_STUB_SECONDS": "0.15"}
        with (self.folder / "supervisor.log").open("ab") as out:
            self.process = subprocess.Popen(
                [*command, "--runs", str(self.folder / "runs"), *flags], env=env, stdout=out, stderr=out, cwd=self.folder
            )
        return self.process

    def searches(self) -> list[psutil.Process]:
        """The drivers that live."""
        return [one for one in self._processes() if "search" in _command(one)]

    def workers(self) -> list[psutil.Process]:
        return [one for one in self._processes() if {"run", "serve"} & set(_command(one)) and "search" not in _command(one)]

    def _processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if str(self.folder) in " ".join(process.cmdline()) and "supervise" not in process.cmdline():
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def wait(self, what: Callable[[], bool], seconds: float = 90.0) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, (self.folder / "supervisor.log").read_text()[-2000:]
            time.sleep(0.1)

    def job(self, study: str) -> Job:
        return self.queue.job(study)


@pytest.fixture
def service(tmp_path: Path, stub_python: str) -> Iterator[Service]:
    found = Service(tmp_path, stub_python)
    yield found
    if found.process is not None and found.process.poll() is None:
        found.process.kill()
        found.process.wait()
    for process in (*found.searches(), *found.workers()):
        process.kill()
    found.queue.close()


def test_twenty_kills_lose_nothing_and_repeat_nothing(service: Service) -> None:
    dice = random.Random(20261125)
    for name in ("first", "second", "third"):
        service.submit(name)
    supervisor = service.start()
    kills: Counter[str] = Counter()
    finished: dict[tuple[object, object], tuple[object, ...]] = {}
    while sum(kills.values()) < KILLS:
        time.sleep(dice.uniform(0.2, 1.6))
        victim = dice.choice(["supervisor", "search", "worker", "all"])
        hit = [*(service.searches() if victim in {"search", "all"} else ())]
        hit += service.workers() if victim in {"worker", "all"} else []
        if victim in {"supervisor", "all"}:
            supervisor.kill()
            supervisor.wait()
        elif not hit:
            continue
        for process in hit:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass
        kills[victim] += 1
        if victim in {"supervisor", "all"}:
            supervisor = service.start()
        assert len(service.searches()) <= 1, "two searches at once on one set of devices"
        now = finished_trials(service)
        assert {key: now.get(key) for key in finished} == finished, "a finished trial was lost or changed"
        finished = now
    service.wait(lambda: all(job.state == "DONE" for job in service.queue.jobs()), 180.0)
    assert set(kills) == {"supervisor", "search", "worker", "all"}
    with Reader(service.database) as reader:
        counts = reader.query("SELECT study, count(*) FROM trial_list WHERE purpose = 'search' GROUP BY study").rows
        assert dict(counts) == dict.fromkeys(("first", "second", "third"), TRIALS)
        attempts = reader.query("SELECT run_dir, attempt, state FROM trial_list").rows
    ran = Counter((line.split()[0], line.split()[2]) for line in service.ran.read_text().splitlines())
    allowed: Counter[str] = Counter()
    for run_dir, attempt, state in attempts:
        assert state == "FINISHED"
        allowed[Path(run_dir).name] += attempt
    # a forked trial that was killed runs again by itself, in processes of its own, in the same attempt
    assert all(times <= allowed[name] for (name, _), times in ran.items()), "a trial ran more often than it was counted"


def finished_trials(service: Service) -> dict[tuple[object, object], tuple[object, ...]]:
    with Reader(service.database) as reader:
        rows = reader.query("SELECT study_id, trial_number, * FROM trials WHERE state = 'FINISHED'").rows
    return {(row[0], row[1]): row for row in rows}


def test_a_search_is_paused_goes_on_and_is_cancelled(service: Service) -> None:
    service.submit("first", trials=60)
    service.submit("waits")
    service.start()
    service.wait(lambda: service.queue.finished_trials("first") >= 2)
    assert service.job("waits").state == "QUEUED", "two searches had one device"
    service.queue.wish("first", "PAUSE")
    service.wait(lambda: service.job("first").state == "PAUSED")
    assert service.queue.study_status("first") == "INTERRUPTED"
    service.wait(lambda: service.job("waits").state == "RUNNING")
    before = service.queue.finished_trials("first")
    service.queue.wish("first", "RUN")
    assert service.job("first").state == "QUEUED"
    service.wait(lambda: service.job("waits").state == "DONE")
    service.wait(lambda: service.queue.finished_trials("first") > before)
    service.queue.wish("first", "CANCEL")
    service.wait(lambda: service.job("first").state == "CANCELLED")
    with pytest.raises(Conflict, match="CANCELLED"):
        service.queue.wish("first", "RUN")


def test_an_adopted_search_obeys_and_a_supervisor_that_ends_hands_over(service: Service) -> None:
    service.submit("first", trials=60)
    supervisor = service.start()
    service.wait(lambda: service.queue.finished_trials("first") >= 1)
    supervisor.kill()
    supervisor.wait()
    assert not is_supervised(service.database)
    (search,) = service.searches()
    supervisor = service.start()
    service.wait(lambda: is_supervised(service.database))
    time.sleep(0.7)
    assert [one.pid for one in service.searches()] == [search.pid], "the search that lives was started again"
    service.queue.wish("first", "PAUSE")
    service.wait(lambda: service.job("first").state == "PAUSED")
    service.queue.wish("first", "RUN")
    service.wait(lambda: service.job("first").state == "RUNNING" and bool(service.searches()))
    supervisor.send_signal(signal.SIGTERM)
    assert supervisor.wait(timeout=60) == 0
    assert service.job("first").state == "QUEUED"
    assert service.searches() == []


def test_a_second_supervisor_is_refused(service: Service) -> None:
    service.start()
    service.wait(lambda: is_supervised(service.database))
    command = [sys.executable, "-m", "autofit.cli", "--db", str(service.database), "supervise"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=service.folder, check=False)
    assert done.returncode == 1
    assert "another supervisor runs the queue" in done.stderr


def test_a_search_that_cannot_start_says_why(service: Service) -> None:
    service.submit("impossible", gpu_mem_bytes=1024)
    service.start("--with-process", "999999999")
    service.wait(lambda: service.job("impossible").state == "FAILED")
    assert "is impossible" in (service.job("impossible").message or "")
    assert service.process is not None
    assert service.process.wait(timeout=30) == 0, "a supervisor without work and without its web server ends"


def test_names_are_taken_once(service: Service) -> None:
    service.submit("first")
    with pytest.raises(Conflict, match="exists already"):
        service.submit("first")
    with pytest.raises(NotFound):
        service.queue.wish("second", "PAUSE")


def test_a_value_cannot_become_a_flag(service: Service) -> None:
    service.submit("first", model="--debug", space="--json")
    arguments = search_arguments(service.job("first"), "autofit.db", Path("runs"), resume=False)
    assert "--model=--debug" in arguments
    assert "--debug" not in arguments
