"""Which LLaMA-Factory chat template fits a model. A wrong one trains garbage without an error, so nothing is guessed."""

from autofit.config.model import Model
from autofit.errors import UsageError

BY_MODEL_TYPE = {
    "qwen2": "qwen",
    "qwen2_moe": "qwen",
    "qwen2_vl": "qwen2_vl",
    "qwen2_5_vl": "qwen2_vl",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3",
    "gemma3_text": "gemma3",
    "mllama": "mllama",
    "llama4": "llama4",
}
"""As LLaMA-Factory 0.9.5 registers its models (`extras/constants.py`). Types that several templates share are below."""

LLAMA_3_VOCABULARY = 128_256


def template_for(model: Model) -> str:
    """The template of `model`.

    Raises:
        UsageError: its type is unknown or used by models with different templates; names the key to set.
    """
    config = model.config or {}
    model_type = str(config.get("model_type", ""))
    name = (model.id or model.label).lower()
    if "deepseek-r1" in name:  # distilled into Qwen2 and Llama models, with a template of its own
        return "deepseekr1"
    if model_type == "llama" and config.get("vocab_size") == LLAMA_3_VOCABULARY:
        return "llama3"
    if model_type in {"qwen3_vl", "qwen3_vl_moe"} and ("instruct" in name or "thinking" in name):
        return "qwen3_vl" if "thinking" in name else "qwen3_vl_nothink"
    if model_type in {"qwen3", "qwen3_moe"} and "instruct" in name:
        return "qwen3_nothink"
    if model_type in BY_MODEL_TYPE:
        return BY_MODEL_TYPE[model_type]
    raise UsageError(
        f"the chat template of {model.label} (model_type {model_type or 'unknown'}) is not certain; "
        "set dataset: {name: ..., template: ...} in the search space to a LLaMA-Factory template name"
    )
