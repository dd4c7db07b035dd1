"""The user's real run: a launcher in a process group of its own, its output passed on as it comes, its last words kept."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import IO, Any

import psutil

from autofit.errors import LaunchError
from autofit.launch.processes import end_group

KEPT_BYTES = 256 * 1024
"""Of each stream's end. The traceback of every rank, and what torchrun says after them, fit."""
_POLL_SECONDS = 0.2
_GRACE_SECONDS = 30.0


@dataclass(frozen=True)
class Ended:
    """How a launcher ended."""

    status: int
    """Its exit status; 128 + the signal's number where a signal ended it, as a shell says."""
    last_words: str
    """The end of its stderr and of its stdout."""
    interrupted: bool
    """Whether SIGINT or SIGTERM was passed on to it."""


def run_in_foreground(argv: Sequence[str], env: Mapping[str, str]) -> Ended:
    """Runs a launcher to its end in the current folder. SIGINT and SIGTERM that arrive meanwhile go to its whole group.

    Launchers put ranks into sessions of their own (torchrun), so what is left of its descendants is ended too.

    Raises:
        LaunchError: it cannot be started, or its processes cannot be ended.
    """
    try:
        process = subprocess.Popen(
            list(argv),
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise LaunchError(f"cannot start {argv[0]}: {error.strerror or error}") from error
    tails = [_Tail(process.stdout, sys.stdout), _Tail(process.stderr, sys.stderr)]
    family: set[psutil.Process] = set()
    with _passing_on_signals(process.pid) as signals:
        while process.poll() is None:
            family |= _descendants(process.pid)
            time.sleep(_POLL_SECONDS)
        end_group(process.pid, _GRACE_SECONDS, process)
        _end(family)
    for tail in tails:
        tail.join()
    status = process.returncode
    return Ended(status if status >= 0 else 128 - status, tails[1].text() + "\n" + tails[0].text(), bool(signals))


@contextmanager
def _passing_on_signals(pgid: int) -> Iterator[list[int]]:
    """Sends SIGINT and SIGTERM on to a group; yields those that came."""
    came: list[int] = []

    def forward(number: int, _: FrameType | None) -> None:
        came.append(number)
        try:
            os.killpg(pgid, number)
        except ProcessLookupError:
            pass

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Tail:
    """Copies one stream to ours, byte for byte as it comes, and keeps its end."""

    def __init__(self, source: IO[bytes] | None, target: Any) -> None:
        assert source is not None
        self._source = source
        self._target = target.buffer
        self._kept = bytearray()
        self._thread = threading.Thread(target=self._copy, daemon=True)
        self._thread.start()

    def _copy(self) -> None:
        while chunk := os.read(self._source.fileno(), 65_536):
            self._kept += chunk
            del self._kept[:-KEPT_BYTES]
            try:
                self._target.write(chunk)
                self._target.flush()
            except OSError:  # whoever read our output has gone; the run goes on
                continue

    def join(self) -> None:
        """Waits for the stream's end, not longer than a descendant in another session may hold it open."""
        self._thread.join(timeout=_GRACE_SECONDS)

    def text(self) -> str:
        return self._kept.decode(errors="replace")


def _descendants(pid: int) -> set[psutil.Process]:
    try:
        return set(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return set()


def _end(family: set[psutil.Process]) -> None:
    """Ends what is left; psutil compares start times, so a reused process id is nobody of ours."""
    left = [process for process in family if process.is_running()]
    for process in left:
        try:
            process.terminate()
        except psutil.NoSuchProcess:
            pass
    _, left = psutil.wait_procs(left, timeout=_GRACE_SECONDS)
    for process in left:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            pass
