"""Traces of specs by a crew of processes in the training environment (the worker's `trace -`)."""

import json
import os
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from autofit.errors import AutofitError
from autofit.resources import worker_entry

MOST_PROCESSES = 8
"""A trace takes some hundred MB of host memory."""
_TIMEOUT_SECONDS = 1800
"""For one spec."""
_ATTEMPTS = 2
"""Crews that an order is given to, where the first ended without a word on it."""

Answer = tuple[str, Path | AutofitError]


class Tracers:
    """A crew of one interpreter, started when it is needed. One caller at a time is served; others wait."""

    def __init__(self, python: str) -> None:
        """`python`: interpreter of the training environment."""
        self.python = python
        self._crew: _Crew | None = None
        self._turn = threading.Lock()

    def warm_up(self) -> None:
        """Starts the crew, which imports what it needs (seconds) and leaves after a minute without work.

        What is wrong with the interpreter is said when it is asked to trace.
        """
        try:
            with self._turn:
                self._started()
        except AutofitError:
            pass

    def traced(self, orders: Mapping[str, dict[str, Any]]) -> Iterator[Answer]:
        """Traces orders; yields (key, file with the trace document or the error) as they are done. A file goes after its turn.

        Args:
            orders: what `autofit.worker trace` reads, by key.
        """
        with self._turn, tempfile.TemporaryDirectory(prefix="autofit-trace-") as folder:
            attempts = dict.fromkeys(orders, 0)
            while attempts:
                for key, found in self._asked(orders, attempts, Path(folder)):
                    del attempts[key]
                    yield key, found
                    if isinstance(found, Path):
                        found.unlink(missing_ok=True)

    def _asked(self, orders: Mapping[str, dict[str, Any]], attempts: dict[str, int], folder: Path) -> Iterator[Answer]:
        """Asks one crew for everything that `attempts` names; it may end before it has answered all."""
        wanted = list(attempts)
        try:
            crew = self._started()
            files = {str(folder / f"{key}.json"): key for key in wanted}
            for file, key in files.items():
                Path(file).write_text(json.dumps(orders[key]), encoding="utf-8")
        except (AutofitError, OSError) as error:
            said = error if isinstance(error, AutofitError) else AutofitError(f"cannot be traced: {error}")
            yield from ((key, said) for key in wanted)
            return
        for file, found in crew.answers(list(files)):
            yield files[file], found
        for key in [key for key in wanted if key in attempts]:
            attempts[key] += 1
            if attempts[key] >= _ATTEMPTS:
                yield key, AutofitError(f"cannot be traced: {crew.last_words()}")

    def _started(self) -> "_Crew":
        if self._crew is None or not self._crew.alive:
            self._crew = _Crew(self.python)
        return self._crew


class _Crew:
    """The process that forks the others.

    Raises:
        AutofitError: the interpreter cannot be started.
    """

    def __init__(self, python: str) -> None:
        self._said: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - goes with this object
        processes = min(len(os.sched_getaffinity(0)), MOST_PROCESSES)
        command = [python, str(worker_entry()), "trace", "-", str(processes), str(_TIMEOUT_SECONDS)]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                text=True,
                env=dict(os.environ) | {"OMP_NUM_THREADS": "1"},
            )
        except OSError as error:
            raise AutofitError(f"the training environment's interpreter {python} cannot be started: {error}") from error
        self._end = weakref.finalize(self, _end, self._process)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def answers(self, files: list[str]) -> Iterator[Answer]:
        """(spec file, its document or error) as they are done; the rest is missing where the crew has ended meanwhile."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write("".join(f"{file}\n" for file in files))
            self._process.stdin.flush()
        except OSError:
            pass  # it has ended: so do its answers
        left = set(files)
        try:
            while left and (line := self._process.stdout.readline()):
                answer = json.loads(line)
                left.remove(answer["spec"])
                said = answer.get("error")
                yield answer["spec"], AutofitError(f"cannot be traced: {said}") if said is not None else Path(answer["answer"])
        finally:
            if left:  # it has ended, or nobody waits for the rest
                self._end()

    def last_words(self) -> str:
        """How it ended."""
        self._said.seek(0)
        lines = [line.strip() for line in self._said if line.strip()]
        said = lines[-1].removeprefix("autofit.worker: ") if lines else "no word"
        return f"the worker ended with status {self._process.returncode} ({said[:400]})"


def _end(process: "subprocess.Popen[str]") -> None:
    """Kills it, and with it those that it has forked: it has nothing to tidy up, and may be importing for seconds."""
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        try:
            if stream is not None:
                stream.close()
        except OSError:
            pass  # what it was not told any more
