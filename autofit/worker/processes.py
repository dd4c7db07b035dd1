"""Forking, dying with one's parent, and what the kernel's OOM killer has done. Linux; standard library only."""

import ctypes
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

_PR_SET_PDEATHSIG = 1
_COUNTERS = (Path("/sys/fs/cgroup/memory.events"), Path("/sys/fs/cgroup/memory/memory.oom_control"), Path("/proc/vmstat"))


class Process(Protocol):
    """What the supervisor asks of a rank's process; `subprocess.Popen` has it too."""

    pid: int

    @property
    def returncode(self) -> int | None:
        """Exit status (negative: the signal), as far as `poll` has seen it."""

    def poll(self) -> int | None:
        """Exit status, or None while it runs."""

    def send_signal(self, number: int, /) -> None:
        """Sends a signal, unless the process has ended."""


class Forked:
    """A child with a copy of this process's memory. It runs `life` and exits with the status that this returns.

    Only for processes of a single thread: of the others the child has nothing but the locks they hold.
    """

    def __init__(self, life: Callable[[], int]) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            _live(life)

    def poll(self) -> int | None:
        """See `Process`."""
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send_signal(self, number: int, /) -> None:
        """See `Process`."""
        if self.poll() is None:
            os.kill(self.pid, number)


def _live(life: Callable[[], int]) -> None:
    """A forked child from its first to its last instruction: nothing of its parent's program runs in it."""
    status = 1
    try:
        status = life()
    except BaseException:  # noqa: BLE001 - the process's own boundary
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)


def rest(pids: Sequence[int], seconds: float) -> None:
    """Waits until one of these children has ended, at most so long."""
    ends: list[int] = []
    try:
        ended = select.poll()
        for pid in pids:
            ends.append(os.pidfd_open(pid))
            ended.register(ends[-1], select.POLLIN)
        ended.poll(1000 * seconds)
    except (OSError, AttributeError):  # an older kernel, or another system
        time.sleep(seconds)
    finally:
        for end in ends:
            os.close(end)


def die_with_parent(expected_parent: int | None) -> None:
    """Has the kernel SIGKILL this process when the *thread* that started it ends.

    So whoever starts it must do so from a thread that lives as long. `expected_parent` closes the gap before the call: when
    the parent is already another one, this process ends at once.
    """
    try:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    except (OSError, AttributeError):
        pass  # not Linux: the supervisor also looks at its parent while it waits
    if expected_parent is not None and os.getppid() != expected_parent:
        os._exit(1)


def kernel_oom_kills() -> int:
    """Processes that the kernel's OOM killer has ended so far, here (cgroup) or on the machine; a difference is what tells."""
    return sum(_oom_kill_line(path) for path in _COUNTERS)


def _oom_kill_line(path: Path) -> int:
    try:
        for line in path.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    except (OSError, ValueError):
        pass
    return 0
