"""Runs one trial on this machine and says how it ended.

The worker tells by files: `heartbeat.rank<N>.json` while it lives, `result.json` when it has something to say. What it
cannot say itself the launcher does: TIMEOUT (still making progress, but over its time), HANG (alive, no progress),
HOST_OOM (the kernel killed it for memory), CRASHED (no result, or one that cannot be read).

A trial's processes are new interpreters, or (`warm`) forks of one that has imported everything, which makes a short trial
several times shorter. Whatever could come of the forking is not taken for the trial's own: a doubt (`launch/warm.py`), a crash
or a hang ends the server, and the trial runs again in new interpreters, whose result counts. Where that is another outcome,
no further trial is forked.
"""

import json
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from pydantic import ValidationError

from autofit.config.base import describe
from autofit.config.hardware import Hardware
from autofit.config.result import Phase, TrialResult
from autofit.config.trial import RunSpec, TrialSpec
from autofit.errors import LaunchError
from autofit.launch import gpus
from autofit.launch.environment import worker_variables
from autofit.launch.processes import POLL_SECONDS, ProcessGroup, end_leftover, write_atomically
from autofit.launch.warm import Doubt, WarmWorkers
from autofit.resources import worker_entry

RESULT_FILE = "result.json"
SPEC_FILE = "spec.json"
WARM_FILE = "worker.json"
"""What the process that trials are forked from is told, beside the run folders."""
OUTPUT_DIR = "trainer"
"""Where the training itself writes, in the run folder."""
_STALE = ("result.json", "rank*.json", "heartbeat.rank*.json", "metrics*.jsonl", "stdout.log", "stderr.log", "process.json")
_LONG_PHASES = frozenset({"start", "data", "load", "save"})
_DOUBTFUL = frozenset({"CRASHED", "HANG"})
"""Outcomes of a forked trial that might be the forking's."""
_MEMORY_SLACK = 256 * 1024**2
_STACK_DUMP_SECONDS = 1.0


@dataclass(frozen=True)
class Limits:
    """Seconds that a trial may take."""

    trial: float = 1800.0
    """In all, start-up included."""
    load: float = 900.0
    """Without progress in the phases that may be long without a sign of life: importing, reading data and weights, saving."""
    hang: float = 180.0
    """Without progress in any other."""
    term_grace: float = 5.0
    """Between SIGTERM and SIGKILL."""
    memory_back: float = 60.0
    """Until a GPU's memory is free again after a trial."""


@dataclass(frozen=True)
class Heartbeat:
    """Where a running trial is."""

    phase: Phase
    step: int
    progress: int
    """Events over all ranks; what does not grow hangs."""
    laggard: int
    """The rank with the fewest events."""


