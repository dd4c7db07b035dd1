"""`make gpu-evidence`: runs the parts one after the other, each within its time limit; what is recorded is not run again.

    python -m benchmarks.gpu.evidence [--device cuda] [--part accuracy ...] [--python INTERPRETER] [--limit 480]

Records: `benchmarks/results/gpu/*.jsonl` on a GPU; on a CPU, whose run is a rehearsal, `.gpu-evidence/cpu/*.jsonl`, which git
ignores. Exit status: 0 all parts are complete, 1 a part failed, 3 the time was over first: call it again.
"""

import argparse
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from autofit.errors import AutofitError
from autofit.launch import gpus
from autofit.launch.environment import probe
from benchmarks.gpu import accuracy, budgets, growth, safety, search, tables, warm
from benchmarks.gpu.place import ROOT, OutOfTimeError, Place, commit
from benchmarks.gpu.workload import workload

LIMIT_SECONDS = 480.0
Part = Callable[[Place], tuple[int, int]]
PARTS: dict[str, Part] = {
    "accuracy": accuracy.run,
    "budgets": budgets.run,
    "safety": safety.run,
    "growth": growth.run,
    "search": search.run,
    "warm": warm.run,
}
LEASED_BY_THE_SEARCH = frozenset({"search", "warm"})
WORK = ROOT / ".gpu-evidence"


def main(arguments: list[str] | None = None) -> int:
    """See the module."""
    given = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    for name, value in (("HF_HUB_OFFLINE", "1"), ("TOKENIZERS_PARALLELISM", "false")):  # every model is made here
        os.environ.setdefault(name, value)
    try:
        place = place_of(given)
    except AutofitError as error:
        sys.stderr.write(f"gpu-evidence: {error}\n")
        return 1
    print(f"{place.device.name} ({place.kind}), {_versions(place)}, commit {place.commit}", flush=True)
    try:
        ended = {name: _call(name, PARTS[name], place) for name in given.part or PARTS}
    except KeyboardInterrupt:
        sys.stderr.write("gpu-evidence: stopped; what is recorded is kept\n")
        return 130
    print()
    for name, (state, words) in ended.items():
        print(f"{name:10s} {state:10s} {words}")
    if place.kind == "cpu":
        print("\nA rehearsal on a CPU: no figure of it is a GPU's.")
    print()
    print(tables.render(place.records))
    states = {state for state, _ in ended.values()}
    return 1 if "failed" in states else 3 if "unfinished" in states else 0


def place_of(given: argparse.Namespace) -> Place:
    """Raises AutofitError where there is no such device, or the interpreter cannot train."""
    hardware = gpus.detect(given.device, 1)
    environment = probe(given.python)
    if missing := environment.missing({"lora"}, {0}):
        raise AutofitError(
            f"{given.python} lacks {', '.join(missing)}: unpack `make gpu-bundle` there, or name another --python"
        )
    work = WORK / "work" / given.device
    records = given.records or (WORK / "cpu" if given.device == "cpu" else ROOT / "benchmarks" / "results" / "gpu")
    work.mkdir(parents=True, exist_ok=True)
    return Place(
        kind=given.device,
        hardware=hardware,
        environment=environment,
        load=workload(given.device),
        records=records.resolve(),
        work=work,
        commit=commit(),
        seed=given.seed,
        limit_seconds=given.limit,
    )


def _call(name: str, part: Part, place: Place) -> tuple[str, str]:
    """(state, words): one part to its end, or to that of its time."""
    print(f"{name} ...", flush=True)
    started = time.monotonic()
    place.begin()
    try:
        with nullcontext() if name in LEASED_BY_THE_SEARCH else gpus.lease(place.hardware, f"gpu-evidence {name}"):
            done, planned = part(place)
    except OutOfTimeError:
        recorded = len(place.ledger(name).mine())
        return "unfinished", f"{recorded} records after {time.monotonic() - started:.0f} s; call it again"
    except Exception as error:  # noqa: BLE001 - one part's failure is reported, and the others still run
        traceback.print_exc()
        return "failed", f"{type(error).__name__}: {error}"
    return "complete", f"{done} of {planned} recorded, {time.monotonic() - started:.0f} s"


def _interrupt(number: int, frame: object) -> None:
    """SIGTERM ends what runs as Ctrl-C does: trials and searches are ended, what is recorded is kept."""
    raise KeyboardInterrupt


def _versions(place: Place) -> str:
    return ", ".join(f"{name} {version}" for name, version in place.environment.versions.items())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gpu-evidence", description="Evidence from a real GPU; on a CPU a rehearsal.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--part", action="append", choices=list(PARTS), help="one part; again for another; default: all")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the training environment")
    parser.add_argument("--limit", type=float, default=LIMIT_SECONDS, help="seconds that a part may take in one call")
    parser.add_argument("--records", type=Path, default=None, help="folder of the records")
    parser.add_argument("--seed", type=int, default=0, help="of the configurations that are drawn")
    return parser


if __name__ == "__main__":
    sys.exit(main())
