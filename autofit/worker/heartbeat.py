"""`heartbeat.rank<N>.json`: tells the driver a rank that hangs from one that is slow.

Content: `pid`, `rank`, `phase`, `step` (optimizer steps begun), `progress` (a counter that rises with every sign of life)
and `time` (`time.time()` at the last write). A rank hangs when `progress` stays the same for long; how long is long depends on
`phase`: `start` (imports) and `load` (weights) bring no signs of life until they end.
"""

import os
import threading
import time
from pathlib import Path

from autofit.worker.files import write_json

INTERVAL_SECONDS = 0.5


def heartbeat_path(folder: Path, rank: int) -> Path:
    """Where a rank's heartbeat lies."""
    return folder / f"heartbeat.rank{rank}.json"


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
