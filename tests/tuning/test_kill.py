"""Driver and worker are killed with SIGKILL at random moments of a search; after `--resume` nothing is lost or run twice."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

KILLS = 30
TRIALS = 60
Row = tuple[object, ...]


class Search:
    """`autofit search` as a user starts it, over and over."""

    def __init__(self, folder: Path, python: str) -> None:
        self.database, self.log, self._folder, self._python = folder / "autofit.db", folder / "ran.log", folder, python

    def start(self) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "autofit.cli", "--db", f"sqlite:///{self.database}", "search", "--gpu-mem", "206MB"]
        command += ["--runs", str(self._folder / "runs"), "--trials", str(TRIALS)]
        if self.has_study():
            command += ["--resume", "--study", "killed"]
        else:
            command += ["--space", "tiny_qwen2_5_vl", "--device", "cpu", "--sampler", "random", "--study", "killed"]
            command += ["--python", self._python]
        env = {**os.environ, "AUTOFIT_STUB_LOG": str(self.log), "AUTOFIT_STUB_SECONDS": "0.2"}
        with (self._folder / "driver.log").open("ab") as out:
            return subprocess.Popen(command, env=env, stdout=out, stderr=out)

    def has_study(self) -> bool:
        try:
            return bool(self.rows("SELECT 1 FROM studies"))
        except sqlite3.OperationalError:
            return False

    def rows(self, sql: str) -> list[Row]:
        with closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True)) as connection:
            return list(connection.execute(sql))

    def finished(self) -> dict[object, Row]:
        return {row[0]: row for row in self.rows("SELECT * FROM trials WHERE state = 'FINISHED'")} if self.has_study() else {}

    def on_disk(self) -> set[str]:
        """Trials whose result is on disk, stored or not."""
        return {file.parent.name for file in self._folder.glob("runs/killed/*/result.json")}

    def runs(self) -> Counter[str]:
        return Counter(line.split()[0] for line in self._logged())

    def runs_by_way(self) -> Counter[tuple[str, str]]:
        """Starts of a trial by its number, and whether it was forked (`serve`) or had processes of its own (`run`)."""
        return Counter((line.split()[0], line.split()[2]) for line in self._logged())

    def _logged(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def workers(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            alive = process.info["status"] != psutil.STATUS_ZOMBIE
            if (
                alive
                and f"{self._folder}/runs" in " ".join(process.info["cmdline"] or [])
                and "autofit.cli" not in str(process.info["cmdline"])
            ):
                found.append(process)
        return found


@pytest.fixture
def search(tmp_path: Path, stub_python: str) -> Iterator[Search]:
    found = Search(tmp_path, stub_python)
    yield found
    for process in found.workers():
        process.kill()


def test_thirty_kills_lose_nothing_and_repeat_nothing(search: Search) -> None:
    dice = random.Random(20261123)
    kills = Counter[str]()
    driver = search.start()
    while sum(kills.values()) < KILLS:
        time.sleep(dice.uniform(0.2, 2.2))
        victim = dice.choice(["driver", "driver", "worker", "both"])
        workers = search.workers() if victim != "driver" else []
        if victim != "worker":
            driver.send_signal(signal.SIGKILL)
            driver.wait()
        elif driver.poll() is not None:
            driver = search.start()
            continue
        for process in workers:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass
        kills[victim] += 1
        if victim == "worker":
            continue
        before, on_disk, runs = search.finished(), search.on_disk(), search.runs()
        driver = search.start()
        time.sleep(dice.uniform(0.0, 0.5))
        after = search.finished()
        assert {key: after.get(key) for key in before} == before, "a finished trial was lost or changed"
        now = search.runs()
        assert {name: now[name] for name in on_disk} == {name: runs[name] for name in on_disk}, "a finished trial ran again"
    if driver.wait(timeout=240) != 0:  # the last worker may have been killed thrice in a row: resume once more
        driver = search.start()
        assert driver.wait(timeout=240) == 0, (search.database.parent / "driver.log").read_text()[-2000:]
    assert set(kills) == {"driver", "worker", "both"}
    assert search.rows("PRAGMA integrity_check") == [("ok",)]
    trials = search.rows("SELECT trial_number, attempt, state FROM trials WHERE purpose = 'search' ORDER BY trial_number")
    assert len(trials) == TRIALS
    assert {row[2] for row in trials} == {"FINISHED"}
    assert search.rows("SELECT config_key FROM trials WHERE purpose = 'search' GROUP BY config_key HAVING count(*) > 1") == []
    ran = search.runs_by_way()  # a forked trial that was killed runs again by itself, in the same attempt
    assert all(ran[f"{number:04d}", way] <= int(str(attempt)) for number, attempt, _ in trials for way in ("serve", "run"))
    assert search.workers() == []
