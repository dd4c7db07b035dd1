"""`trace - PROCESSES SECONDS`: specs one after the other, by processes forked from one that has imported everything.

The name of a spec file comes on each line of standard input; each is answered with a line of JSON as soon as it is done,
`{"spec": NAME, "answer": FILE}` (NAME with `.trace.json.gz` behind it) or `{"spec": NAME, "error": "..."}`. What cannot be
traced, takes longer than SECONDS, or kills its process costs only itself. A process keeps what it has worked out for the specs
that come after (`trace_memo`). The crew ends with its standard input, or after a minute without work.
"""

import gc
import json
import os
import selectors
import tempfile
import time
from collections import deque
from collections.abc import Callable
from typing import IO

from autofit.worker.processes import Forked, die_with_parent

IDLE_SECONDS = 60.0
"""Without work before the crew ends: what it has imported is some hundred MB."""

Trace = Callable[[str], str]
"""Traces the spec of a file; returns the name of the file with the document."""


def serve(processes: int, seconds: float, prepare: Callable[[], None], trace: Trace) -> int:
    """Answers until standard input ends or nothing is asked any more.

    Args:
        processes: at most.
        seconds: that one spec may take.
        prepare: imports what `trace` needs, and starts no thread.
    """
    replies = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints must not stand between the answers
    prepare()
    gc.collect()
    gc.freeze()
    crew = _Crew(processes, seconds, trace, replies)
    try:
        crew.work()
    finally:
        crew.end()
    return 0


class _Member:
    """A forked process, idle or at work on one spec."""

    def __init__(self, trace: Trace) -> None:
        orders, self.orders = os.pipe()
        self.answers, answers = os.pipe()
        self.name: str | None = None
        self.began = 0.0
        self.said: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - `end` closes it
        parent = os.getpid()

        def life() -> int:
            die_with_parent(parent)
            for descriptor in (self.orders, self.answers):
                os.close(descriptor)
            os.dup2(self.said.fileno(), 2)
            os.dup2(2, 1)
            return _live(orders, answers, trace)

        self._process = Forked(life)
        os.close(orders)
        os.close(answers)

    def give(self, name: str) -> None:
        self.name, self.began = name, time.monotonic()
        try:
            os.write(self.orders, f"{name}\n".encode())
        except BrokenPipeError:
            pass  # it has died; its answers' end says so

    def kill(self) -> None:
        self._process.send_signal(9)

    def last_words(self) -> str:
        """How it ended; to be asked once it has."""
        while self._process.poll() is None:
            time.sleep(0.005)
        self.said.seek(0)
        lines = [line.strip() for line in self.said if line.strip()]
        return f"the worker ended with status {self._process.returncode} ({lines[-1][:400] if lines else 'no word'})"

    def end(self) -> None:
        """Nothing of it is left."""
        for descriptor in (self.orders, self.answers):
            os.close(descriptor)
        self.kill()
        while self._process.poll() is None:
            time.sleep(0.005)
        self.said.close()


def _live(orders: int, answers: int, trace: Trace) -> int:
    """A member's life: reads names, answers each."""
    with os.fdopen(orders, encoding="utf-8") as names:
        for line in names:
            name = line.rstrip("\n")
            answer = {"spec": name}
            gc.collect()
            gc.freeze()  # what the memo holds stays: looking through it for every spec would take a second each
            try:
                answer["answer"] = trace(name)
            except Exception as error:  # noqa: BLE001 - the others must still be answered; TraceError is the usual one
                kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
                answer["error"] = kind + (" ".join(str(error).split())[:600] or "no reason given")
            os.write(answers, json.dumps(answer).encode() + b"\n")
    return 0


class _Crew:
    def __init__(self, processes: int, seconds: float, trace: Trace, replies: int) -> None:
        self._processes, self._seconds, self._trace, self._replies = processes, seconds, trace, replies
        self._members: list[_Member] = []
        self._waiting: deque[str] = deque()
        self._selector = selectors.DefaultSelector()
        self._selector.register(0, selectors.EVENT_READ)
        self._read = b""

    def work(self) -> None:
        """Until standard input ends, or nothing was asked for a while."""
        while True:
            ready = self._selector.select(self._patience())
            if not ready and not self._busy():
                return
            for key, _ in ready:
                if key.fd == 0:
                    if not self._take_orders():
                        return
                else:
                    self._take_answer(key.data)
            self._kill_the_late()
            self._hand_out()

    def end(self) -> None:
        for member in self._members:
            member.end()
        self._selector.close()

    def _busy(self) -> list[_Member]:
        return [member for member in self._members if member.name is not None]

    def _patience(self) -> float:
        busy = self._busy()
        if not busy:
            return IDLE_SECONDS
        return max(0.0, min(member.began for member in busy) + self._seconds - time.monotonic())

    def _take_orders(self) -> bool:
        more = os.read(0, 65536)
        self._read += more
        *lines, self._read = self._read.split(b"\n")
        self._waiting += [line.decode() for line in lines if line]
        return bool(more)

    def _hand_out(self) -> None:
        while self._waiting:
            idle = next((member for member in self._members if member.name is None), None)
            if idle is None:
                if len(self._members) >= self._processes:
                    return
                idle = _Member(self._trace)
                self._members.append(idle)
                self._selector.register(idle.answers, selectors.EVENT_READ, idle)
            idle.give(self._waiting.popleft())

    def _take_answer(self, member: _Member) -> None:
        """Passes an answer on, which is written in one piece; or tells how the member died."""
        answer = os.read(member.answers, 65536)
        if answer:
            member.name = None
            os.write(self._replies, answer)
            return
        late = time.monotonic() - member.began > self._seconds
        why = f"tracing took more than {self._seconds:.0f} s; trace a smaller model" if late else member.last_words()
        self._selector.unregister(member.answers)
        self._members.remove(member)
        member.end()
        if member.name is not None:
            os.write(self._replies, json.dumps({"spec": member.name, "error": why}).encode() + b"\n")

    def _kill_the_late(self) -> None:
        for member in self._busy():
            if time.monotonic() - member.began > self._seconds:
                member.kill()
