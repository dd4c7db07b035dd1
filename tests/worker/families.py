"""A tiny config of every model family that the trace must know, in any training environment; run as a script it traces them.

    PYTHON families.py OUT.json

OUT.json: family -> {"peak": bytes} or {"error": line}. Needs the worker and a torch stack, nothing else of the house.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "sliding_window": 128,
    "max_position_embeddings": 1024,
}
_IDS = {"image_token_id": 250, "video_token_id": 251, "vision_start_token_id": 252, "vision_end_token_id": 253}
_VISION: dict[str, Any] = {"depth": 2, "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
_MROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}


def _vision_language(kind: str, vision: dict[str, Any]) -> dict[str, Any]:
    text = TEXT | {"rope_parameters": _MROPE, "rope_scaling": _MROPE}
    return {"model_type": kind, "text_config": text, "vision_config": _VISION | vision, "tie_word_embeddings": False, **_IDS}


CONFIGS: dict[str, dict[str, Any]] = {
    **{
        name: TEXT | {"model_type": name}
        for name in ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3")
    },
    "qwen2_vl": _vision_language("qwen2_vl", {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}),
    "qwen2_5_vl": _vision_language(
        "qwen2_5_vl",
        {
            "hidden_size": 32,
            "intermediate_size": 64,
            "out_hidden_size": 64,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
    ),
    "qwen3_vl": _vision_language(
        "qwen3_vl",
        {
            "hidden_size": 32,
            "intermediate_size": 64,
            "out_hidden_size": 64,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
    ),
}
TRIAL: dict[str, Any] = {
    "method": "full",
    "lora": {"rank": 4, "target": "all"},
    "precision": "bf16",
    "pure_bf16": False,
    "optimizer": "adamw_torch",
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "cutoff_len": 256,
    "zero_stage": 0,
    "num_gpus": 1,
    "gradient_checkpointing": True,
    "freeze_vision_tower": False,
    "freeze_multi_modal_projector": False,
    "freeze_language_model": False,
    "attention": "auto",
    "fused_cross_entropy": False,
    "images": {"per_sample": 1, "max_pixels": 12544},
}


def order(family: str, **knobs: Any) -> dict[str, Any]:
    """A spec of one family for the trace."""
    return {"model": {"config": CONFIGS[family]}, "trial": TRIAL | knobs, "trace": {}}


def main() -> None:
    """Traces all of them, each in pure bf16 and under autocast with adapters."""
    os.environ["TRANSFORMERS_DISABLE_TORCH_CHECK"] = "1"
    sys.path.insert(0, str(ROOT))
    from autofit.worker.trace import trace

    found: dict[str, Any] = {}
    for family in CONFIGS:
        try:
            documents = [trace(order(family, pure_bf16=True)), trace(order(family, method="lora", freeze_vision_tower=True))]
            found[family] = [sum(document["groups"][0]["storages"]["bytes"][0]) for document in documents]
        except Exception as error:
            found[family] = f"{type(error).__name__}: {error}"
    Path(sys.argv[1]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
