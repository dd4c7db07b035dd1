"""Starts the ranks of one trial, ends them together, and merges what they report. Standard library only.

Ranks are started here rather than by torchrun, which (torch >= 2.x) puts each rank into a session of its own: a signal to the
driver's process group would miss them. Here every rank stays in the supervisor's group, and dies with the supervisor, which
dies with the driver. Even a single rank is a child: what the kernel does to it (SIGKILL) can then be told.

A rank is an interpreter of its own (`spawned`), or a fork of this process, if that has imported everything (`server`).
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from autofit.worker import faults
from autofit.worker.files import read_json
from autofit.worker.heartbeat import heartbeat_path
from autofit.worker.merge import result_path, with_resumed, write_result
from autofit.worker.order import RESUME, Order
from autofit.worker.outcomes import says_out_of_memory
from autofit.worker.processes import Process, die_with_parent, kernel_oom_kills, rest
from autofit.worker.report import RankReport, job_id, read_report, report_path

GRACE_SECONDS = 5.0
"""What the other ranks get after one has failed, to notice and write their own report; again between SIGTERM and SIGKILL."""
POLL_SECONDS = 0.05
DRIVER_PID = "AUTOFIT_DRIVER_PID"
SUPERVISOR_PID = "AUTOFIT_SUPERVISOR_PID"

StartRank = Callable[[int, Mapping[str, str]], Process]
"""Starts a rank, given its number and its whole environment."""


@dataclass
class _Rank:
    process: Process
    ended_by_us: bool = False


@dataclass
class _Job:
    order: Order
    ranks: list[_Rank] = field(default_factory=list)
    terminated: bool = False
    oom_kills_before: int = 0


def supervise(order: Order, start: StartRank) -> int:
    """Runs the trial to its end and leaves `result.json`.

    Returns 0 when the outcome is COMPLETED, otherwise 1. SIGTERM and SIGINT are passed on to the ranks; what they have
    reported is merged.
    """
    driver = os.environ.get(DRIVER_PID)
    if driver:
        die_with_parent(int(driver))
    parent = int(driver) if driver else None
    job = _Job(order, oom_kills_before=_oom_kills(order))
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # for the ranks: it asks the whole group for its stacks
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _terminate(job))
    _clean(order)
    reports = _run_ranks(job, start, parent)
    if order.resume and not job.terminated and all(report.outcome == "COMPLETED" for report in reports):
        os.environ[RESUME] = "1"
        reports = with_resumed(reports, _run_ranks(job, start, parent))
    return _conclude(job, reports)


def spawned(command: list[str]) -> StartRank:
    """Ranks that execute `command`."""

    def start(_rank: int, environment: Mapping[str, str]) -> Process:
        return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)

    return start


def rank_command(order: Order) -> list[str]:
    """What a rank of its own interpreter executes."""
    return [sys.executable, str(Path(__file__).with_name("__main__.py")), "rank", str(order.spec_path)]


def _run_ranks(job: _Job, start: StartRank, parent: int | None) -> list[RankReport]:
    """Starts all ranks, waits for their end, and returns what each reports or what its death tells."""
    order = job.order
    os.environ |= _rendezvous(order)
    job.ranks = []
    shared = {**os.environ, **rank_environment(order)}
    for rank in range(order.num_ranks):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), SUPERVISOR_PID: str(os.getpid())}
        job.ranks.append(_Rank(start(rank, {**shared, **own})))
    _wait(job, parent)
    return [
        read_report(order.folder, number, job_id()) or _obituary(job, number, rank) for number, rank in enumerate(job.ranks)
    ]


def _terminate(job: _Job) -> Callable[[int, FrameType | None], None]:
    def handler(_number: int, _frame: FrameType | None) -> None:
        if not faults.planted("ignore-sigterm"):
            job.terminated = True

    return handler


def _clean(order: Order) -> None:
    """Takes away what an earlier start on the same folder has left."""
    for rank in range(order.num_ranks):
        report_path(order.folder, rank).unlink(missing_ok=True)
        heartbeat_path(order.folder, rank).unlink(missing_ok=True)
    result_path(order.folder).unlink(missing_ok=True)
    shutil.rmtree(order.output_dir, ignore_errors=True)  # LLaMA-Factory would silently resume from a checkpoint in it


def _rendezvous(order: Order) -> dict[str, str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RESTART_COUNT": str(time.time_ns())}


def rank_environment(order: Order) -> dict[str, str]:
    """What a trial's ranks find in their environment beside the supervisor's own. Much of it is read when a process starts."""
    ranks = str(order.num_ranks)
    threads = max(1, len(os.sched_getaffinity(0)) // order.num_ranks)
    chosen = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    if order.device == "cpu":
        # Ranks that each start a thread a core fight for the cores: a step then takes up to 20 times longer.
        defaults = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive", "GLOO_SOCKET_IFNAME": "lo", **CPU_MALLOC}
        return {**_absent(defaults), **chosen, **_CPU_ENVIRONMENT}
    defaults = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "OMP_NUM_THREADS": str(threads)}
    if order.num_ranks > 1:
        # What LLaMA-Factory 0.9.5 sets on its torchrun path, and only there: the trial must run as the real launch will.
        defaults |= {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", "TORCH_NCCL_AVOID_RECORD_STREAMS": "1"}
    return {**_absent(defaults), **chosen}


_CPU_ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "DS_ACCELERATOR": "cpu",
    # Importing one of DeepSpeed's optimizers compiles a function, which loads all of Inductor: seconds, and 40 MiB. Nothing
    # that runs here is compiled.
    "TORCHDYNAMO_DISABLE": "1",
}
CPU_MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(2**20), "MALLOC_TRIM_THRESHOLD_": str(8 * 2**20)}
"""Large freed tensors go back to the kernel, so that peaks repeat, but not every small one; see `meter_cpu`."""


def _absent(defaults: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in defaults.items() if name not in os.environ}


def _wait(job: _Job, parent: int | None) -> None:
    """Until all ranks have ended, by themselves or by force."""
    failed_at: float | None = None
    termed_at: float | None = None
    while running := [rank for rank in job.ranks if rank.process.poll() is None]:
        now = time.monotonic()
        if parent is not None and os.getppid() != parent:
            job.terminated = True
        if failed_at is None and any(rank.process.returncode for rank in job.ranks):
            failed_at = now
        over = failed_at is not None and now - failed_at > GRACE_SECONDS
        if termed_at is None and (job.terminated or over):
            termed_at = now
            _signal(running, signal.SIGTERM)
        elif termed_at is not None and now - termed_at > GRACE_SECONDS:
            _signal(running, signal.SIGKILL)
        rest([rank.process.pid for rank in running], POLL_SECONDS)


def _signal(ranks: list[_Rank], number: signal.Signals) -> None:
    for rank in ranks:
        rank.ended_by_us = True
        rank.process.send_signal(number)


def _conclude(job: _Job, reports: list[RankReport]) -> int:
    if faults.planted("torn-result") or faults.planted("garbage-result"):
        return _spoil_result(job.order)
    try:
        outcome = write_result(job.order, reports)
    except OSError as error:
        sys.stderr.write(f"autofit.worker: {result_path(job.order.folder)} cannot be written: {error.strerror}\n")
        return 1
    return 0 if outcome == "COMPLETED" else 1


def _obituary(job: _Job, number: int, rank: _Rank) -> RankReport:
    """The report of a rank that left none."""
    code = rank.process.returncode or 0
    beat = read_json(heartbeat_path(job.order.folder, number)) or {}
    report = RankReport(rank=number, phase=beat.get("phase", "start"), died="ended" if rank.ended_by_us else "itself")
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with status {code} and left no report"
    report.error_type = signal.Signals(-code).name if code < 0 else "Exit"
    report.message = f"rank {number} {how}, at optimizer step {beat.get('step', 0)}"
    if rank.ended_by_us:
        report.message += ", because the trial was ended" if job.terminated else ", because another rank had failed"
    elif code == -signal.SIGKILL and _oom_kills(job.order) > job.oom_kills_before:
        report.outcome = "HOST_OOM"
        report.message += "; the kernel's out-of-memory killer has struck meanwhile"
    elif code < 0 and says_out_of_memory(_last_words()):
        report.outcome = "OOM" if job.order.device == "cpu" else "HOST_OOM"
        report.message += "; its last words tell of a failed allocation"
    return report


def _oom_kills(order: Order) -> int:
    return kernel_oom_kills() + faults.simulated_oom_kills(order.folder)


def _last_words(length: int = 4096) -> str:
    """The end of standard error where that is a file (the driver's stderr.log): C++ says there why it aborts."""
    try:
        with Path("/proc/self/fd/2").open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - length))
            return file.read(length).decode(errors="replace")
    except OSError:
        return ""


def _spoil_result(order: Order) -> int:
    """Planted faults of the file itself."""
    path = result_path(order.folder)
    if faults.planted("garbage-result"):
        sys.stdout.write("\x00\xff garbage {]\n")
        path.write_bytes(b"\x80garbage {]")
        return 0
    path.write_text('{"schema_version": 1, "outcome": "COMPL', encoding="utf-8")
    os.kill(os.getpid(), signal.SIGKILL)
    return 1
