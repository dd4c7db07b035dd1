"""One rank's life: train, and report however it ends."""

import faulthandler
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from types import FrameType

from autofit.worker import faults
from autofit.worker.heartbeat import Heartbeat
from autofit.worker.merge import write_result
from autofit.worker.order import Order
from autofit.worker.outcomes import DataError, Terminated, acquit, classify
from autofit.worker.probe import versions
from autofit.worker.processes import die_with_parent
from autofit.worker.report import RankReport, job_id, read_report, report_path, write_report
from autofit.worker.supervisor import SUPERVISOR_PID

Engine = Callable[[Order, RankReport, Heartbeat], None]


def _transformers_engine() -> Engine:
    from autofit.worker.engines.transformers import run

    return run


def _llamafactory_engine() -> Engine:
    from autofit.worker.engines.llamafactory import run

    return run


ENGINES: dict[str, Callable[[], Engine]] = {"transformers": _transformers_engine, "llamafactory": _llamafactory_engine}


def run_rank(order: Order) -> int:
    """Runs this process's rank (RANK in the environment) and writes `rank<N>.json`, also when it fails.

    Ends the process rather than returning: after a failed allocation, with a peer gone, the libraries' own tear-down can hang.
    """
    started = time.perf_counter()
    rank = int(os.environ.get("RANK", "0"))
    supervisor = os.environ.get(SUPERVISOR_PID)
    die_with_parent(int(supervisor) if supervisor else None)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN if faults.planted("ignore-sigterm") else _raise_terminated)
    report_path(order.folder, rank).unlink(missing_ok=True)
    report = RankReport(rank=rank, versions=versions())
    heartbeat = Heartbeat(order.folder, rank)
    heartbeat.beat()
    heartbeat.keep_flushing()
    try:
        _check_world(order)
        engine = _engine(order)
        report.timings["import"] = time.perf_counter() - started
        engine(order, report, heartbeat)
        report.outcome = "COMPLETED"
    except BaseException as error:  # noqa: BLE001 - the trial boundary: whatever ends the rank becomes its report
        _note(report, heartbeat, error, order.device)
    report.timings["total"] = time.perf_counter() - started
    _leave(order, report)
    return 1  # not reached: _leave ends the process


def _engine(order: Order) -> Engine:
    if order.engine not in ENGINES:
        raise ValueError(f"engine '{order.engine}' is not one of {', '.join(sorted(ENGINES))}")
    return ENGINES[order.engine]()


def _check_world(order: Order) -> None:
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world != order.num_ranks:
        raise ValueError(f"{world} rank(s) were started for a spec of num_gpus {order.num_ranks}")


def _raise_terminated(_number: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: the report is being written from here on
    raise Terminated


def _note(report: RankReport, heartbeat: Heartbeat, error: BaseException, device: str) -> None:
    failure = acquit(classify(error, device), report.room_bytes, report.unclaimed_bytes)
    report.outcome, report.error_type, report.message = failure.outcome, failure.error_type, failure.message
    report.requested_bytes, report.allocated_bytes = failure.requested_bytes, failure.allocated_bytes
    report.phase = "data" if isinstance(error, DataError) else heartbeat.phase
    sys.stderr.write("".join(traceback.format_exception(error)))
    sys.stderr.flush()


def _leave(order: Order, report: RankReport) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the end is at hand; let the report be whole
    code = 0 if report.outcome == "COMPLETED" else 1
    try:
        write_report(order.folder, report)
        if SUPERVISOR_PID not in os.environ:
            _merge_without_supervisor(order, report)
    except OSError as error:
        sys.stderr.write(f"autofit.worker: rank {report.rank} cannot report: {error}\n")
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _merge_without_supervisor(order: Order, report: RankReport) -> None:
    """Under torchrun the last rank merges; a rank that fails merges what there is, since torchrun will end the others."""
    present = [read_report(order.folder, rank, job_id()) for rank in range(order.num_ranks)]
    reports = [found for found in present if found is not None]
    if len(reports) == order.num_ranks or report.outcome != "COMPLETED":
        write_result(order, reports)
