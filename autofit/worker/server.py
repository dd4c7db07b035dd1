"""Verb `serve SPEC.json`: imports everything once, then runs trial after trial, each in processes forked from here.

Of a small trial's wall time most is the import of torch, transformers and DeepSpeed, once a rank. A fork has all of that at
once and is otherwise a process that has just started: no model, no process group, no device, no thread, a heap as it is after
the imports. So nothing has to be given back between trials, and nothing can be left behind: whatever a trial changed (LLaMA-
Factory's and DeepSpeed's global state, hooks, a fragmented heap, a CUDA context) ends with its processes, as it does without
a server, after an OOM too. And trials may differ in everything but `_ALIKE`, not only in what keeps the model. Keeping a
built model instead would save the half second that building a small one takes (a large one's files are in the page cache),
and give all of that up; so it is not done.

What must hold for a fork to be like a new process is looked at before every trial (`_Resources`): this process has one
thread, no CUDA driver, and no more memory and open files than before its first trial. What is read when a process starts
(malloc's and OpenMP's settings, the allocator's configuration) is in its environment from the start, for it executes itself
anew with what its ranks will have; the launcher gives other environments other servers. A fork maps the pages of files that
its parent had (`pages`), so that the resident set means the same in both. CUDA must not have been started before a fork:
`preload` avoids it, and where it happened all the same every order is refused. No GPU has tried this yet.

Protocol: a line on standard input is a spec file's path; the answers are JSON objects, a line each: `{"pid": N}` (the trial
runs, as the process group N), then `{"exit": status}`; or `{"refused": why}`, after which the server ends. It ends with its
standard input or its driver, and takes a running trial with it.
"""

import gc
import json
import os
import select
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autofit.worker import faults
from autofit.worker.order import Order, OrderError, read_order
from autofit.worker.pages import Range, file_pages, map_again
from autofit.worker.processes import Forked, Process, die_with_parent
from autofit.worker.supervisor import DRIVER_PID, StartRank, rank_environment, supervise

_STARTED = "AUTOFIT_SERVER"
"""In the environment of a server that has what its ranks will have."""
_HARMLESS_THREADS = frozenset({"jemalloc_bg_thd"})
"""Threads whose library is made to be forked: jemalloc (pyarrow's allocator) starts its own again where it needs one."""
_SLACK_BYTES = 8 * 2**20
_ALIKE = ("engine", "device", "num_ranks")
"""What all trials of a server have in common; the launcher adds their environment."""
Life = Callable[[Order], int]
"""What a rank does, in a process of its own."""


def serve(order: Order, prepare: Callable[[Order], None] | None = None, life: Life | None = None) -> int:
    """Serves trials that have `order`'s engine, device and number of ranks, until standard input ends.

    `prepare` and `life` (tests only) replace the imports and what a rank does.
    """
    if _STARTED not in os.environ:
        _execute_anew(order)
    driver = os.environ.get(DRIVER_PID)
    if driver:
        die_with_parent(int(driver))
    replies = _take_stdout()
    from autofit.worker.preload import preload
    from autofit.worker.rank import run_rank

    (prepare or preload)(order)
    return _answer(order, replies, life or run_rank)


def _execute_anew(order: Order) -> None:
    environment = {**os.environ, **rank_environment(order), _STARTED: "1"}
    entry = str(Path(__file__).with_name("__main__.py"))
    os.execve(sys.executable, [sys.executable, entry, "serve", str(order.spec_path)], environment)  # noqa: S606 - itself


def _take_stdout() -> int:
    """A descriptor for the answers alone; what libraries print goes to standard error."""
    replies = os.dup(1)
    os.dup2(2, 1)
    return replies


def _answer(first: Order, replies: int, life: Life) -> int:
    """The loop, once everything is imported. `replies` is the descriptor for the answers."""
    gc.collect()
    gc.freeze()  # or each fork looks through what the imports made, and copies the pages that it touches for that
    requests = _Requests()
    pages = file_pages() if first.device == "cpu" else []
    at_start, server = _Resources.now(), os.getpid()
    os.environ.pop(_STARTED, None)
    while (line := requests.next()) is not None:
        try:
            order = read_order(Path(line))
            doubt = _unlike(order, first) or _Resources.now().doubt(at_start)
        except OrderError as error:
            doubt = str(error)
        if doubt:
            _say(replies, refused=doubt)
            return 1
        trial = Forked(lambda order=order: _trial(order, server, replies, _as_if_started(pages, life)))  # type: ignore[misc]
        try:
            os.setpgid(trial.pid, trial.pid)
        except OSError:
            pass  # it did so itself, or has ended
        _say(replies, pid=trial.pid)
        faults.strike_server()
        if not requests.wait_for_end_of(trial):
            os.killpg(trial.pid, signal.SIGKILL)
            return 1
        _say(replies, exit=trial.poll())
    return 0


