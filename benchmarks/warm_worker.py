"""Trials forked from a warm worker against trials of processes of their own: the same configurations, three times.

    python -m benchmarks.warm_worker [--set short|text|vl] [--count 24] [--record FILE]

Runs each configuration in new processes, forked, and in new processes once more; the order of the three changes from one
configuration to the next, so that other load on the machine meets all alike. The second fresh run tells how far two
measurements of the same configuration lie apart without any forking. Memory is measured by `ruler.py`. Prints, of all
configurations: wall time of forked trials against fresh ones, the server's start included; the difference of peaks and of
samples per second, forked against the mean of the two fresh runs, beside that of the two; and outcomes that differ.

Sets: `short` and `text` are a tiny Llama, one rank, of which micro-batch, accumulation and cutoff_len vary; `vl` is the tiny
Qwen2.5-VL of `make demo`, two ranks, of which ZeRO stage, method and checkpointing vary too. Forking saves a trial's start and
nothing of its steps, so how many times less wall time it takes depends on how long those are: all of a trial of `short` take
a fifth of a fresh start or less, most of `text` as long as one. `start_ratio` compares what is left of both without the steps.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autofit.config.hardware import Device, Hardware
from autofit.config.model import ModelRef, resolve_model
from autofit.config.result import TrialResult
from autofit.config.trial import Images, Measure, RunSpec, TrialSpec
from autofit.launch.local import LocalExecutor
from benchmarks import ruler

MIB = 2**20

BUDGETS_MIB = {"short": 110, "text": 120, "vl": 165}
"""So that some of each set are out of memory."""
STEPS = Measure(warmup_steps=1, steps=3)
SAMPLES = {"short": 4, "text": 8}
"""Of an optimizer step."""
LENGTHS = {"short": (8, 12, 16, 20, 24, 32, 40, 48), "text": (32, 48, 64, 96, 128, 192)}
LIMITS = {"wall": 5.0, "peak": 0.01, "throughput": 0.05}


def trials(kind: str) -> list[TrialSpec]:
    """At least 24 configurations of a set, those that differ least next to each other."""
    if kind in SAMPLES:
        batches = [(micro, SAMPLES[kind] // micro) for micro in (1, 2, 4, 8) if micro <= SAMPLES[kind]]
        fields = [
            {"micro_batch_size": micro, "gradient_accumulation_steps": rest, "cutoff_len": length}
            for length, (micro, rest) in itertools.product(LENGTHS[kind], batches)
        ]
        return [_trial("tiny-llama", 1, per_sample=0, **each) for each in fields]
    mixed: list[dict[str, Any]] = [
        {
            "zero_stage": stage,
            "method": method,
            "gradient_checkpointing": checkpointing,
            "micro_batch_size": micro,
            "gradient_accumulation_steps": 4 // micro,
            "cutoff_len": 96,
        }
        for stage, method, checkpointing, micro in itertools.product((0, 2, 3), ("full", "lora"), (True, False), (1, 4))
    ]
    return [_trial("tiny-qwen2.5-vl", 2, per_sample=1, **each) for each in mixed]


def _trial(preset: str, ranks: int, per_sample: int, **fields: Any) -> TrialSpec:
    images = Images(per_sample=per_sample, max_pixels=50176)
    common: dict[str, Any] = {"precision": "fp32", "attention": "sdpa", "num_gpus": ranks, "images": images}
    return TrialSpec(model=ModelRef(preset=preset), **common, **fields)


def _run(executor: LocalExecutor, spec: RunSpec, folder: Path, *, fresh: bool) -> dict[str, Any]:
    started = time.perf_counter()
    result: TrialResult = executor.run(folder, spec, lambda _: None, fresh=fresh)
    seconds = time.perf_counter() - started
    figures = {"outcome": result.outcome, "peak_device_bytes": result.peak_device_bytes, "seconds": seconds}
    steps = (result.step_time_seconds or 0.0) * (STEPS.warmup_steps + STEPS.steps)
    return figures | {"samples_per_second": result.samples_per_second, "step_seconds": steps}


def measure(kind: str, count: int) -> list[dict[str, Any]]:
    """Every configuration's three runs."""
    specs = trials(kind)[:count]
    ranks = specs[0].num_gpus
    device = Device(index=0, uuid="cpu", name=platform.machine(), memory_bytes=2**34)
    hardware = Hardware(device="cpu", devices=(device,) * ranks, cpu_count=os.cpu_count() or 1, host_memory_bytes=2**34)
    said: list[str] = []
    rows = []
    with (
        tempfile.TemporaryDirectory() as temporary,
        LocalExecutor(sys.executable, hardware, warm=True, say=said.append) as executor,
    ):
        for number, trial in enumerate(specs):
            spec = RunSpec(
                trial=trial,
                model=resolve_model(trial.model),
                device="cpu",
                measure=STEPS,
                memory_budget_bytes=BUDGETS_MIB[kind] * MIB,
            )
            ways = ["fresh", "forked", "again"]
            row: dict[str, Any] = {"trial": trial.model_dump(mode="json", exclude={"model", "images", "lora"})}
            for way in ways[number % 3 :] + ways[: number % 3]:
                row[way] = _run(executor, spec, Path(temporary) / f"{number}-{way}", fresh=way != "forked")
            rows.append(row)
            print(number, *(f"{way}: {row[way]['outcome']} {row[way]['seconds']:.1f} s" for way in ways), flush=True)
    if said:
        raise SystemExit(f"trials that should have been forked were not: {said}")
    return rows


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the rows say together."""
    fresh = [(row["fresh"]["seconds"] + row["again"]["seconds"]) / 2 for row in rows]
    forked = [row["forked"]["seconds"] for row in rows]
    whole = [row for row in rows if _completed(row)]
    starts = {way: sum(row[way]["seconds"] - row[way]["step_seconds"] for row in whole) for way in ("fresh", "again", "forked")}
    outcomes = [{row[way]["outcome"] for way in ("fresh", "again", "forked")} for row in rows]
    return {
        "configurations": len(rows),
        "wall_seconds_fresh": sum(fresh),
        "wall_seconds_forked": sum(forked),
        "wall_ratio": sum(fresh) / sum(forked),
        "start_ratio": (starts["fresh"] + starts["again"]) / 2 / starts["forked"],
        "peak": _differences(rows, "peak_device_bytes"),
        "throughput": _differences(rows, "samples_per_second"),
        "outcomes": {name: sum(outcome == {name} for outcome in outcomes) for name in ("COMPLETED", "OOM")},
        "outcomes_that_differ": sum(len(outcome) > 1 for outcome in outcomes),
    }


def _differences(rows: list[dict[str, Any]], name: str) -> dict[str, float]:
    """Relative differences over the rows that completed all three times; of magnitudes the median and the highest."""
    whole = [[row[way][name] for way in ("fresh", "again", "forked")] for row in rows if _completed(row)]
    forked = [2 * warm / (one + other) - 1 for one, other, warm in whole]
    noise = [2 * (other - one) / (one + other) for one, other, _ in whole]
    return {
        "forked_mean": statistics.fmean(forked),
        "forked_median": statistics.median(map(abs, forked)),
        "forked_highest": max(map(abs, forked)),
        "fresh_median": statistics.median(map(abs, noise)),
        "fresh_highest": max(map(abs, noise)),
    }


def _completed(row: dict[str, Any]) -> bool:
    return all(row[way]["outcome"] == "COMPLETED" for way in ("fresh", "again", "forked"))


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--set", choices=sorted(BUDGETS_MIB), default="text", dest="kind")
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--record", type=Path, help="add the figures to this JSON file")
    given = parser.parse_args()
    ruler.apply()
    rows = measure(given.kind, given.count)
    found = summary(rows)
    print(json.dumps(found, indent=1))
    print(f"wanted: wall time {LIMITS['wall']:.0f} times less; peaks within {LIMITS['peak']:.0%}, throughput within")
    print(f"{LIMITS['throughput']:.0%} on average; the same outcomes. Beside every difference stands that of two fresh runs.")
    if given.record:
        kept = json.loads(given.record.read_text()) if given.record.exists() else {}
        kept[given.kind] = {"date": datetime.now(UTC).date().isoformat(), "load": os.getloadavg()[2], **found, "rows": rows}
        given.record.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
