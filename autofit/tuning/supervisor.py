"""Runs the searches of a database's queue, one on each device set, as child processes: `autofit search`, as a user starts it.

What makes it survive a kill of any process at any moment:

- There is one supervisor a database: it holds a file lock, which the kernel drops with its holder.
- A search that runs holds a lock of its own. The supervisor takes it before it starts the child and the child inherits it, so
  that it is held as long as the child lives, whoever started it. A supervisor that comes later finds it held and only watches.
- A search whose lock is free does not run. Whether it is done is read from its study; if it is not, it goes on (`--resume`).
  The driver's own lock and the trials' rows see to it that no trial is lost or run twice.

Files lie in `<database>-queue/`: the locks, and the output of each search.
"""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import psutil
from filelock import FileLock, Timeout

from autofit.config.job import Job, JobRequest
from autofit.errors import AutofitError, StoreError
from autofit.launch import gpus
from autofit.launch.local import log_tail
from autofit.store.queue import Queue

POLL_SECONDS = 0.3
TERM_SECONDS = 60.0
"""Between asking a search to stop and ending it: it has a trial to end and a row to write."""
MAX_DEATHS = 8
"""Times in a row that a search may be killed without finishing a trial before it counts as failed."""
_INTERRUPTED = 130
_MARK = "AUTOFIT_JOB"


@dataclass(frozen=True)
class DeviceSet:
    """Devices that one search may have at a time."""

    name: str
    visible: str | None = None
    """`CUDA_VISIBLE_DEVICES` of its searches; None: as it is."""


ALL_GPUS = DeviceSet("gpus")
CPU = DeviceSet("cpu", "")
NONE = DeviceSet("none", "")
"""Searches that only predict."""


def gpu_sets(text: str) -> tuple[DeviceSet, ...]:
    """`0,1;2,3`: two sets of two GPUs each."""
    return tuple(DeviceSet(f"gpus {part.strip()}", part.strip()) for part in text.split(";") if part.strip())


@dataclass
class Supervisor:
    """The supervisor of one database."""

    url: str
    runs: Path
    """Folder for the trials' files."""
    gpu_sets: tuple[DeviceSet, ...] = (ALL_GPUS,)
    said: Callable[[str], None] = lambda line: None
    _children: dict[int, "subprocess.Popen[bytes]"] = field(default_factory=dict, init=False)
    _told: dict[int, float] = field(default_factory=dict, init=False)
    """Job -> when it was first told to stop."""
    _deaths: dict[int, tuple[int, int]] = field(default_factory=dict, init=False)
    """Job -> times it was killed, and the finished trials at the last."""
    _stopping: bool = field(default=False, init=False)

    def run(self, work_left: Callable[[], bool] = lambda: True) -> None:
        """Supervises until it is told to stop (SIGTERM, Ctrl-C), or nothing is to do and `work_left` says no.

        Raises:
            AutofitError: another supervisor has this database.
        """
        with Queue.open(self.url) as queue:
            folder = queue_folder(queue.file)
            folder.mkdir(exist_ok=True)
            with _only_one(folder, queue.file):
                self._listen()
                self.said(f"supervising {queue.file}")
                while not self._stopping:
                    try:
                        busy = self.tick(queue, folder)
                    except StoreError as error:  # locked for long, or the disk is full: that passes
                        self.said(str(error))
                        busy = True
                    if not busy and not work_left():
                        return
                    time.sleep(POLL_SECONDS)
                self._hand_over(queue)

    def tick(self, queue: Queue, folder: Path) -> bool:
        """Looks once at everything; whether anything waits or runs."""
        taken: set[str] = set()
        for job in queue.jobs("RUNNING"):
            if self._runs(job, folder):
                taken.add(job.device_set or "")
                if job.wish != "RUN":
                    self._stop(job, queue.file)
            else:
                self._settle(job, queue, folder)
        waiting = queue.jobs("QUEUED")
        for job in waiting:
            free = next((one for one in self._sets(job.request) if one.name not in taken), None)
            if free is not None and self._start(job, free, queue, folder):
                taken.add(free.name)
        return bool(taken or waiting)

    def _sets(self, request: JobRequest) -> tuple[DeviceSet, ...]:
        if request.device == "cpu":
            return (CPU,)
        if request.device == "none" or (request.device == "auto" and not gpus.cuda_devices()):
            return (NONE,)
        return self.gpu_sets

    def _start(self, job: Job, devices: DeviceSet, queue: Queue, folder: Path) -> bool:
        """Starts a search that holds its lock; False: an earlier one of it still does."""
        lock = _lock(folder, job.id)
        if lock is None:
            return False
        try:
            resume = queue.study_status(job.study) is not None
            queue.started(job, devices.name)
            argv = search_arguments(job, self.url, self.runs, resume=resume)
            env = {**os.environ, _MARK: _mark(queue.file, job)}
            if devices.visible is not None:
                env["CUDA_VISIBLE_DEVICES"] = devices.visible
            with log_file(folder, job.id).open("wb") as log:
                child = subprocess.Popen(
                    argv, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, pass_fds=(lock,)
                )
        finally:
            os.close(lock)  # the child has it now, or nobody
        self._children[job.id] = child
        self.said(f"{job.study}: {'goes on' if resume else 'started'} on {devices.name}, process {child.pid}")
        return True

    def _runs(self, job: Job, folder: Path) -> bool:
        child = self._children.get(job.id)
        if child is not None and child.poll() is None:
            return True
        lock = _lock(folder, job.id)
        if lock is None:
            return True
        os.close(lock)
        return False

    def _settle(self, job: Job, queue: Queue, folder: Path) -> None:
        """A search has stopped: is it done, paused, cancelled, failed, or does it go on?"""
        child = self._children.pop(job.id, None)
        self._told.pop(job.id, None)
        status = None if child is None else child.returncode
        finished = queue.study_status(job.study) == "FINISHED"
        last = log_tail(folder, name=log_file(folder, job.id).name) if status not in {0, None} else None
        if job.wish == "CANCEL" and not finished:
            queue.ended(job, "CANCELLED", "cancelled by its user")
        elif finished:
            queue.ended(job, "DONE", last)
        elif job.wish == "PAUSE":
            queue.ended(job, "PAUSED")
        elif status is None or status < 0 or status == _INTERRUPTED:
            self._go_on(job, queue, killed=status != _INTERRUPTED)
        else:
            queue.ended(job, "FAILED", last)
        self.said(f"{job.study}: {queue.job(job.study).state}")

    def _go_on(self, job: Job, queue: Queue, *, killed: bool) -> None:
        done = queue.finished_trials(job.study)
        times, before = self._deaths.get(job.id, (0, done))
        times = (times + 1 if done == before else 1) if killed else 0
        self._deaths[job.id] = (times, done)
        if times > MAX_DEATHS:
            message = f"its process was killed {times} times without finishing a trial; see the host's memory"
            queue.ended(job, "FAILED", message)
        else:
            queue.ended(job, "QUEUED", "goes on after its process was killed" if killed else None)

    def _stop(self, job: Job, file: Path) -> None:
        """Asks a search to stop, once; ends it when it does not."""
        now = time.monotonic()
        first = self._told.setdefault(job.id, now)
        if first == now:
            self._signal(job, file, signal.SIGTERM)
        elif now - first > TERM_SECONDS:
            self._signal(job, file, signal.SIGKILL)

    def _signal(self, job: Job, file: Path, number: signal.Signals) -> None:
        child = self._children.get(job.id)
        if child is not None:
            child.send_signal(number)
            return
        for process in _adopted(_mark(file, job)):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def _listen(self) -> None:
        def stop(number: int, frame: FrameType | None) -> None:
            self._stopping = True

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)

    def _hand_over(self, queue: Queue) -> None:
        """Told to stop: so are its searches, which go back to the queue."""
        for job in queue.jobs("RUNNING"):
            self._signal(job, queue.file, signal.SIGTERM)
        deadline = time.monotonic() + TERM_SECONDS
        folder = queue_folder(queue.file)
        while (left := queue.jobs("RUNNING")) and time.monotonic() < deadline:
            for job in left:
                if not self._runs(job, folder):
                    self._settle(job, queue, folder)
            time.sleep(POLL_SECONDS)


