"""How long the allocator replay takes for 100 thousand events, and how much an epoch of changing lengths costs.

The events resemble a training step: weights that stay, activations freed in reverse order, temporaries, gradients.
Writes benchmarks/results/allocator_speed.json.
"""

import json
import platform
import time
from pathlib import Path

import numpy as np

from autofit.predict.allocator import Events, replay
from autofit.predict.epoch import replay_epoch

LAYERS, PER_LAYER = 28, 40
STORED = Path(__file__).parent / "results" / "allocator_speed.json"


def first_step(weights: int = 700) -> Events:
    rng = np.random.default_rng(0)
    sizes = rng.choice([2**13, 2**21, 25 * 2**20, 130 * 2**20], weights)
    return Events(np.arange(weights, dtype=np.int64), sizes.astype(np.int64))


def steady_step(tokens: int) -> Events:
    """About 4 thousand events of one step of `tokens` tokens."""
    ids: list[int] = []
    sizes: list[int] = []
    number = 10_000
    kept: list[tuple[int, int]] = []
    for _ in range(LAYERS):
        for k in range(PER_LAYER):
            size = tokens * (7168, 37888, 1024, 14336)[k % 4]
            ids.append(number)
            sizes.append(size)
            if k % 4:
                ids.append(number)
                sizes.append(-size)
            else:
                kept.append((number, size))
            number += 1
    for name, size in reversed(kept):
        ids += [number, name, number]
        sizes += [size, -size, -size]
        number += 1
    return Events(np.array(ids, dtype=np.int64), np.array(sizes, dtype=np.int64))


def measure() -> dict[str, object]:
    first, step = first_step(), steady_step(2048)
    times = -(-100_000 // len(step.ids))
    shift = np.repeat(np.arange(times) * 100_000, len(step.ids))
    ids = np.concatenate([first.ids, np.tile(step.ids, times) + shift])
    joined = Events(ids, np.concatenate([first.sizes, np.tile(step.sizes, times)]))
    figures: dict[str, object] = {"events": len(joined.ids)}
    for name, options in {
        "unlimited": {},
        "expandable": {"expandable": True},
        "capacity": {"capacity_bytes": replay(joined).peak_reserved_bytes},
    }.items():
        begin = time.process_time()
        replay(joined, **options)  # type: ignore[arg-type]
        figures[f"{name}_seconds"] = round(time.process_time() - begin, 3)
    rng = np.random.default_rng(1)
    variants = [steady_step(64 * k) for k in range(8, 33)]
    order = rng.integers(0, len(variants), 2000).tolist()
    begin = time.process_time()
    result = replay_epoch(first, variants, order).total
    figures["epoch"] = {
        "steps": len(order),
        "lengths": len(variants),
        "events": sum(len(variants[k].ids) for k in order),
        "seconds": round(time.process_time() - begin, 2),
        "peak_allocated_bytes": result.peak_allocated_bytes,
        "peak_reserved_bytes": result.peak_reserved_bytes,
    }
    return figures


def main() -> None:
    record = {"machine": platform.processor() or platform.machine(), "python": platform.python_version(), **measure()}
    STORED.parent.mkdir(exist_ok=True)
    STORED.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
