"""Dying with one's parent, and what the kernel's OOM killer has done. Linux; standard library only."""

import ctypes
import os
import signal
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_COUNTERS = (Path("/sys/fs/cgroup/memory.events"), Path("/sys/fs/cgroup/memory/memory.oom_control"), Path("/proc/vmstat"))


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