def search_arguments(job: Job, url: str, runs: Path, *, resume: bool) -> list[str]:
    """The command line of a job's search: an argument list, never a shell's string; a value cannot become a flag."""
    asked = job.request
    flags: dict[str, object] = {
        "study": job.study,
        "gpu-mem": asked.gpu_mem_bytes,
        "trials": asked.trials,
        "time-limit": asked.time_limit_seconds,
        "trial-timeout": asked.trial_timeout_seconds,
        "runs": runs,
    }
    if not resume:
        flags |= {
            "space": asked.space,
            "model": asked.model,
            "dataset": asked.dataset,
            "num-gpus": asked.num_gpus,
            "global-batch-size": asked.global_batch_size,
            "device": asked.device,
            "card": asked.card,
            "engine": asked.engine,
            "python": asked.python,
            "sampler": asked.sampler,
            "seed": asked.seed,
            "from": asked.from_file,
        }
    given = [f"--{name}={value}" for name, value in flags.items() if value is not None]
    return [sys.executable, "-m", "autofit.cli", f"--db={url}", "search", *(["--resume"] if resume else []), *given]


def queue_folder(database: Path) -> Path:
    """Where the locks and logs of a database's queue lie."""
    return database.with_name(f"{database.name}-queue")


def log_file(folder: Path, job_id: int) -> Path:
    """The output of a job's search, of its last start."""
    return folder / f"{job_id}.log"


def is_supervised(database: Path) -> bool:
    """Whether a supervisor runs for this database."""
    lock = FileLock(queue_folder(database) / "supervisor.lock", timeout=0)
    if not Path(lock.lock_file).exists():
        return False
    try:
        with lock:
            return False
    except Timeout:
        return True


@contextmanager
def _only_one(folder: Path, file: Path) -> Iterator[None]:
    lock = FileLock(folder / "supervisor.lock", timeout=1.0)  # whoever asks `is_supervised` holds it for an instant
    try:
        lock.acquire()
    except Timeout:
        raise AutofitError(f"another supervisor runs the queue of {file}") from None
    try:
        yield
    finally:
        lock.release()


def _lock(folder: Path, job_id: int) -> int | None:
    """A descriptor that holds the job's lock, or None: a process has it."""
    descriptor = os.open(folder / f"{job_id}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _mark(file: Path, job: Job) -> str:
    return f"{file.resolve()}#{job.id}"


def _adopted(mark: str) -> Sequence[psutil.Process]:
    """The searches that an earlier supervisor started for a job; their workers carry the mark too, but are no command line."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(_MARK) == mark and process.cmdline()[1:3] == ["-m", "autofit.cli"]:
                found.append(process)
    return found
