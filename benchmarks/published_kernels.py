"""Stand-ins of what kernels outside PyTorch allocate, for published_trace.py: flash-attn, and fms-acceleration's fused kernels.

Nothing here computes. A stand-in makes the tensors that the kernel makes, keeps for backward what the kernel keeps, and writes
in place where the kernel does. Read for that: flash-attn's interface as transformers imports it, and in fms-acceleration
`plugins/fused-ops-and-kernels` (`kernels/unsloth`, `fused_ops/liger_ce/fused_linear_cross_entropy_loss.py`, `models`) at the
commits of the rows. Its plugin `fast_kernels` replaces, outside quantised training, three things: RMS norms (the input's
gradient overwrites the output's; the weight gets none), rotary embeddings (in place both ways) and the loss (the gradient of
the logits overwrites them), GPTBigCode's loss alone; `fast_kernels_liger` in addition joins lm_head and loss.
"""

import importlib
import importlib.machinery
import sys
from types import ModuleType
from typing import Any

import torch

_AVAILABLE = ("is_flash_attn_2_available", "is_flash_attn_greater_or_equal", "is_flash_attn_greater_or_equal_2_10")
_CHUNK_VOCABULARY = 65536
"""Columns that the loss kernel takes in one piece; a larger vocabulary has one partial sum a piece."""


def flash_attn_package() -> None:
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
    if shared is not None and hasattr(shared, "_flash_attention_forward"):
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
    turned = [tensor.transpose(1, 2) for tensor in (query, key, value)]
    kernel = torch.ops.aten._scaled_dot_product_flash_attention
    return kernel(*turned, dropout_p, causal, False, scale=softmax_scale)[0].transpose(1, 2)


def _no_padding(*args: Any, **kwargs: Any) -> Any:
    raise NotImplementedError("padding is not traced: every sequence is cutoff_len long")


class _Norm(torch.autograd.Function):
    """One output, one fp32 number a row; the input's gradient takes the place of the output's, the weight has none."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        flat = value.view(-1, value.shape[-1])
        rows = torch.empty(flat.shape[0], dtype=torch.float32, device=value.device)
        ctx.save_for_backward(flat, weight, rows)
        return torch.empty_like(flat).view(value.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], None


class _Rotary(torch.autograd.Function):
    """In place both ways; cosines and sines are held."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
        ctx.held = (cosines.squeeze(), sines.squeeze())
        batch, length, heads, width = value.shape
        return value.view(batch * length, heads * width).view(value.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        batch, length, heads, width = gradients[0].shape
        return gradients[0].reshape(batch * length, heads * width).view(batch, length, heads, width), None, None


class _CrossEntropy(torch.autograd.Function):
    """Losses and their logarithmic sums, fp32, one a row; the logits' gradient overwrites the logits."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        rows, columns = logits.shape
        losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
        pieces = -(-columns // _CHUNK_VOCABULARY)
        if pieces == 1:
            sums = torch.empty(rows, dtype=torch.float32, device=logits.device)
        else:
            sums = torch.logsumexp(torch.empty((rows, pieces), dtype=torch.float32, device=logits.device), dim=1)
            losses += sums
            losses.masked_fill_(labels == -100, 0)
        ctx.save_for_backward(logits, sums, labels)
        return losses

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return ctx.saved_tensors[0], None


class _LinearCrossEntropy(torch.autograd.Function):
    """lm_head and loss in pieces of rows; gradients are made in forward."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        rows, width = hidden.shape
        step = _power_of_two(-(-rows // -(-weight.shape[0] // width)))
        kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden.dtype
        weight_gradient = torch.zeros_like(weight) if weight.requires_grad else None
        gradient = torch.zeros_like(hidden)
        losses = torch.zeros(rows, dtype=torch.float32, device=hidden.device)
        for start in range(0, rows, step):
            piece = hidden[start : start + step]
            logits = piece @ weight.t()
            logits = logits.float()
            logits = logits.to(kind)
            scaled = logits * 1.0  # lives until the next piece has its own
            gradient[start : start + step] = scaled @ weight
            if weight_gradient is not None:
                torch.addmm(weight_gradient, logits.t(), piece, out=weight_gradient)
        ctx.save_for_backward(gradient, weight_gradient)
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return *ctx.saved_tensors, None


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


class _Loss(torch.nn.CrossEntropyLoss):
    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return _CrossEntropy.apply(input, target).sum() / torch.count_nonzero(target != -100)


def _causal_loss(logits: torch.Tensor, labels: torch.Tensor, vocab_size: int, **kwargs: Any) -> torch.Tensor:
    """The plugin's `ForCausalLMLoss` from transformers 4.46 on: fp32 logits, then a shifted copy."""
    logits = logits.float()
    shifted = logits[..., :-1, :].contiguous().view(-1, vocab_size)
    target = labels[..., 1:].contiguous().view(-1)
    return _Loss()(shifted, target)


def install_fused_kernels(model_type: str, linear_cross_entropy: bool) -> None:
    """Puts the plugin's kernels into transformers' code of a model, before it is built.

    Args:
        linear_cross_entropy: `fast_kernels_liger`; known for llama and mistral before transformers 4.46.
    """
    code: Any = importlib.import_module(f"transformers.models.{model_type}.modeling_{model_type}")
    if hasattr(code, "CrossEntropyLoss"):
        code.CrossEntropyLoss = _Loss
    try:
        from transformers.loss.loss_utils import LOSS_MAPPING
    except ImportError:  # before 4.46
        pass
    else:
        if model_type != "gpt_bigcode":
            LOSS_MAPPING["ForCausalLM"] = _causal_loss
    if model_type == "gpt_bigcode":
        return
    for name, item in list(vars(code).items()):
        if name.endswith("RMSNorm"):
            item.forward = lambda layer, value: _Norm.apply(value, layer.weight)
    code.apply_rotary_pos_emb = _rotated
    if linear_cross_entropy:
        head = next(item for name, item in vars(code).items() if name.endswith("ForCausalLM") and isinstance(item, type))
        head.forward = _joined_forward


def _rotated(query: Any, key: Any, cosines: Any, sines: Any, *args: Any, **kwargs: Any) -> Any:
    return tuple(_Rotary.apply(item.transpose(1, 2), cosines, sines).transpose(1, 2) for item in (query, key))


def _joined_forward(model: Any, labels: Any = None, return_dict: Any = None, **inputs: Any) -> Any:
    from transformers.modeling_outputs import CausalLMOutputWithPast

    outputs = model.model(**inputs, return_dict=True)
    hidden = outputs[0]
    shifted = hidden[..., :-1, :].contiguous().view(-1, model.config.hidden_size)
    target = labels[..., 1:].contiguous().view(-1)
    return CausalLMOutputWithPast(
        loss=_LinearCrossEntropy.apply(shifted, model.lm_head.weight, target), past_key_values=outputs.past_key_values
    )
