"""Which dtype the weights have, as Trainer and LLaMA-Factory 0.9.5 really prepare them (`model/adapter.py` there)."""

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Dtypes:
    """How one configuration computes."""

    base: torch.dtype
    """Every weight as it is built; frozen weights stay so."""
    trainable: torch.dtype | None
    """Weights that are trained, before DeepSpeed takes them; None: as they are built, adapters as PEFT makes them (fp32)."""
    autocast: torch.dtype | None
    """What Trainer's autocast computes in; None: no autocast."""
    deepspeed: str | None
    """The section (`bf16` or `fp16`) that DeepSpeed's configuration enables; None: neither."""
    words: str
    """`precision_mode` in words."""


def dtypes(trial: dict[str, Any], stored: torch.dtype | None = None) -> Dtypes:
    """The dtypes of a trial spec.

    Without DeepSpeed `bf16: true` means fp32 masters of what is trained, under autocast; with it, weights in bf16 and
    DeepSpeed's own fp32 masters. LLaMA-Factory casts trained weights up to fp32 under ZeRO-1/2 as well, but DeepSpeed casts
    them back when it starts, so they are left alone here. `pure_bf16` only leaves that cast out: PEFT (from 0.12 on) makes
    adapters in fp32 all the same. Seen by running LLaMA-Factory: `benchmarks/llamafactory_bytes.py` lists what it prepared.

    Args:
        stored: what the model's files hold. LLaMA-Factory loads with dtype "auto", so that a model stored in fp32 keeps its
            frozen weights in fp32, and under `pure_bf16` all of them. None (not known): half precision, as published
            models are. fp32 training is fp32 throughout whatever is stored; LLaMA-Factory would leave frozen weights alone.
    """
    precision, zero_stage = trial["precision"], trial["zero_stage"]
    if precision == "fp32":
        return Dtypes(torch.float32, torch.float32, None, None, "fp32 throughout")
    half = torch.bfloat16 if precision == "bf16" else torch.float16
    if zero_stage and not trial["pure_bf16"]:
        return Dtypes(half, half, None, precision, f"{precision} weights, DeepSpeed fp32 masters")
    base = stored or half
    name = precision if base == half else str(base).removeprefix("torch.")
    kept = "" if base == half else f"; weights load in {name}, as they are stored"
    adapters = ", fp32 adapters (PEFT's default)" if trial["method"] == "lora" else ""
    if trial["pure_bf16"] and zero_stage:
        # DeepSpeed is not told of bf16 then, and its ZeRO optimizer keeps an fp32 copy of what it updates all the same.
        words = f"{name} weights{adapters}, ZeRO's fp32 masters (pure_bf16 does not remove them){kept}"
        return Dtypes(base, None, None, None, words)
    if trial["pure_bf16"]:
        words = f"{name} weights, no autocast{adapters}" if adapters else "weights, gradients and moments, no fp32 masters"
        return Dtypes(base, None, None, None, f"pure {precision}: {words}{kept}")
    words = f"{precision} autocast, fp32 masters of what is trained{kept}"
    return Dtypes(base, torch.float32, half, None, words)
