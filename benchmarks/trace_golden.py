"""Golden figures of 7B models, traced at full depth without their weights; exits 1 when one is missed.

Qwen2-7B shape, one sequence of 2048 tokens, gradient checkpointing, pure bf16: allocated GiB at the steady peak with AdamW over
all tensors together, one tensor at a time, and fused. Qwen2.5-VL-7B: parameters.

    python benchmarks/trace_golden.py
"""

import os
import sys

os.environ.setdefault("TRANSFORMERS_DISABLE_TORCH_CHECK", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np

from autofit.config.model import resolve_model
from autofit.config.trial import TrialSpec
from autofit.worker.trace import trace

GOLDEN = (
    ("AdamW foreach", "adamw_torch", True, 70.93),
    ("AdamW one tensor at a time", "adamw_torch", False, 58.77),
    ("AdamW fused", "adamw_torch_fused", True, 56.75),
)
PARAMETERS = 8_292_166_656
SHAPE = {"micro_batch_size": 1, "cutoff_len": 2048}


def traced(spec: TrialSpec, foreach: bool) -> tuple[float, int]:
    """(peak GiB in blocks of 512 bytes, parameters)."""
    order = {"trial": spec.model_dump(mode="json"), "model": resolve_model(spec.model).model_dump(mode="json")}
    document = trace(order | {"trace": {"shapes": [SHAPE], "foreach": foreach}})
    group = document["groups"][0]
    sizes = -(-np.asarray(group["storages"]["bytes"][0]) // 512) * 512
    use = np.cumsum(sizes[group["events"]["storage"]] * np.asarray(group["events"]["kind"]))
    return float(use.max()) / 2**30, int(document["metadata"]["parameters"]["total"])


def main() -> int:
    """Prints each figure beside the golden one."""
    missed = 0
    for name, optimizer, foreach, golden in GOLDEN:
        peak, _ = traced(TrialSpec(model={"preset": "qwen2-7b"}, pure_bf16=True, optimizer=optimizer), foreach)
        missed += abs(peak / golden - 1) > 0.01
        print(f"qwen2-7b pure bf16 {name}: {peak:.2f} GiB, golden {golden:.2f}, {peak / golden - 1:+.2%}")
    peak, _ = traced(TrialSpec(model={"preset": "qwen2-7b"}), True)
    print(f"qwen2-7b bf16 autocast, fp32 masters, AdamW foreach: {peak:.2f} GiB")
    _, parameters = traced(TrialSpec(model={"preset": "qwen2.5-vl-7b"}, pure_bf16=True, images={"per_sample": 0}), True)
    missed += parameters != PARAMETERS
    print(f"qwen2.5-vl-7b: {parameters:,} parameters, golden {PARAMETERS:,}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
