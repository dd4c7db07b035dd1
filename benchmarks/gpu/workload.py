"""The models and sizes that the parts run: those of the issue on a GPU, tiny ones of the same classes on a CPU."""

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autofit.config.model import ModelRef, resolve_model

SPACES = Path(__file__).parent / "spaces"
GIB, MIB = 2**30, 2**20


def cut(preset: str, layers: int, vision_depth: int | None = None, **text: Any) -> ModelRef:
    """A preset with fewer layers: every block is what it is in the deep model, so what holds here holds there."""
    config = copy.deepcopy(resolve_model(ModelRef(preset=preset)).config)
    assert config is not None
    words = config.get("text_config", config)
    words |= {"num_hidden_layers": layers, **text}
    if vision_depth is not None:
        vision = config["vision_config"]
        vision["depth"] = vision_depth
        if "fullatt_block_indexes" in vision:
            full = [place for place in vision["fullatt_block_indexes"] if place < vision_depth]
            vision["fullatt_block_indexes"] = full or [vision_depth - 1]
    return ModelRef(config=config)


def _tiny_old_vision() -> ModelRef:
    """Qwen2-VL's architecture at the size of the tiny Qwen2.5-VL."""
    config = json.loads(json.dumps(resolve_model(ModelRef(preset="tiny-qwen2.5-vl")).config))
    config["model_type"], config["architectures"] = "qwen2_vl", ["Qwen2VLForConditionalGeneration"]
    config["text_config"]["model_type"] = "qwen2_vl_text"
    config["vision_config"] = {
        "model_type": "qwen2_vl",
        "depth": 4,
        "embed_dim": 128,
        "hidden_size": 256,
        "mlp_ratio": 4,
        "num_heads": 4,
        "hidden_act": "quick_gelu",
        "in_channels": 3,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    return ModelRef(config=config)


@dataclass(frozen=True)
class Workload:
    """What is run on one kind of device."""

    vision: ModelRef
    """Qwen2.5-VL."""
    vision_cut: ModelRef
    """The same, so shallow that all of it can be trained."""
    old_vision: ModelRef
    """Qwen2-VL, without window attention."""
    texts: tuple[ModelRef, ...]
    texts_cut: tuple[ModelRef, ...]
    counts: dict[str, int]
    """Family of configurations (`sampler.FAMILIES`) -> how many are measured."""
    draws: int
    """Candidates that are drawn for each that is measured; those that are predicted not to fit the card are passed over."""
    micro_batches: tuple[int, ...]
    cutoffs: tuple[int, ...]
    text_cutoffs: tuple[int, ...]
    pixels: tuple[int, ...]
    timed_steps: int
    cards: dict[str, int]
    """Label -> bytes of the cards that are emulated."""
    ladder_bases: int
    """Configurations whose micro-batch is raised until the card is full."""
    growth_steps: int
    growth_cutoffs: tuple[int, ...]
    growth_pixels: tuple[int, ...]
    space: Path
    """What is searched."""
    search: tuple[str, ...]
    """Arguments of `autofit search`."""
    comparison_trials: int
    """Trials that warm and fresh processes both run."""
    victim: ModelRef
    """A text model whose weights, not activations, fill the memory: what is broken in part `safety`."""
    victim_many: tuple[int, int]
    """(micro-batch, cutoff) whose activations are several times the victim's weights."""


def workload(device: str) -> Workload:
    """For `cuda` or `cpu`."""
    return _gpu() if device == "cuda" else _cpu()


def _gpu() -> Workload:
    return Workload(
        vision=ModelRef(preset="qwen2.5-vl-7b"),
        vision_cut=cut("qwen2.5-vl-7b", 4, 8),
        old_vision=ModelRef(preset="qwen2-vl-7b"),
        texts=(ModelRef(preset="qwen2-7b"), ModelRef(preset="llama-3.1-8b")),
        texts_cut=(cut("qwen2-7b", 4), cut("llama-3.1-8b", 6)),
        counts={"vision_lora": 16, "vision_full": 8, "text_lora": 6, "text_full": 6, "zero": 6, "attention": 6},
        draws=2,
        micro_batches=(1, 2, 4),
        cutoffs=(1024, 2048, 4096),
        text_cutoffs=(1024, 2048, 4096, 8192),
        pixels=(262_144, 589_824, 1_048_576),
        timed_steps=5,
        cards={"24GB": 24 * GIB, "48GB": 48 * GIB, "80GB": 80 * GIB},
        ladder_bases=4,
        growth_steps=500,
        growth_cutoffs=tuple(range(512, 2049, 128)),
        growth_pixels=(65_536, 147_456, 262_144, 401_408),
        space=SPACES / "qwen2_5_vl_7b_lora.yaml",
        search=("--gpu-mem", "80GB", "--trials", "8"),
        comparison_trials=8,
        victim=cut("qwen2-7b", 2, vocab_size=32_000, bos_token_id=1, eos_token_id=2),
        victim_many=(4, 4096),
    )


def _cpu() -> Workload:
    return Workload(
        vision=ModelRef(preset="tiny-qwen2.5-vl"),
        vision_cut=cut("tiny-qwen2.5-vl", 3, 3),
        old_vision=_tiny_old_vision(),
        texts=(ModelRef(preset="tiny-llama"),),
        texts_cut=(cut("tiny-llama", 3),),
        counts={"vision_lora": 1, "vision_full": 1, "text_lora": 1, "text_full": 1, "zero": 1, "attention": 1},
        draws=1,
        micro_batches=(1, 2),
        cutoffs=(128, 192),
        text_cutoffs=(128, 256),
        pixels=(12_544, 50_176),
        timed_steps=2,
        cards={"160MB": 160 * MIB, "240MB": 240 * MIB},
        ladder_bases=1,
        growth_steps=24,
        growth_cutoffs=(96, 128, 160, 192),
        growth_pixels=(12_544, 25_088, 50_176),
        space=SPACES / "tiny.yaml",
        search=("--gpu-mem", "1GB", "--trials", "2"),
        comparison_trials=2,
        victim=cut("tiny-llama", 4, hidden_size=512, intermediate_size=1536, vocab_size=8192, num_attention_heads=8),
        victim_many=(2, 512),
    )
