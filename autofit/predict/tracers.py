"""Workers of the training environment that trace one spec after the other, a few of them side by side."""

import json
import os
import queue
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from autofit.errors import AutofitError

_WORKER = Path(__file__).resolve().parents[1] / "worker" / "__main__.py"
_TIMEOUT_SECONDS = 1800
"""For one spec."""

Answer = tuple[str, Path | AutofitError]


def traced(orders: Mapping[str, dict[str, Any]], python: str, processes: int) -> Iterator[Answer]:
    """Traces orders; yields (key, file with the trace document or the error) as they are done. A file goes after its turn.

    A worker that dies or takes too long costs the order that it was at: the next one gets a fresh worker.

    Args:
        orders: what `autofit.worker trace` reads, by key.
        python: interpreter of the training environment.
        processes: workers at most.
    """
    with tempfile.TemporaryDirectory(prefix="autofit-trace-") as folder:
        waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
        answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        for key in orders:
            waiting.put(key)
        stop = threading.Event()
        crew = [
            threading.Thread(target=_work, args=(orders, python, Path(folder), waiting, answers, stop), daemon=True)
            for _ in range(min(processes, len(orders)))
        ]
        for member in crew:
            member.start()
        try:
            for _ in orders:
                key, found = answers.get()
                yield key, found
                if isinstance(found, Path):
                    found.unlink(missing_ok=True)
        finally:
            stop.set()
            for member in crew:
                member.join()


def _work(  # noqa: PLR0917 - what a thread is given
    orders: Mapping[str, dict[str, Any]],
    python: str,
    folder: Path,
    waiting: "queue.SimpleQueue[str]",
    answers: "queue.SimpleQueue[Answer]",
    stop: threading.Event,
) -> None:
    worker: _Worker | None = None
    try:
        while not stop.is_set():
            try:
                key = waiting.get_nowait()
            except queue.Empty:
                return
            spec = folder / f"{key}.json"
            found: Path | AutofitError
            try:
                spec.write_text(json.dumps(orders[key]), encoding="utf-8")
                worker = worker or _Worker(python, folder)
                found = worker.trace(spec)
            except AutofitError as error:
                found = error
            except OSError as error:
                found = AutofitError(f"cannot be traced: {error}")
            if worker is not None and not worker.alive:
                worker.close()
                worker = None
            answers.put((key, found))
    finally:
        if worker is not None:
            worker.close()


class _Worker:
    """One process of `autofit.worker trace -`.

    Raises:
        AutofitError: the interpreter cannot be started.
    """

    def __init__(self, python: str, folder: Path) -> None:
        self._said: IO[str]
        self._said = tempfile.TemporaryFile("w+", dir=folder, encoding="utf-8", errors="replace")  # noqa: SIM115 - `close` closes it
        try:
            self._process = subprocess.Popen(
                [python, str(_WORKER), "trace", "-"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                text=True,
                env=dict(os.environ) | {"OMP_NUM_THREADS": "1"},
            )
        except OSError as error:
            self._said.close()
            raise AutofitError(f"the training environment's interpreter {python} cannot be started: {error}") from error

    @property
    def alive(self) -> bool:
        """Whether it can be asked again."""
        return self._process.poll() is None

    def trace(self, spec: Path) -> Path:
        """The file with the trace document.

        Raises:
            AutofitError: it cannot be traced, or the worker died or took too long over it.
        """
        late = threading.Timer(_TIMEOUT_SECONDS, self._process.kill)
        late.start()
        try:
            assert self._process.stdin is not None and self._process.stdout is not None
            self._process.stdin.write(f"{spec}\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:  # it ended before it read
            line = ""
        finally:
            timed_out = late.finished.is_set()
            late.cancel()
        if not line:
            self._process.wait()
            if timed_out:
                raise AutofitError(f"tracing took more than {_TIMEOUT_SECONDS} s; trace a smaller model")
            raise AutofitError(f"cannot be traced: {self._last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise AutofitError(f"cannot be traced: {answer['error']}")
        return Path(answer["answer"])

    def _last_words(self) -> str:
        self._said.seek(0)
        lines = [line.strip() for line in self._said if line.strip()]
        said = lines[-1].removeprefix("autofit.worker: ") if lines else "no word"
        return f"the worker ended with status {self._process.returncode} ({said[:400]})"

    def close(self) -> None:
        """Ends the process: it leaves at the end of its input, or is killed if it is at work."""
        if self._process.stdin is not None:
            try:
                self._process.stdin.close()
            except OSError:
                pass
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._said.close()
