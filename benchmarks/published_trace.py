"""The training environment's side of published_accuracy.py: `autofit.worker trace` with what the sources did beside a spec.

    PYTHON benchmarks/published_trace.py ORDER.json ANSWER.json.gz

ORDER is what `autofit.predict.variants.request` makes, with one more key, `loop`, of the published row. Honoured here:

  lora_dropout   of the adapters; a trial's own is 0
  adapters' type PEFT >= 0.12 makes adapters fp32 over half-precision weights (`autocast_adapter_dtype`), and Trainer leaves
                 them so; a trial in pure bf16 casts them back
  flash-attn     the package of the row's day, whose functions are found by import in transformers before 4.48; stand-ins call
                 the flash kernel that the trace has
  use_cache      stays what the config says: Trainer leaves it alone, LLaMA-Factory and a trial turn it off. Llama, Mistral and
                 Granite turn it off themselves when checkpointing; gpt_bigcode does not, and its cached keys and values are
                 views that keep the whole of every layer's projection alive until the loss is done
  positions      Mistral before 4.40 reads the highest position; 0 is answered, which like the true one is less than
                 the length that it is compared with
  autocast       is off, but rotary embeddings before transformers 5 say so with the device's name, which may not be `meta`

Needs nothing but the training stack. Exit status 1 and one line on stderr: cannot be traced.
"""

import gzip
import importlib.machinery
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

_PACKAGE = Path(__file__).resolve().parents[1] / "autofit"
_AVAILABLE = ("is_flash_attn_2_available", "is_flash_attn_greater_or_equal", "is_flash_attn_greater_or_equal_2_10")


def main(argv: list[str]) -> int:
    """Traces ORDER into ANSWER."""
    order = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    package = ModuleType("autofit")  # the worker is imported without its house
    package.__path__ = [str(_PACKAGE)]
    sys.modules["autofit"] = package
    _flash_attn_package()
    from autofit.worker.trace import trace
    from autofit.worker.trace_inputs import TraceError

    _as_the_source_ran(order["trial"], order["loop"])
    try:
        document = trace(order)
    except TraceError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    document["metadata"]["adapters"] = _adapters_version()
    Path(argv[1]).write_bytes(gzip.compress(json.dumps(document).encode(), compresslevel=1))
    return 0


def _as_the_source_ran(trial: dict[str, Any], loop: dict[str, Any]) -> None:
    """Dropout of the adapters, attention by the model's own flash code."""
    import peft
    import torch

    from autofit.worker import models, trace_session

    real_config, real_build = peft.LoraConfig, trace_session.build
    dropout = float(loop.get("lora_dropout", 0.0))
    peft.LoraConfig = lambda **given: real_config(**{**given, "lora_dropout": dropout})
    flash = {"attention": "flash_attention_2"} if trial["attention"] == "flash_attention_2" else {}

    def build(model: dict[str, Any], trial: dict[str, Any], seed: int, device: str) -> Any:
        built = real_build(model, {**trial, **flash}, seed, device)
        built.config.use_cache = models.load_config(model).use_cache
        return built

    trace_session.build = build
    if flash:
        trace_session._use_flash_attention = lambda model: None
    real_autocast = torch.autocast.__init__

    def autocast(context: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        real_autocast(context, "cpu" if device_type == "meta" else device_type, *args, **kwargs)

    torch.autocast.__init__ = autocast
    real_item = torch.Tensor.item
    torch.Tensor.item = lambda tensor: 0 if tensor.is_meta and not tensor.is_floating_point() else real_item(tensor)


def _adapters_version() -> tuple[int, ...]:
    import peft

    return tuple(int(part) for part in peft.__version__.split(".")[:2])


def _flash_attn_package() -> None:
    """A package `flash_attn` that transformers of any version finds, imports and calls."""
    from transformers import utils
    from transformers.utils import import_utils

    package, padding = ModuleType("flash_attn"), ModuleType("flash_attn.bert_padding")
    for module in (package, padding):
        module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
    package.__path__ = []
    vars(package).update(flash_attn_func=_flash_attn_func, flash_attn_varlen_func=_no_padding, __version__="2.6.3")
    vars(padding).update(index_first_axis=_no_padding, pad_input=_no_padding, unpad_input=_no_padding)
    sys.modules |= {"flash_attn": package, "flash_attn.bert_padding": padding}
    for name in _AVAILABLE:
        for module in (utils, import_utils):
            if hasattr(module, name):
                setattr(module, name, lambda *args, **kwargs: True)
    try:
        from transformers import modeling_flash_attention_utils as shared
    except ImportError:  # before 4.43
        shared = None
    if shared is not None:
        real = shared._flash_attention_forward

        def forward(*args: Any, position_ids: Any = None, **kwargs: Any) -> Any:
            return real(*args, **kwargs)  # position ids are searched for packed samples, by value

        shared._flash_attention_forward = forward
    from transformers.modeling_utils import PreTrainedModel

    def enable(cls: Any, config: Any, *args: Any, **kwargs: Any) -> Any:
        config._attn_implementation = "flash_attention_2"
        return config

    PreTrainedModel._check_and_enable_flash_attn_2 = classmethod(enable)


def _flash_attn_func(
    query: Any, key: Any, value: Any, dropout_p: float = 0.0, softmax_scale: Any = None, causal: bool = False, **kwargs: Any
) -> Any:
    """[batch, length, heads, width] in and out."""
    import torch

    turned = [tensor.transpose(1, 2) for tensor in (query, key, value)]
    kernel = torch.ops.aten._scaled_dot_product_flash_attention
    return kernel(*turned, dropout_p, causal, False, scale=softmax_scale)[0].transpose(1, 2)


def _no_padding(*args: Any, **kwargs: Any) -> Any:
    raise NotImplementedError("padding is not traced: every sequence is cutoff_len long")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
