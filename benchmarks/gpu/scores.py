"""Figures out of records: errors of predictions, and what is left of them when one half corrects the other."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autofit.predict.calibrate import Residual, calibrate
from autofit.predict.devices import DeviceModel
from autofit.predict.offload import Offload
from autofit.predict.roofline import Constants, Job, Operations, fit, step_time
from benchmarks.gpu.records import Record

QUANTITIES = ("allocated", "reserved", "device", "step_seconds")
PROBES = 5
"""Measured configurations after which step times are to be right."""


@dataclass(frozen=True)
class Aim:
    """What the issue asks of a quantity, as shares."""

    median: float
    p95: float | None


AIMS = {"allocated": Aim(0.01, 0.03), "reserved": Aim(0.03, 0.08), "step_seconds": Aim(0.10, None)}


@dataclass(frozen=True)
class Score:
    """Relative errors, (predicted - measured) / measured."""

    count: int
    median: float
    """Of the absolute error."""
    p95: float
    worst: float
    """The one with the largest absolute value, signed."""
    under: float
    """Share of configurations that measured more than was predicted."""
    under_far: float
    """Share that measured more than 3 % more."""


def score(pairs: Iterable[tuple[float, float]]) -> Score | None:
    """The score of (predicted, measured) pairs; None of none."""
    table = np.array(list(pairs), dtype=float).reshape(-1, 2)
    if not len(table):
        return None
    errors = table[:, 0] / table[:, 1] - 1
    sizes = np.abs(errors)
    return Score(
        count=len(errors),
        median=float(np.median(sizes)),
        p95=float(np.quantile(sizes, 0.95)),
        worst=float(errors[int(np.argmax(sizes))]),
        under=float((errors < 0).mean()),
        under_far=float((errors < -0.03).mean()),
    )


def pairs(records: Sequence[Record], quantity: str) -> list[tuple[float, float]]:
    """(predicted, measured) of the configurations that ran to their end and have both.

    Where the allocator had to give blocks back, reserved and device memory are what the card had room for: left out.
    """
    found = []
    for record in records:
        said, seen = record["predicted"].get(quantity), record["measured"].get(quantity)
        capped = quantity in {"reserved", "device"} and record["measured"].get("retries")
        if record["measured"]["outcome"] == "COMPLETED" and said and seen and not capped:
            found.append((float(said), float(seen)))
    return found


def by_term(records: Sequence[Record]) -> dict[str, list[tuple[float, float]]]:
    """Term -> (predicted, measured) bytes, as far as measurements tell terms apart.

    Allocated bytes by phase; what is reserved beyond what is allocated; and what the device loses outside of the allocator.
    """
    found: dict[str, list[tuple[float, float]]] = {}

    def add(name: str, said: float | None, seen: float | None) -> None:
        if said is not None and seen is not None and said > 0 and seen > 0:
            found.setdefault(name, []).append((said, seen))

    for record in records:
        said, seen = record["predicted"], record["measured"]
        if seen["outcome"] != "COMPLETED":
            continue
        for phase in ("forward", "backward", "optimizer_step"):
            add(f"allocated in {phase}", said.get("phases", {}).get(phase), seen.get("phase_allocated", {}).get(phase))
        if seen.get("reserved") and said.get("reserved") and not seen.get("retries"):
            add("reserved beyond allocated", said["reserved"] - said["allocated"], seen["reserved"] - seen["allocated"])
        add("outside of the allocator", said.get("overhead"), seen.get("outside"))
    return found


def halves(records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """Two halves by a digest of their keys, so that nobody chooses which record is in which."""
    ordered = sorted(records, key=lambda record: hashlib.sha256(record["key"].encode()).hexdigest())
    return ordered[: len(ordered) // 2], ordered[len(ordered) // 2 :]


def corrected(train: Sequence[Record], test: Sequence[Record], quantity: str) -> list[tuple[float, float]]:
    """Memory of `test`, its predictions corrected by what `train` measured (`calibrate`)."""
    residuals = [Residual(round(said), round(seen)) for said, seen in pairs(train, quantity)]
    factor = calibrate(residuals, quantity).factor
    return [(said * factor, seen) for said, seen in pairs(test, quantity)]


def refitted(train: Sequence[Record], test: Sequence[Record], device: DeviceModel) -> list[tuple[float, float]]:
    """Step times of `test` with the roofline's constants fitted on those of `train`."""
    samples = [(*_timing(record), record["measured"]["step_seconds"]) for record in _timed(train)]
    constants: Constants = fit(device, samples, "one half of the records") if samples else Constants()
    return [
        (step_time(device, *_timing(record), constants).seconds, float(record["measured"]["step_seconds"]))
        for record in _timed(test)
    ]


def _timed(records: Sequence[Record]) -> list[Record]:
    return [
        record
        for record in records
        if record["predicted"].get("timing")
        and record["measured"]["outcome"] == "COMPLETED"
        and record["measured"]["step_seconds"]
    ]


def _timing(record: Record) -> tuple[Operations, Operations, Job]:
    kept: dict[str, Any] = record["predicted"]["timing"]
    job = dict(kept["job"])
    job["offload"] = Offload(**job["offload"]) if job.get("offload") else None
    return _operations(kept["micro_step"]), _operations(kept["optimizer"]), Job(**job)


def _operations(kept: dict[str, Any]) -> Operations:
    columns = [np.array(kept[name], dtype=float) for name in ("flops", "bytes", "count")]
    matrix = None if kept["matrix"] is None else np.array(kept["matrix"], dtype=bool)
    return Operations(columns[0], columns[1], columns[2], matrix)


def counted(records: Sequence[Record], of: Callable[[Record], str]) -> dict[str, int]:
    """How many records there are of each kind."""
    found: dict[str, int] = {}
    for record in records:
        found[of(record)] = found.get(of(record), 0) + 1
    return found
