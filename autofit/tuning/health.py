"""What `autofit doctor` finds: interpreter, packages, devices, disk - and the command that mends what is missing."""

import shutil
import sys
from pathlib import Path
from typing import Literal

import psutil

from autofit.config.base import Frozen
from autofit.errors import AutofitError
from autofit.launch import gpus
from autofit.launch.environment import probe
from autofit.tuning.engine import untested
from autofit.units import GIB, format_bytes

NEEDED_FOR = {
    "torch": "every trial",
    "transformers": "every trial",
    "accelerate": "every trial",
    "peft": "LoRA",
    "deepspeed": "ZeRO 1-3",
    "llamafactory": "trials that are the run to be launched, and launching it",
}
LEAST_DISK_BYTES = GIB


class Finding(Frozen):
    """One thing that was looked at."""

    what: str
    status: Literal["ok", "missing", "note"]
    detail: str
    mend: str | None = None
    """The command that mends it."""


def examine(python: str | None, folder: Path) -> list[Finding]:
    """Looks at everything a search needs; raises nothing."""
    return [*_interpreter(python or sys.executable), *_devices(), _host(), _disk(folder)]


def _interpreter(python: str) -> list[Finding]:
    try:
        environment = probe(python)
    except AutofitError as error:
        return [Finding(what="training environment", status="missing", detail=str(error), mend="autofit doctor --python PATH")]
    versions = environment.versions
    found = [Finding(what="training environment", status="ok", detail=f"{python}, Python {versions.get('python', 'unknown')}")]
    for name, use in NEEDED_FOR.items():
        if name in versions:
            found.append(Finding(what=name, status="ok", detail=versions[name]))
        else:
            optional = name == "llamafactory"
            found.append(
                Finding(
                    what=name,
                    status="note" if optional else "missing",
                    detail=f"not installed; needed for {use}",
                    mend=f"{python} -m pip install {name}",
                )
            )
    return [*found, _engine(versions.get("llamafactory"))]


def _engine(version: str | None) -> Finding:
    if version is None:
        detail = "transformers: this interpreter has no LLaMA-Factory, so trials run Hugging Face Trainer on synthetic batches"
        return Finding(what="engine", status="note", detail=detail)
    detail = (
        f"llamafactory: this interpreter has LLaMA-Factory {version}, so trials are its own training, where the model has"
        " weights and a tokenizer and the dataset is there"
    )
    if (warning := untested(version)) is not None:
        return Finding(what="engine", status="note", detail=f"{detail}; but {warning}")
    return Finding(what="engine", status="ok", detail=detail)


def _devices() -> list[Finding]:
    devices = gpus.cuda_devices()
    if not devices:
        return [
            Finding(
                what="GPU",
                status="note",
                detail="no CUDA device is visible; only tiny models can be tried (--device cpu)",
                mend="nvidia-smi",
            )
        ]
    return [
        Finding(
            what=f"GPU {device.index}",
            status="ok",
            detail=f"{device.name}, {format_bytes(device.memory_bytes)}, {format_bytes(gpus.used_bytes(device))} in use",
        )
        for device in devices
    ]


def _host() -> Finding:
    memory = psutil.virtual_memory()
    detail = f"{psutil.cpu_count()} cores, {format_bytes(memory.total)}, {format_bytes(memory.available)} available"
    return Finding(what="host", status="ok", detail=detail)


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    low = free < LEAST_DISK_BYTES
    return Finding(
        what="disk",
        status="missing" if low else "ok",
        detail=f"{format_bytes(free)} free in the current folder",
        mend=f"free at least {format_bytes(LEAST_DISK_BYTES)}" if low else None,
    )
