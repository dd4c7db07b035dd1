"""`heartbeat.rank<N>.json`: tells the driver a rank that hangs from one that is slow.

Content: `pid`, `rank`, `phase`, `step` (optimizer steps begun), `progress` (a counter that rises with every sign of life)
and `time` (`time.time()` at the last write). A rank hangs when `progress` stays the same for long; how long is long depends on
`phase`: `start` (imports) and `load` (weights) bring no signs of life until they end.
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autofit.worker.files import write_json

INTERVAL_SECONDS = 0.5


def heartbeat_path(folder: Path, rank: int) -> Path:
    """Where a rank's heartbeat lies."""
    return folder / f"heartbeat.rank{rank}.json"


WORK_SECONDS = 5.0
WORK_SHARE = 0.1
"""Of WORK_SECONDS, the processor time that counts as a sign of life."""


class Heartbeat:
    """One rank's signs of life; cheap enough for every micro-batch."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.phase = "start"
        self.step = 0
        self._path = heartbeat_path(folder, rank)
        self._rank = rank
        self._progress = 0
        self._written = 0
        self._written_at = float("-inf")
        self._lock = threading.Lock()

    def beat(self, phase: str | None = None, step: int | None = None) -> None:
        """Notes a sign of life; writes the file when INTERVAL_SECONDS have passed, or into or out of a long phase."""
        moved = (
            phase is not None and phase != self.phase and not {phase, self.phase} <= {"forward", "backward", "optimizer_step"}
        )
        self.phase = phase or self.phase
        self.step = self.step if step is None else step
        self._progress += 1
        now = time.monotonic()
        if moved or now - self._written_at >= INTERVAL_SECONDS:
            self._written_at = now
            self.flush()

    def keep_flushing(self) -> None:
        """Has a thread write what the throttle holds back, so that the last sign of life of a rank that stops is seen.

        It only writes: a rank that hangs makes no progress with it. Without it the rank that stopped first can look like the
        one that got furthest, by the half second of signs that none has written yet.
        """

        def flush_for_ever() -> None:
            while True:
                time.sleep(INTERVAL_SECONDS)
                self.flush()

        threading.Thread(target=flush_for_ever, name="heartbeat", daemon=True).start()

    @contextmanager
    def working(self, every_seconds: float = WORK_SECONDS) -> Iterator[None]:
        """While this process or a child of it computes, that is a sign of life: tokenising a large dataset takes an hour and

        tells nothing meanwhile. One that waits for what never comes uses no processor time, and still hangs.
        """
        over = threading.Event()

        def watch() -> None:
            before = cpu_seconds()
            while not over.wait(every_seconds):
                now = cpu_seconds()
                # a child that has ended takes its time with it: the sum may fall, and is compared afresh
                if now - before >= WORK_SHARE * every_seconds:
                    self.beat()
                before = now

        watcher = threading.Thread(target=watch, name="working", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()

    def flush(self) -> None:
        """Writes signs of life that have not been written."""
        with self._lock:
            if self._written != self._progress:
                self._written = self._progress
                self._write()

    def _write(self) -> None:
        content = {
            "pid": os.getpid(),
            "rank": self._rank,
            "phase": self.phase,
            "step": self.step,
            "progress": self._progress,
            "time": time.time(),
        }
        try:
            write_json(self._path, content, durable=False)
        except OSError:
            pass  # a full disk must not end the training: the result says what happened, the heartbeat only that it lives


def cpu_seconds() -> float:
    """Processor time of this process and of all that it has started and that still runs (pools that tokenise)."""
    found: dict[int, tuple[int, int]] = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            # behind the name, which may hold anything, come state and parent; time in user and system are the 12th and 13th
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            found[int(process.name)] = (int(fields[1]), int(fields[11]) + int(fields[12]))
        except (OSError, ValueError, IndexError):
            continue  # it has ended meanwhile
    ours = {os.getpid()}
    while more := {process for process, (parent, _) in found.items() if parent in ours} - ours:
        ours |= more
    return sum(found[process][1] for process in ours if process in found) / os.sysconf("SC_CLK_TCK")
