"""Builds the model that a trial trains: weights, attention, freezing, adapters, dtypes, checkpointing. No Trainer here.

Shared with the tracing of memory, so that what is predicted is what is run.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from autofit.worker.checkpointing import enable_checkpointing
from autofit.worker.groups import freeze, lora_targets
from autofit.worker.precision import Dtypes, dtypes

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_STORED = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
LORA_ALPHA_FACTOR = 2
"""`lora_alpha` = 2 x rank, LLaMA-Factory's default."""


def load_config(model: dict[str, Any]) -> Any:
    """The transformers config object of a resolved model (`autofit.config.model.Model` as a dict).

    Raises:
        ValueError: a `model_type` that this transformers does not know.
    """
    from transformers import AutoConfig

    if model.get("config"):
        values = dict(model["config"])
        return AutoConfig.for_model(values.pop("model_type"), **values)
    return AutoConfig.from_pretrained(model.get("path") or model["id"])


def model_class(config: Any) -> Any:
    """The class that trains this config: image-text-to-text where there is one, else causal LM.

    Also imports the model's code, so calling it early keeps that out of what the model's memory is measured from.
    """
    from transformers import AutoModelForCausalLM
    from transformers.models.auto import modeling_auto

    images = vars(modeling_auto).get("MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING", {})  # transformers before 4.46 has none
    if type(config) in images:
        return images[type(config)]
    mapping = AutoModelForCausalLM._model_mapping
    if type(config) not in mapping:
        raise ValueError(f"model_type '{config.model_type}': this transformers has no class that trains it on text")
    return mapping[type(config)]


def text_config(config: Any) -> Any:
    """The language model's part of a config; the config itself for a text model."""
    return getattr(config, "text_config", None) or config


def build(model: dict[str, Any], trial: dict[str, Any], seed: int, device: str | torch.device) -> Any:
    """The model, ready to train on `device` (`meta` works: no weights are made up then).

    Weights come from the folder if it has any, or from the hub when only an id is known; otherwise they are random, and then
    equal for equal seeds on all ranks and under all ZeRO stages. Under ZeRO-3 transformers must know the DeepSpeed
    configuration before this is called; each weight is partitioned as it is built.

    Raises:
        NothingToTrain: everything is frozen.
    """
    config = load_config(model)
    config.use_cache = False
    text_config(config).use_cache = False  # a key-value cache would keep every layer's keys and values alive
    kinds = dtypes(trial, stored_dtype(model, config))
    loading = _loading(kinds, attention_of(config, trial))
    built = _from_weights(model, config, loading, device) or _random(config, loading, seed, device)
    if trial["gradient_checkpointing"]:
        enable_checkpointing(built)  # before the adapters: PEFT then makes the embeddings' output require a gradient
    if trial["method"] == "lora":
        built = _with_adapters(built, config.model_type, trial, seed)
    else:
        freeze(built, config.model_type, int(text_config(config).num_hidden_layers), trial)
    for parameter in built.parameters():
        if parameter.requires_grad and kinds.trainable not in (None, parameter.dtype):
            parameter.data = parameter.data.to(kinds.trainable)
    return built


def stored_dtype(model: dict[str, Any], config: Any) -> torch.dtype | None:
    """What transformers' dtype "auto" loads: the config's dtype, else that of the folder's first floating-point weights.

    None where neither is known, as with presets.
    """
    declared = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None)  # torch_dtype before 4.56
    if isinstance(declared, str):
        declared = getattr(torch, declared, None)
    if isinstance(declared, torch.dtype):
        return declared
    files = sorted(Path(model["path"]).glob("*.safetensors")) if model.get("path") else []
    return _dtype_in(files[0]) if files else None


def _dtype_in(file: Path) -> torch.dtype | None:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as weights:
        names = list(weights.keys())
        found = (str(weights.get_slice(name).get_dtype()) for name in names)
        return next((_STORED[kind] for kind in found if kind in _STORED), None)


def precision_mode(trial: dict[str, Any], stored: torch.dtype | None = None) -> str:
    """How the trial computes, in words."""
    return dtypes(trial, stored).words


