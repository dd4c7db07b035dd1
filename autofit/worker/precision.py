"""Which dtype the weights have, as Trainer and LLaMA-Factory 0.9.5 really prepare them (`model/adapter.py` there)."""

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Dtypes:
    """How one configuration computes."""

    base: torch.dtype
    """Every weight as it is built; frozen weights stay so."""
    trainable: torch.dtype
    """Weights that are trained, before DeepSpeed takes them."""
    autocast: torch.dtype | None
    """What Trainer's autocast computes in; None: no autocast."""
    deepspeed: str | None
    """The section (`bf16` or `fp16`) that DeepSpeed's configuration enables; None: neither."""
    words: str
    """`precision_mode` in words."""


def dtypes(trial: dict[str, Any]) -> Dtypes:
    """The dtypes of a trial spec.

    Without DeepSpeed `bf16: true` means fp32 masters of what is trained, under autocast; with it, weights in bf16 and
    DeepSpeed's own fp32 masters. LLaMA-Factory casts trained weights up to fp32 under ZeRO-1/2 as well, but DeepSpeed casts
    them back when it starts, so they are left alone here.
    """
    precision, zero_stage = trial["precision"], trial["zero_stage"]
    if precision == "fp32":
        return Dtypes(torch.float32, torch.float32, None, None, "fp32 throughout")
    half = torch.bfloat16 if precision == "bf16" else torch.float16
    if trial["pure_bf16"] and zero_stage:
        # DeepSpeed is not told of bf16 then, and its ZeRO optimizer keeps an fp32 copy of what it updates all the same.
        return Dtypes(half, half, None, None, f"{precision} weights, ZeRO's fp32 masters (pure_bf16 does not remove them)")
    if trial["pure_bf16"]:
        return Dtypes(half, half, None, None, f"pure {precision}: weights, gradients and moments, no fp32 masters")
    if zero_stage:
        words = f"{precision} weights, DeepSpeed fp32 masters"
        return Dtypes(half, half, None, precision, words)
    return Dtypes(half, torch.float32, half, None, f"{precision} autocast, fp32 masters of what is trained")
