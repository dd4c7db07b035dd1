"""A look at a trial that runs, from outside: its heartbeat and the memory that its ranks hold now."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pynvml

from autofit.config.hardware import Device
from autofit.launch import gpus
from autofit.launch.local import read_heartbeat


@dataclass(frozen=True)
class Sample:
    """One look. What it saw is not the measured peak: that comes with the result."""

    phase: str
    step: int
    memory_bytes: int | None
    """Now, of the rank that holds the most: on a GPU what the device has in use, on the CPU the process's resident memory."""


def look(run_dir: Path, devices: Sequence[Device], *, cuda: bool) -> Sample | None:
    """What the trial in `run_dir` does now; None before its first sign of life."""
    beat = read_heartbeat(run_dir)
    if beat is None:
        return None
    return Sample(beat.phase, beat.step, _device_memory(devices) if cuda else _process_memory(run_dir))


def _device_memory(devices: Sequence[Device]) -> int | None:
    try:
        return max(gpus.used_bytes(device) for device in devices)
    except pynvml.NVMLError:
        return None


def _process_memory(run_dir: Path) -> int | None:
    found = []
    for file in run_dir.glob("heartbeat.rank*.json"):
        try:
            found.append(psutil.Process(int(json.loads(file.read_bytes())["pid"])).memory_info().rss)
        except (OSError, ValueError, KeyError, TypeError, psutil.Error):
            continue
    return max(found, default=None)