def parameter_counts(model: torch.nn.Module) -> tuple[int, int]:
    """(trainable, all) parameters. Under ZeRO-3 `numel()` is 0 and DeepSpeed keeps the true size in `ds_numel`."""
    sizes = [(int(getattr(item, "ds_numel", item.numel())), item.requires_grad) for item in model.parameters()]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)


def attention_of(config: Any, trial: dict[str, Any]) -> str:
    """The trial's attention; `auto` is transformers' choice, except that LLaMA-Factory gives Gemma 2 flash or eager."""
    from transformers.utils import is_flash_attn_2_available

    if trial["attention"] == "auto" and config.model_type == "gemma2":
        return "flash_attention_2" if is_flash_attn_2_available() else "eager"
    return str(trial["attention"])


def _loading(kinds: Dtypes, attention: str) -> dict[str, Any]:
    """Arguments of from_pretrained and from_config; `dtype` was called `torch_dtype` before transformers 4.56."""
    import transformers

    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    arguments: dict[str, Any] = {"dtype" if version >= (4, 56) else "torch_dtype": kinds.base}
    if attention != "auto":
        arguments["attn_implementation"] = attention
    return arguments


def _from_weights(model: dict[str, Any], config: Any, loading: dict[str, Any], device: str | torch.device) -> Any:
    """The model with its published weights; None where there are none to be had.

    A preset has a config and an id; its weights are not fetched: time and memory do not depend on their values.
    """
    source = model.get("path")
    if source is not None and not any(any(Path(source).glob(pattern)) for pattern in _WEIGHTS):
        source = None
    if source is None and not model.get("config"):
        source = model.get("id")
    if source is None or str(device) == "meta":
        return None
    loaded = model_class(config).from_pretrained(source, config=config, **loading)
    return loaded if _zero3() else loaded.to(device)


def _random(config: Any, loading: dict[str, Any], seed: int, device: str | torch.device) -> Any:
    torch.manual_seed(seed)
    place = nullcontext() if _zero3() else torch.device(device)
    with place, _no_slow_initialisation():
        built = model_class(config)._from_config(config, **loading)
    built.tie_weights()  # transformers before 5 ties only weights that it initialises
    if str(device) != "meta":
        _fill(built, seed, float(getattr(text_config(config), "initializer_range", 0.02)))
    return built


@contextmanager
def _no_slow_initialisation() -> Iterator[None]:
    """transformers' own initialisation of random weights is left out: `_fill` replaces it."""
    try:
        from transformers.initialization import no_init_weights
    except ImportError:
        from transformers.modeling_utils import no_init_weights
    with no_init_weights():
        yield


def _fill(model: torch.nn.Module, seed: int, deviation: float) -> None:
    """Gives each weight values that depend on `seed` and its name alone: not on ranks, ZeRO stage or order of building.

    Matrices are normal with `deviation`, biases 0; other vectors (norms) keep what their constructor gave them.
    """
    for name, parameter in model.named_parameters():
        with torch.no_grad(), _whole(parameter):
            if parameter.dim() == 0 or parameter.numel() == 0:
                continue
            if parameter.dim() > 1:
                digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
                generator = torch.Generator(device=parameter.device).manual_seed(int.from_bytes(digest[:7]))
                parameter.normal_(0.0, deviation, generator=generator)
            elif name.endswith("bias"):
                parameter.zero_()


def _whole(parameter: torch.nn.Parameter) -> Any:
    """Under ZeRO-3 gathers the parameter, and partitions rank 0's values afterwards."""
    if not hasattr(parameter, "ds_id"):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter], modifier_rank=0)


def _with_adapters(model: Any, model_type: str, trial: dict[str, Any], seed: int) -> Any:
    from peft import LoraConfig, get_peft_model

    rank = int(trial["lora"]["rank"])
    torch.manual_seed(seed)
    adapters = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=LORA_ALPHA_FACTOR * rank,
        lora_dropout=0.0,
        target_modules=lora_targets(model, model_type, trial),
    )
    return get_peft_model(model, adapters)


def _zero3() -> bool:
    from transformers.integrations import is_deepspeed_zero3_enabled

    return bool(is_deepspeed_zero3_enabled())
