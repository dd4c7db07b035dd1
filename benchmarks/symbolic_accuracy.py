"""Symbolic traces, made at reduced depth, against whole traces at full depth and random shapes, for every shipped space.

Per space the first variants of its legal space that differ in method or checkpointing; per variant a few random shapes: largest
relative difference of the allocated peak, of FLOPs and of bytes moved. Exits 1 above 0.05 % in a peak.

    python benchmarks/symbolic_accuracy.py [--variants 2] [--shapes 2] [--space NAME ...]
"""

import argparse
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_DISABLE_TORCH_CHECK", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np

from autofit.config.model import Model, resolve_model
from autofit.config.space import SearchSpace, enumerate_space
from autofit.config.trial import TrialSpec
from autofit.predict.symbolic import SymbolicTrace
from autofit.predict.variants import request, sliding_window, structure
from autofit.worker.trace import trace

SPACES = ("llama_text", "qwen2_vl_7b", "qwen2_5_vl_7b", "tiny_qwen2_5_vl")
LIMIT = 5e-4
RESULTS = Path(__file__).parent / "results" / "symbolic_accuracy.json"


def variants_of(space: SearchSpace, model: Model, count: int) -> list[TrialSpec]:
    """The reference, then specs of other methods and checkpointing."""
    legal = enumerate_space(space, model, 1)
    found: dict[str, TrialSpec] = {}
    for spec in (legal.reference, *legal.points):
        found.setdefault(json.dumps([spec.method, spec.gradient_checkpointing]), spec)
    return list(found.values())[:count]


def random_shape(draw: random.Random, images: bool) -> dict[str, Any]:
    """A batch like none of the calibration's: images are whole windows, as large as fit."""
    batch = draw.choice((1, 2, 3, 6))
    length = 8 * draw.randrange(100, 500)
    sides = [8 * draw.randrange(1, 5) for _ in range(batch)] if images else []
    return {"micro_batch_size": batch, "cutoff_len": length, "grids": [[1, side, side] for side in sides]}


def compare(symbolic: SymbolicTrace, order: dict[str, Any], shape: dict[str, Any]) -> dict[str, Any]:
    """Relative differences at one shape."""
    document = trace(order | {"trace": order["trace"] | {"depth": "full", "shapes": [shape]}})
    group = document["groups"][0]
    sizes = -(-np.asarray(group["storages"]["bytes"][0]) // 512) * 512
    peak = int(np.cumsum(sizes[group["events"]["storage"]] * np.asarray(group["events"]["kind"])).max())
    patches = sum(rows * columns for _, rows, columns in shape["grids"])
    at = (shape["micro_batch_size"], shape["cutoff_len"], patches)
    found = symbolic.peak(*at)
    squares = sum((rows * columns) ** 2 for _, rows, columns in shape["grids"])
    micro, optimizer = symbolic.operations(*at, images=patches**2 / squares if squares else 1)
    steps = symbolic.metadata["micro_steps_traced"]
    flops = micro.total_flops * steps + optimizer.total_flops
    moved = float((micro.bytes * micro.count).sum() * steps + (optimizer.bytes * optimizer.count).sum())
    operations = group["operations"]
    true_moved = sum(operations["bytes_read"][0]) + sum(operations["bytes_written"][0])
    return {
        **shape,
        "peak_bytes": peak,
        "peak": found.peak_bytes / peak - 1,
        "flops": flops / sum(operations["flops"][0]) - 1,
        "bytes": moved / true_moved - 1,
    }


def main() -> int:
    """Prints and writes the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--variants", type=int, default=2)
    parser.add_argument("--shapes", type=int, default=2)
    parser.add_argument("--space", action="append")
    options = parser.parse_args()
    draw = random.Random(20)
    rows = []
    for name in options.space or SPACES:
        space = SearchSpace.load(name)
        model = resolve_model(space.model)
        for spec in variants_of(space, model, options.variants):
            order = request(spec, model)
            started = time.process_time()
            document = trace(order)
            traced = time.process_time() - started
            symbolic = SymbolicTrace.from_document(document, sliding_window(model))
            fitted = time.process_time() - started - traced
            started = time.perf_counter()
            lengths = np.arange(8, 80_008, 8)
            symbolic.peaks(2, lengths, 256)
            rate = len(lengths) / (time.perf_counter() - started)
            images = bool(structure(spec, model)["images"])
            for _ in range(options.shapes):
                row = compare(symbolic, order, random_shape(draw, images))
                rows.append({"space": name, "method": spec.method, "checkpointing": spec.gradient_checkpointing, **row})
                rows[-1] |= {"depth": document["metadata"]["depth"], "trace_cpu_s": round(traced, 2)}
                rows[-1] |= {"fit_cpu_s": round(fitted, 2), "peaks_per_second": round(rate)}
                print(json.dumps(rows[-1]), flush=True)
    worst = max(abs(row["peak"]) for row in rows)
    print(f"{len(rows)} shapes, largest difference of a peak {worst:.4%}, limit {LIMIT:.2%}")
    RESULTS.write_text(json.dumps({"worst_peak": worst, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    return 1 if worst > LIMIT else 0


if __name__ == "__main__":
    sys.exit(main())
