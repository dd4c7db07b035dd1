"""The heartbeat is throttled but never misses the way into or out of a long phase."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autofit.worker import heartbeat
from autofit.worker.heartbeat import Heartbeat, heartbeat_path


def content(folder: Path) -> dict[str, object]:
    read: dict[str, object] = json.loads(heartbeat_path(folder, 0).read_text())
    return read


def test_throttled_between_micro_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: now)
    beats = Heartbeat(tmp_path, 0)
    beats.beat("forward", 0)
    first = content(tmp_path)
    beats.beat("backward")
    assert content(tmp_path) == first
    now += heartbeat.INTERVAL_SECONDS
    beats.beat("forward", 1)
    later = content(tmp_path)
    assert (later["progress"], later["step"], later["phase"]) == (3, 1, "forward")


def test_long_phases_are_written_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: 100.0)
    beats = Heartbeat(tmp_path, 0)
    beats.beat()
    beats.beat("load")
    assert content(tmp_path)["phase"] == "load"
    beats.beat("forward", 0)
    assert content(tmp_path)["phase"] == "forward"


def test_the_last_sign_of_life_is_seen_though_no_other_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "INTERVAL_SECONDS", 60.0)
    beats = Heartbeat(tmp_path, 0)
    beats.beat("forward", 0)
    beats.beat("backward")
    assert content(tmp_path)["progress"] == 1
    monkeypatch.setattr(heartbeat, "INTERVAL_SECONDS", 0.01)
    beats.keep_flushing()
    end = time.monotonic() + 30.0
    while content(tmp_path)["progress"] != 2:
        assert time.monotonic() < end, "never written"
        time.sleep(0.01)
    assert content(tmp_path)["phase"] == "backward"


def test_computing_without_a_word_is_a_sign_of_life_and_waiting_is_none(tmp_path: Path) -> None:
    """Tokenising for an hour, in this process or in a pool; and a deadlock."""
    beats = Heartbeat(tmp_path, 0)
    beats.beat("data")

    def progress(code: str) -> int:
        before = beats._progress
        with beats.working(every_seconds=0.5):
            subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
        return beats._progress - before

    assert progress("import time; time.sleep(2.5)") <= 1  # the interpreter's own start
    assert progress("import time\nwhile time.process_time() < 2.0: pass") >= 2


def test_a_lost_folder_does_not_end_the_training(tmp_path: Path) -> None:
    Heartbeat(tmp_path / "gone", 0).beat("forward", 0)