class Group(Protocol):
    """The processes of a running trial: `ProcessGroup` or `warm.WarmTrial`. On leaving its context none of them is left."""

    def poll(self) -> int | None:
        """Exit status, or None while it runs."""

    def rest(self, seconds: float) -> None:
        """Waits until there may be something to see, at most so long."""

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to every member."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class LocalExecutor:
    """Runs trials, one at a time, in the training environment's interpreter. A context manager, for the sake of `warm`."""

    def __init__(
        self,
        python: str,
        hardware: Hardware,
        limits: Limits | None = None,
        *,
        warm: bool = False,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`warm`: trials are forked from a process that has imported everything. `say` gets what the user should know of it."""
        self._python = python
        self._hardware = hardware
        self._limits = limits or Limits()
        cuda = hardware.device == "cuda"
        self._idle_bytes = {device.uuid: gpus.used_bytes(device) for device in hardware.devices} if cuda else {}
        self._warm = WarmWorkers(self._limits.term_grace) if warm else None
        self._say = say

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._warm:
            self._warm.close()

    def run(
        self, run_dir: Path, spec: RunSpec, on_tick: Callable[[Heartbeat | None], None], *, fresh: bool = False
    ) -> TrialResult:
        """Runs `spec` in `run_dir` to its end. An exception from `on_tick` (the user's Ctrl-C, say) ends the trial.

        `fresh`: in new interpreters, also where the executor is warm.

        Raises:
            LaunchError: the trial cannot be started, or a device does not give its memory back.
        """
        forked = None
        if self._warm and self._warm.trusted and not fresh:
            try:
                forked = self._attempt(run_dir, spec, on_tick, self._warm)
                if forked.outcome not in _DOUBTFUL:
                    self._warm.keep()
                    return forked
                why = f"it ended {forked.outcome} in a forked process"
            except Doubt as doubt:
                why = str(doubt)
            except BaseException:
                self._warm.close()
                raise
            self._warm.drop()
            self._say(f"the trial runs again in new processes: {why}")
        result = self._attempt(run_dir, spec, on_tick, None)
        if self._warm and forked and result.outcome != forked.outcome:
            self._warm.distrust()
            self._say(f"no further trial is forked: this one ended {forked.outcome} so, and {result.outcome} in new processes")
        return result

    def _attempt(
        self, run_dir: Path, spec: RunSpec, on_tick: Callable[[Heartbeat | None], None], warm: WarmWorkers | None
    ) -> TrialResult:
        self._wait_for_memory()
        _prepare(run_dir, spec)
        kills_before = kernel_oom_kills()
        try:
            with self._start(run_dir, spec, warm) as group:
                ended = self._watch(group, run_dir, on_tick)
        finally:
            shutil.rmtree(run_dir / OUTPUT_DIR, ignore_errors=True)  # checkpoints are large, and have served their purpose
        if isinstance(ended, TrialResult):
            return ended
        return self._read(run_dir, ended, kernel_oom_kills() - kills_before)

    def _start(self, run_dir: Path, spec: RunSpec, warm: WarmWorkers | None) -> Group:
        spec_file = run_dir / SPEC_FILE
        env, alike = self._environment(spec), _alike(spec)
        if warm is not None:
            return warm.trial(self._command("serve", spec_file), env, alike, spec_file)
        return ProcessGroup(self._command("run", spec_file), env, run_dir, self._limits.term_grace)

    def _command(self, verb: str, spec_file: Path) -> list[str]:
        return [self._python, str(worker_entry()), verb, str(spec_file)]

    def _environment(self, spec: RunSpec) -> dict[str, str]:
        return worker_variables(self._python, spec.trial, spec.device, [device.uuid for device in self._hardware.devices])

    def warm_up(self, folder: Path, spec: RunSpec) -> None:
        """Starts what trials like `spec` are forked from: it imports (seconds) while the caller does something else.

        Args:
            folder: of the trials' run folders.

        Raises:
            LaunchError: it cannot be started, or the folder cannot be written.
        """
        if self._warm is None or not self._warm.trusted:
            return
        file = folder / WARM_FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(file, spec.model_dump_json(indent=1))
        except OSError as error:
            raise LaunchError(f"cannot write {file}: {error.strerror or error}") from error
        self._warm.serve(self._command("serve", file), self._environment(spec), _alike(spec), folder)

    def recover(self, run_dir: Path, trial: TrialSpec) -> TrialResult | None:
        """The result of a trial whose driver was killed, if it had one; ends what is left of it."""
        end_leftover(run_dir)
        shutil.rmtree(run_dir / OUTPUT_DIR, ignore_errors=True)
        try:
            ran = RunSpec.model_validate_json((run_dir / SPEC_FILE).read_bytes()).trial
        except (OSError, ValidationError):
            return None
        return self._read(run_dir, 0, 0) if ran == trial and (run_dir / RESULT_FILE).exists() else None

    def _watch(self, group: Group, run_dir: Path, on_tick: Callable[[Heartbeat | None], None]) -> TrialResult | int:
        """Waits for the end: an exit status, or the verdict of the limit that was broken."""
        started = moved = time.monotonic()
        last: Heartbeat | None = None
        while (status := group.poll()) is None:
            now = time.monotonic()
            beat = read_heartbeat(run_dir)
            if beat and (last is None or beat.progress != last.progress):
                moved = now
            last = beat or last
            on_tick(last)
            quick = last is not None and last.phase not in _LONG_PHASES
            if now - moved > (self._limits.hang if quick else self._limits.load):
                return _hang(group, last, now - moved)
            if now - started > self._limits.trial:
                phase = last.phase if last else "start"
                return TrialResult(
                    outcome="TIMEOUT", phase=phase, message=f"still running after {self._limits.trial:.0f} s, in {phase}"
                )
            group.rest(POLL_SECONDS)
        return status

    def _read(self, run_dir: Path, status: int, oom_kills: int) -> TrialResult:
        """`result.json`, or what its absence means."""
        file = run_dir / RESULT_FILE
        if file.exists():
            try:
                return TrialResult.model_validate_json(file.read_bytes())
            except ValidationError as error:
                return _crashed(run_dir, f"the worker wrote an unreadable {RESULT_FILE}: {describe(error, TrialResult)}")
        if status == -signal.SIGKILL and oom_kills > 0:
            return TrialResult(
                outcome="HOST_OOM",
                phase=_last_phase(run_dir),
                message="the kernel killed the worker: the host is out of memory",
            )
        how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        return _crashed(run_dir, f"the worker left no {RESULT_FILE} ({how}): {log_tail(run_dir)}")

    def _wait_for_memory(self) -> None:
        """Returns when every GPU holds no more than it did before the first trial."""
        deadline = time.monotonic() + self._limits.memory_back
        for device in self._hardware.devices if self._idle_bytes else ():
            allowed = self._idle_bytes[device.uuid] + _MEMORY_SLACK
            while (used := gpus.used_bytes(device)) > allowed:
                if time.monotonic() > deadline:
                    raise LaunchError(
                        f"GPU {device.index} holds {used} bytes, {used - self._idle_bytes[device.uuid]} more than before the"
                        f" search; processes on it: {gpus.pids_on(device) or 'unknown'}"
                    )
                time.sleep(POLL_SECONDS)


def _alike(spec: RunSpec) -> tuple[object, ...]:
    """What trials that are forked from one process have in common, beside their environment."""
    return spec.engine, spec.device, spec.trial.num_gpus


def read_heartbeat(run_dir: Path) -> Heartbeat | None:
    """The ranks' heartbeats as one, or None before the first. A torn or missing file counts as no beat."""
    beats: dict[int, dict[str, object]] = {}
    for file in run_dir.glob("heartbeat.rank*.json"):
        try:
            beats[int(file.name.removeprefix("heartbeat.rank").removesuffix(".json"))] = json.loads(file.read_bytes())
        except (OSError, ValueError):
            continue
    if not beats:
        return None
    progress = {rank: int(str(beat["progress"])) for rank, beat in beats.items()}
    laggard = min(progress, key=lambda rank: progress[rank])
    slowest = beats[laggard]
    return Heartbeat(
        phase=str(slowest["phase"]),  # type: ignore[arg-type]
        step=int(str(slowest["step"])),
        progress=sum(progress.values()),
        laggard=laggard,
    )


def log_tail(run_dir: Path, lines: int = 1, name: str = "stderr.log") -> str:
    """The last lines of a log that are not empty."""
    try:
        with (run_dir / name).open("rb") as stream:
            stream.seek(0, 2)
            stream.seek(max(0, stream.tell() - 16_384))
            text = stream.read().decode(errors="replace")
    except OSError:
        return "no log"
    return "\n".join([line.strip() for line in text.splitlines() if line.strip()][-lines:]) or f"no message in {name}"


def kernel_oom_kills() -> int:
    """Processes that the kernel has killed for lack of memory, since boot."""
    try:
        with Path("/proc/vmstat").open(encoding="utf-8") as stream:
            return next((int(line.split()[1]) for line in stream if line.startswith("oom_kill ")), 0)
    except OSError:
        return 0


def _prepare(run_dir: Path, spec: RunSpec) -> None:
    """An empty run folder with the spec in it; what an earlier attempt left goes."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        for pattern in _STALE:
            for file in run_dir.glob(pattern):
                file.unlink()
        write_atomically(run_dir / SPEC_FILE, spec.model_dump_json(indent=1))
    except OSError as error:
        raise LaunchError(f"cannot write the run folder {run_dir}: {error.strerror or error}") from error


def _hang(group: Group, last: Heartbeat | None, seconds: float) -> TrialResult:
    """The verdict on a trial without progress; the stacks of its ranks go to stderr.log first."""
    if last is not None:  # before the first beat the dump's handler is not there, and the signal would end the process
        group.signal(signal.SIGUSR1)
        time.sleep(_STACK_DUMP_SECONDS)
    where = (
        f"in {last.phase} of step {last.step}, rank {last.laggard} furthest behind" if last else "before its first sign of life"
    )
    return TrialResult(
        outcome="HANG",
        phase=last.phase if last else "start",
        failed_rank=last.laggard if last else None,
        message=f"no progress for {seconds:.0f} s {where}; stacks are in stderr.log",
    )


def _crashed(run_dir: Path, message: str) -> TrialResult:
    return TrialResult(outcome="CRASHED", phase=_last_phase(run_dir), message=message)


def _last_phase(run_dir: Path) -> Phase:
    beat = read_heartbeat(run_dir)
    return beat.phase if beat else "start"
