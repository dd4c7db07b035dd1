"""Trials forked from a process that has imported everything (the worker's `serve`), behind the interface of a process group.

A server is one more process between launcher and trial; spec, heartbeat and result stay the files they are, a trial stays one
process group with a `process.json`, and everything dies with the driver. What a server cannot promise to run as a new process
would is a `Doubt`: the launcher then ends the server and runs the trial in processes of its own.

Which trials share a server: those of one interpreter, engine, device, number of ranks and environment. All that they differ in
else (ZeRO stage, method, batch) comes after the fork.
"""

import json
import os
import select
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from signal import Signals
from types import TracebackType
from typing import Any, Self

from autofit.errors import LaunchError
from autofit.launch.processes import end_group, note_group, signal_group

LOG_FILE = "worker.log"
"""What a server says while it imports, beside the run folders."""
MAX_DOUBTS = 3
"""So many servers in a row that had to be ended, and no further one is started."""


class Doubt(Exception):  # noqa: N818 - what it is
    """A trial did not run to its end in a way that stands for a run in processes of its own; the reason."""


class Server:
    """A running server and the trial that it runs, if any."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], folder: Path, term_grace_seconds: float) -> None:
        """Starts it; it imports while the first trial is already ordered.

        Raises:
            LaunchError: the program cannot be started.
        """
        self.grace = term_grace_seconds
        self._read = b""
        try:
            with (folder / LOG_FILE).open("ab") as log:
                self._process = subprocess.Popen(
                    list(argv),
                    env=dict(env),
                    cwd=folder,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    bufsize=0,
                    start_new_session=True,
                )
        except OSError as error:
            raise LaunchError(f"cannot start {argv[0]}: {error.strerror or error}") from error
        assert self._process.stdin is not None and self._process.stdout is not None
        self._orders, self._answers = self._process.stdin, self._process.stdout
        os.set_blocking(self._answers.fileno(), False)

    def order(self, spec_file: Path) -> None:
        """Orders a trial; call it when the one before has ended.

        Raises:
            Doubt: the server has ended.
        """
        try:
            self._orders.write(f"{spec_file}\n".encode())
        except OSError as error:
            raise Doubt("the process that trials are forked from has ended") from error

    def answers(self) -> list[dict[str, Any]]:
        """What it has said since the last call.

        Raises:
            Doubt: it has ended, or says what nobody understands.
        """
        ended = self._process.poll() is not None  # before reading: what it said last is read all the same
        while more := self._answers.read(65536):
            self._read += more
        *lines, self._read = self._read.split(b"\n")
        try:
            found = [dict(json.loads(line)) for line in lines]
        except (ValueError, TypeError) as error:
            raise Doubt(f"the process that trials are forked from says {lines[0][:80]!r}") from error
        if ended and not any("exit" in answer or "refused" in answer for answer in found):
            raise Doubt("the process that trials are forked from has ended")
        return found

    def rest(self, seconds: float) -> None:
        """Waits until there is something to read, or the end of it, at most so long."""
        heard = select.poll()
        heard.register(self._answers, select.POLLIN)
        heard.poll(1000 * seconds)

    def stop(self) -> None:
        """Ends it; nothing of it is left."""
        self._orders.close()
        self._answers.close()
        end_group(self._process.pid, self.grace, self._process)


class WarmTrial:
    """One trial of a server, as `processes.ProcessGroup` is one of its own."""

    def __init__(self, server: Server, spec_file: Path) -> None:
        self._server, self._run_dir = server, spec_file.parent
        self._pgid: int | None = None
        self._status: int | None = None
        server.order(spec_file)

    def poll(self) -> int | None:
        """Exit status of the supervisor, or None while it runs or the server still imports.

        Raises:
            Doubt: the server refused the trial, or has ended.
        """
        if self._status is None:
            for answer in self._server.answers():
                if "refused" in answer:
                    raise Doubt(str(answer["refused"]))
                if "pid" in answer:
                    self._pgid = int(answer["pid"])
                    note_group(self._run_dir, self._pgid)
                self._status = answer.get("exit", self._status)
        return self._status

    def rest(self, seconds: float) -> None:
        """Waits until the server says something or has ended, at most so long."""
        self._server.rest(seconds)

    def signal(self, number: Signals) -> None:
        """Sends a signal to every process of the trial."""
        if self._pgid is not None:
            signal_group(self._pgid, number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._pgid is None:
            self._server.stop()  # it has not forked yet, or has not said so: what it has forked dies with it
        else:
            end_group(self._pgid, self._server.grace)


class WarmWorkers:
    """At most one server at a time, started when a trial needs another one than the last."""

    def __init__(self, term_grace_seconds: float) -> None:
        self._grace = term_grace_seconds
        self._server: Server | None = None
        self._key: object = None
        self._doubts = 0

    @property
    def trusted(self) -> bool:
        """Whether trials should still be run so."""
        return self._doubts < MAX_DOUBTS

    def trial(self, argv: Sequence[str], env: Mapping[str, str], alike: object, spec_file: Path) -> WarmTrial:
        """Orders a trial of the server for trials that are `alike` and have this environment.

        Raises:
            Doubt: the server has ended meanwhile.
            LaunchError: it cannot be started.
        """
        return WarmTrial(self.serve(argv, env, alike, spec_file.parent.parent), spec_file)

    def serve(self, argv: Sequence[str], env: Mapping[str, str], alike: object, folder: Path) -> Server:
        """The server for such trials, started if it is not there yet.

        Raises:
            LaunchError: it cannot be started.
        """
        key = (alike, sorted(env.items()))
        if self._server is None or self._key != key:
            self.close()
            self._server, self._key = Server(argv, env, folder, self._grace), key
        return self._server

    def keep(self) -> None:
        """The last trial went well."""
        self._doubts = 0

    def drop(self) -> None:
        """The last trial leaves a doubt: its server ends."""
        self._doubts += 1
        self.close()

    def distrust(self) -> None:
        """No further trial is run so."""
        self._doubts = MAX_DOUBTS
        self.close()

    def close(self) -> None:
        """Ends the server, if one runs."""
        if self._server is not None:
            self._server.stop()
            self._server = None
