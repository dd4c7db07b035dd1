"""The command line as a user calls it: one `autofit search` in a process of its own, and the rows that it stored."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autofit.config.record import StudyRecord, TrialRecord
from autofit.store.store import Store
from benchmarks.gpu.place import ROOT, OutOfTimeError, Place
from benchmarks.gpu.records import Ledger

SESSION = "session"
"""In the key of a record that only says how long an unfinished call took."""
_GRACE_SECONDS = 30.0


@dataclass(frozen=True)
class Searched:
    """One search that has ended."""

    study: StudyRecord
    trials: list[TrialRecord]
    seconds: float
    """Wall time."""
    status: int
    last_words: str
    sessions: int = 1
    """Calls that it took."""


def search_in_sessions(place: Place, ledger: Ledger, name: str, more: tuple[str, ...] = ()) -> Searched:
    """`search`, over as many calls as it takes: its seconds are those of all of them, kept in the part's ledger.

    Raises:
        OutOfTimeError: as `search`.
    """
    prefix = f"{name} {SESSION}"
    study = f"{name}-{place.kind}-{place.commit[:12]}"
    sessions = [record["seconds"] for key, record in ledger.mine().items() if key.startswith(prefix)]
    before = sessions if _known(_url(place, study), study) else []  # the records outlive the database: it starts anew then
    started = time.monotonic()
    try:
        found = search(place, study, more)
    except (OutOfTimeError, KeyboardInterrupt):
        ledger.add(f"{prefix} {len(sessions)}", seconds=time.monotonic() - started)
        raise
    return replace(found, seconds=found.seconds + sum(before), sessions=len(before) + 1)


def search(place: Place, name: str, more: tuple[str, ...] = ()) -> Searched:
    """Starts the search of the workload under `name`, or goes on with it.

    Raises:
        OutOfTimeError: the part's time ended first; what is finished is stored, and the next call goes on.
        RuntimeError: it failed. (One that finds no winner has not.)
    """
    url = _url(place, name)
    command = [sys.executable, "-m", "autofit.cli", "--db", url, "search", *place.load.search, *more, "--study", name]
    command += ["--runs", str(place.work / "runs")]
    if _known(url, name):
        command.append("--resume")
    else:
        command += ["--space", str(place.load.space)]
        command += ["--device", place.kind, "--num-gpus", "1", "--engine", "transformers"]
        command += ["--python", place.environment.python, "--seed", str(place.seed)]
    started = time.monotonic()
    log = place.work / f"{name}.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=stream, stderr=stream, env=_environment(place), start_new_session=True
        )
        try:
            while process.poll() is None:
                if place.left <= 0:
                    raise OutOfTimeError
                time.sleep(0.1)
        finally:
            _stop(process)
    seconds = time.monotonic() - started
    with Store.open(url) as store:
        if store.study(name).status != "FINISHED":
            raise RuntimeError(f"autofit search did not come to its end: {log.read_text()[-2000:].strip()}")
        return Searched(store.study(name), store.trials(name), seconds, process.returncode, log.read_text()[-2000:])


def figures(trial: TrialRecord) -> dict[str, Any]:
    """A stored trial's figures."""
    result, wall = trial.result, trial.finished_at and (trial.finished_at - trial.started_at).total_seconds()
    return {
        "trial": trial.trial_number,
        "purpose": trial.purpose,
        "config": trial.spec.config_key(),
        "outcome": result.outcome if result else None,
        "device": result.peak_device_bytes if result else None,
        "allocated": result.peak_allocated_bytes if result else None,
        "step_seconds": result.step_time_seconds if result else None,
        "timings": result.timings if result else {},
        "wall_seconds": wall,
        "predicted_device": trial.prediction.peak_device_bytes if trial.prediction else None,
    }


def _url(place: Place, name: str) -> str:
    return f"sqlite:///{place.work / (name + '.db')}"


def _known(url: str, name: str) -> bool:
    if not Path(url.removeprefix("sqlite:///")).exists():
        return False
    with Store.open(url) as store:
        return any(study.name == name for study in store.studies())


def _environment(place: Place) -> dict[str, str]:
    own = {"XDG_CACHE_HOME": str(place.work / "cache"), "PYTHONPATH": str(ROOT)}
    return {**os.environ, **own, "COLUMNS": "160", "TERM": "dumb"}


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Ends a search as Ctrl-C does: it ends its trial and keeps its state."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
