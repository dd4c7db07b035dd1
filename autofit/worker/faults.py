"""Faults planted by tests through `AUTOFIT_FAULT`; without the variable nothing here does anything.

A comma-separated list of:
    hang:RANK:STEP      sleeps for ever at the start of that optimizer step (0 is the first)
    die:RANK:STEP       SIGKILLs itself
    crash:RANK:STEP     raises RuntimeError
    data:RANK:STEP      raises DataError
    oom-host:RANK:STEP  SIGKILLs itself as the kernel's OOM killer does, and lets the supervisor see one more such kill
    leak:RANK:MIB       keeps that much more memory from each optimizer step on
    hog:PHASE:MIB       takes that much memory of the device when an evaluation (`eval`) or a save (`save`) begins
    ignore-sigterm      supervisor and ranks ignore SIGTERM
    torn-result         the supervisor dies half-way through a result.json written without care
    garbage-result      result.json holds something that is not JSON, and garbage is printed
    leak-server:MIB     a server keeps that much more memory from each trial on
    thread-server       a server has a second thread from its first trial on
"""

import os
import signal
import threading
import time
from pathlib import Path

from autofit.worker.outcomes import DataError

VARIABLE = "AUTOFIT_FAULT"
_MIB = 2**20
_leaked: list[bytearray] = []
_SIMULATED_KILL = "simulated-oom-kill"


def planted(name: str) -> bool:
    """Whether a fault without a place is planted."""
    return name in os.environ.get(VARIABLE, "").split(",")


def strike(rank: int, step: int, folder: Path) -> None:
    """Commits the faults planted for this rank and step."""
    faults = os.environ.get(VARIABLE)
    if not faults:
        return
    here = f":{rank}:{step}"
    for fault in faults.split(","):
        if fault.startswith(f"leak:{rank}:") and len(_leaked) <= step:
            _leaked.append(_touched(int(fault.rpartition(":")[2])))
        if not fault.endswith(here):
            continue
        kind = fault.removesuffix(here)
        if kind == "hang":
            while True:
                time.sleep(3600)
        if kind == "oom-host":
            (folder / _SIMULATED_KILL).touch()
        if kind in {"die", "oom-host"}:
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "crash":
            raise RuntimeError("planted crash")
        if kind == "data":
            raise DataError("planted data error")


def strike_phase(phase: str, device: str) -> None:
    """Commits the faults planted for this phase."""
    for fault in os.environ.get(VARIABLE, "").split(","):
        if fault.startswith(f"hog:{phase}:"):
            mebibytes = int(fault.rpartition(":")[2])
            if device == "cpu":
                _touched(mebibytes)
            else:
                import torch

                torch.empty(mebibytes * _MIB, dtype=torch.uint8, device=device)


def strike_server() -> None:
    """Commits the faults planted for a server that has started a trial."""
    for fault in os.environ.get(VARIABLE, "").split(","):
        if fault.startswith("leak-server:"):
            _leaked.append(_touched(int(fault.rpartition(":")[2])))
        if fault == "thread-server":
            threading.Thread(target=threading.Event().wait, daemon=True).start()


def _touched(mebibytes: int) -> bytearray:
    """Host memory that is really there."""
    return bytearray(b"x") * (mebibytes * _MIB)


def simulated_oom_kills(folder: Path) -> int:
    """OOM kills that `oom-host` pretends; added to the kernel's own count."""
    return int(bool(os.environ.get(VARIABLE)) and (folder / _SIMULATED_KILL).exists())