def _say(replies: int, **content: Any) -> None:
    os.write(replies, json.dumps(content).encode() + b"\n")


class _Requests:
    """Standard input, line by line, watched together with a running trial."""

    def __init__(self) -> None:
        self._read = b""

    def next(self) -> str | None:
        """The next line; None when the driver has closed the pipe."""
        while b"\n" not in self._read:
            if not (more := os.read(0, 4096)):
                return None
            self._read += more
        line, _, self._read = self._read.partition(b"\n")
        return line.decode()

    def wait_for_end_of(self, trial: Forked) -> bool:
        """Returns when the trial has ended; False when the driver has gone before."""
        ended = os.pidfd_open(trial.pid)
        try:
            while trial.poll() is None:
                ready, _, _ = select.select([0, ended], [], [])
                if 0 in ready:
                    if not (more := os.read(0, 4096)):
                        return trial.poll() is not None
                    self._read += more
        finally:
            os.close(ended)
        return True


def _trial(order: Order, server: int, replies: int, life: Life) -> int:
    """The supervisor of one trial: what the launcher otherwise starts with `run`.

    `server` is the process that it dies with. It comes from there: whoever is the parent by now may be another already.
    """
    try:
        os.setpgid(0, 0)
    except OSError:
        pass  # the server was quicker
    os.close(replies)
    os.chdir(order.folder)
    for number, name in ((1, "stdout.log"), (2, "stderr.log")):
        _become(number, os.open(order.folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644))
    _become(0, os.open(os.devnull, os.O_RDONLY))
    os.environ[DRIVER_PID] = str(server)
    return supervise(order, _forked(order, life))


def _as_if_started(pages: list[Range], life: Life) -> Life:
    """`life` in a process that has mapped what its imports would have mapped."""

    def live(order: Order) -> int:
        map_again(pages)
        return life(order)

    return live


def _become(number: int, descriptor: int) -> None:
    os.dup2(descriptor, number)
    os.close(descriptor)


def _forked(order: Order, life: Life) -> StartRank:
    """Ranks that are forks of their supervisor."""

    def start(_rank: int, environment: Mapping[str, str]) -> Process:
        def live() -> int:
            os.environ.update(environment)
            return life(order)

        return Forked(live)

    return start


def _unlike(order: Order, first: Order) -> str | None:
    """Why this server, started for `first`, cannot run `order`."""
    for name in _ALIKE:
        mine, its = getattr(first, name), getattr(order, name)
        if mine != its:
            return f"this server was started for {name} {mine}, not {its}"
    return None


@dataclass(frozen=True)
class _Resources:
    """What a server holds."""

    threads: tuple[str, ...]
    files: int
    private_bytes: int
    cuda: bool

    @classmethod
    def now(cls) -> "_Resources":
        names = [_read(thread / "comm").strip() for thread in Path("/proc/self/task").iterdir()]
        files = [_target(link) for link in Path("/proc/self/fd").iterdir()]
        private = next(
            int(line.split()[1]) for line in _read(Path("/proc/self/status")).splitlines() if line.startswith("RssAnon")
        )
        return cls(
            threads=tuple(sorted(name for name in names if name not in _HARMLESS_THREADS)),
            files=len(files),
            private_bytes=private * 1024,
            cuda=any("nvidia-uvm" in target for target in files),
        )

    def doubt(self, at_start: "_Resources") -> str | None:
        """Why a fork of this process might not be what a new process is; None if it is."""
        if len(self.threads) > 1:
            return f"threads run beside the main one: {', '.join(self.threads)}"
        if self.cuda:
            return "the imports have started the CUDA driver, which does not survive a fork"
        if self.files > at_start.files:
            return f"{self.files - at_start.files} file(s) have stayed open since the start"
        grown = self.private_bytes - at_start.private_bytes
        if grown > _SLACK_BYTES:
            return f"memory has grown by {grown} bytes since the start"
        return None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""  # a thread that has just ended


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""
