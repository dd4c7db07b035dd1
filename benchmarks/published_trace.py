"""The training environment's side of published_accuracy.py: `autofit.worker trace` with what the sources did beside a spec.

    PYTHON benchmarks/published_trace.py ORDER.json ANSWER.json.gz

ORDER is what `autofit.predict.variants.request` makes, with one more key, `loop`, of the published row. Honoured here:

  lora_dropout   of the adapters; a trial's own is 0
  use_dora       PEFT's weight decomposition
  adapters' type PEFT >= 0.12 makes adapters fp32 over half-precision weights (`autocast_adapter_dtype`), and Trainer leaves
                 them so; a trial in pure bf16 casts them back
  autocast       over weights that are half precision themselves; a spec has autocast only over fp32 masters
  fused_kernels  `fms` or `fms-linear-loss`: the kernels of fms-acceleration (published_kernels.py)
  outputs_kept   a loop of the source's own: logits and keys of a step live until the next forward has returned
  padding_mask   batches padded to their longest sample, so that a mask reaches attention; the loss is given a token count
  flash-attn     the package of the row's day, whose functions are found by import in transformers before 4.48
  use_cache      stays what the config says: Trainer leaves it alone, LLaMA-Factory and a trial turn it off. Llama, Mistral and
                 Granite turn it off themselves when checkpointing; gpt_bigcode does not, and its cached keys and values are
                 views that keep the whole of every layer's projection alive until the loss is done
  positions      Mistral before 4.40 reads the highest position; 0 is answered, which like the true one is less than
                 the length that it is compared with
  rotary         embeddings before transformers 5 turn autocast off by the device's name, which may not be `meta`

Needs nothing but the training stack. Exit status 1 and one line on stderr: cannot be traced.
"""

import gzip
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

_HERE = Path(__file__).resolve().parent
_PACKAGE = _HERE.parent / "autofit"


def main(argv: list[str]) -> int:
    """Traces ORDER into ANSWER."""
    order = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    package, benchmarks = ModuleType("autofit"), ModuleType("benchmarks")  # the worker is imported without its house
    package.__path__, benchmarks.__path__ = [str(_PACKAGE)], [str(_HERE)]
    sys.modules |= {"autofit": package, "benchmarks": benchmarks}
    from benchmarks.published_kernels import flash_attn_package, install_fused_kernels

    loop = order["loop"]
    if order["trial"]["attention"] == "flash_attention_2":
        flash_attn_package()
    if loop.get("fused_kernels"):
        install_fused_kernels(order["model"]["config"]["model_type"], loop["fused_kernels"] == "fms-linear-loss")
    from autofit.worker.trace import trace
    from autofit.worker.trace_inputs import TraceError

    _as_the_source_built(order["trial"], loop)
    _as_the_source_ran(loop)
    try:
        document = trace(order)
    except TraceError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    document["metadata"]["adapters"] = _version("peft")
    Path(argv[1]).write_bytes(gzip.compress(json.dumps(document).encode(), compresslevel=1))
    return 0


def _as_the_source_built(trial: dict[str, Any], loop: dict[str, Any]) -> None:
    """Dropout and kind of the adapters, autocast, attention by the model's own flash code."""
    import peft
    import torch

    from autofit.worker import models, trace_session

    real_config, real_dtypes, real_build = peft.LoraConfig, models.dtypes, trace_session.build
    more = {"lora_dropout": float(loop.get("lora_dropout", 0.0)), "use_dora": bool(loop.get("use_dora"))}
    peft.LoraConfig = lambda **given: real_config(**{**given, **more})
    kinds: dict[str, Any] = {"autocast": torch.bfloat16} if loop.get("autocast") else {}
    models.dtypes = trace_session.dtypes = lambda *given: replace(real_dtypes(*given), **kinds)
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


def _as_the_source_ran(loop: dict[str, Any]) -> None:
    """Masks of padded batches, and outputs that outlive their step."""
    import torch

    from autofit.worker import trace_loop, trace_session

    real_batch = trace_session.make_batch
    mask_type = torch.bfloat16 if _version("transformers") < (4, 53) else torch.bool

    def padded(config: Any, shape: Any, *given: Any) -> dict[str, Any]:
        square = (shape.micro_batch_size, 1, shape.cutoff_len, shape.cutoff_len)
        mask = torch.empty(square, dtype=mask_type, device="meta")
        return {**real_batch(config, shape, *given), "attention_mask": mask, "num_items_in_batch": 1}

    if loop.get("padding_mask"):
        trace_session.make_batch = padded
    kept: list[Any] = []

    def micro_step(own: Any, batch: dict[str, Any], step: int, accumulation: int = 1, number: int = 0) -> None:
        own.observe("forward", step)
        with own._casting():
            outputs = own.model(**batch)
        loss = outputs.loss
        own.observe("clip", step)  # the step before has outputs too, the first has not: apart from what shapes must share
        kept[:] = [outputs, loss]
        del outputs
        own.observe("backward", step)
        loss.backward()

    if loop.get("outputs_kept"):
        trace_loop.Loop.micro_step = micro_step


def _version(package: str) -> tuple[int, ...]:
    module = __import__(package)
    return tuple(int(part) for part in module.__version__.split(".")[:2])


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
