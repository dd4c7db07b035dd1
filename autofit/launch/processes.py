"""Processes by group: started in a session of their own, ended as a whole, found again after the driver was killed.

A trial is one process group. It is ended by its id (SIGTERM, then SIGKILL), never by a name, and counts as gone when the
kernel has no member of it left. `process.json` in the run folder lets a later driver end what an earlier one left behind;
the start time in it guards against a reused process id.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from autofit.errors import LaunchError

PROCESS_FILE = "process.json"
POLL_SECONDS = 0.05


class ProcessGroup:
    """One running trial. Use as a context manager: on leaving the block, however, no process of it is left."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], run_dir: Path, term_grace_seconds: float) -> None:
        """Starts `argv` in `run_dir`, its output in stdout.log and stderr.log there.

        Raises:
            LaunchError: the program cannot be started.
        """
        self._grace = term_grace_seconds
        try:
            with (run_dir / "stdout.log").open("ab") as out, (run_dir / "stderr.log").open("ab") as err:
                self._process = subprocess.Popen(
                    list(argv),
                    env=dict(env),
                    cwd=run_dir,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    start_new_session=True,
                )
        except OSError as error:
            raise LaunchError(f"cannot start {argv[0]}: {error.strerror or error}") from error
        self.pgid = self._process.pid
        try:
            note_group(run_dir, self.pgid)
        except BaseException:
            self.stop()
            raise

    def poll(self) -> int | None:
        """Exit status of the first process (negative: the signal that ended it), or None while it runs."""
        return self._process.poll()

    def rest(self, seconds: float) -> None:
        """Waits so long: a few hundredths are nothing beside the start of new interpreters."""
        time.sleep(seconds)

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to every member."""
        signal_group(self.pgid, number)

    def stop(self) -> None:
        """Ends every member: SIGTERM, the grace, SIGKILL; returns when none is left."""
        end_group(self.pgid, self._grace, self._process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()


def note_group(run_dir: Path, pgid: int) -> None:
    """Writes `process.json`; leaves it out if the group's first process has ended already."""
    try:
        born = psutil.Process(pgid).create_time()
    except psutil.NoSuchProcess:
        return
    write_atomically(run_dir / PROCESS_FILE, json.dumps({"pgid": pgid, "create_time": born}))


def end_leftover(run_dir: Path) -> bool:
    """Ends the process group that an earlier driver left in `run_dir`; True if there was one."""
    try:
        noted = json.loads((run_dir / PROCESS_FILE).read_text(encoding="utf-8"))
        pgid, born = int(noted["pgid"]), float(noted["create_time"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    # A live leader must be the one that was noted; without a leader every member must be younger than it was.
    members = group_members(pgid)
    if not members or any(_create_time(pid) < born - 1.0 for pid in members):
        return False
    if pgid in members and abs(_create_time(pgid) - born) > 1.0:
        return False
    end_group(pgid, 0.0)
    return True


def end_group(pgid: int, grace_seconds: float, leader: subprocess.Popen[bytes] | None = None) -> None:
    """Ends a process group by id.

    Raises:
        LaunchError: members survive SIGKILL for half a minute (stuck in the kernel).
    """
    for number, patience in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, 30.0)):
        if patience <= 0:
            continue
        deadline = time.monotonic() + patience
        while True:
            if leader is not None:
                leader.poll()  # reaps it, so that it is no zombie member
            if not group_members(pgid):
                return
            if time.monotonic() >= deadline:
                break
            signal_group(pgid, number)
            time.sleep(POLL_SECONDS)
    raise LaunchError(f"process group {pgid} survives SIGKILL: {group_members(pgid)}; is a driver call stuck?")


def group_members(pgid: int) -> list[int]:
    """Process ids in a group, zombies left out."""
    found = []
    for pid in psutil.pids():
        try:
            if os.getpgid(pid) == pgid and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
        except (ProcessLookupError, psutil.NoSuchProcess, psutil.AccessDenied, PermissionError):
            continue
    return found


def write_atomically(file: Path, text: str) -> None:
    """Writes a whole file or nothing: a temporary name, flushed to disk, then renamed."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def signal_group(pgid: int, number: signal.Signals) -> None:
    """Sends a signal to every member of a group; one without members is none's loss."""
    try:
        os.killpg(pgid, number)
    except ProcessLookupError:
        pass


def _create_time(pid: int) -> float:
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return float("inf")
