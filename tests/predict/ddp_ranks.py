"""A small model under DistributedDataParallel and alone, on two gloo ranks: what `test_ddp.py` starts."""

import argparse
import gc
import json
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from benchmarks.zero_accuracy import FRESH, allocations, build, mark, sections


def measured(name: str, *, parallel: bool) -> dict[str, int]:
    """Bytes between steps and at the peak of forward and backward, in the fourth step: DDP rebuilds buckets in the second."""
    case = next(case for case in FRESH if case.name == name)
    gc.collect()
    with allocations() as events:
        model = build(case)
        gradients = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
        # Without the first broadcast of the weights: gloo's thread may be the last to let go of its buffer, and `allocations`
        # sees what this thread frees, and no other.
        net = DistributedDataParallel(model, init_sync=False) if parallel else model
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], foreach=False)
        ids = torch.randint(0, case.vocab, (case.tokens,))
        for step in range(4):
            if step == 3:
                mark(1)
            loss = net(ids)
            loss.backward()
            del loss
            if step == 3:
                mark(2)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        mark(3)
    rows = sections(events)
    peak = max(max(curve) for number, curve in rows if number == 1)
    return {"gradients": gradients, "resident": rows[-1][1][0], "peak": peak}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rank", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", action="append")
    arguments = parser.parse_args()
    dist.init_process_group("gloo")
    torch.autograd.set_multithreading_enabled(False)
    rows = [{kind: measured(name, parallel=kind == "ddp") for kind in ("alone", "ddp")} for name in arguments.only]
    arguments.out.with_suffix(f".{os.environ['RANK']}").write_text(json.dumps(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
