"""Liger's fused linear cross entropy (liger-kernel 0.8.5, `ops/fused_linear_cross_entropy.py`) without Triton.

The head's product, the loss and their gradients are computed in the forward, a chunk of tokens at a time; kept for the backward
are the gradients of the hidden states and, where the head is trained, of its weight. The logits never exist as a whole.

The real chunk is next_pow2(ceil(tokens / ceil(vocabulary / hidden))) tokens. That steps with the shape, and the sizes of a
trace must not, so its upper bound is taken: twice tokens / (vocabulary / hidden) rows of logits, one chunk for all of them
(each chunk's memory is that of the one before).
"""

from typing import Any

import torch
from torch.nn import functional

from autofit.worker.trace_inputs import TraceError

MODELS = frozenset({"gemma", "gemma2", "gemma3_text", "llama", "mistral", "phi3", "qwen2", "qwen3", "qwen2_vl", "qwen2_5_vl"})
"""Both LLaMA-Factory 0.9.5 (`model_utils/liger_kernel.py`) and Liger know them, and their loss is that of a plain head."""
NOT_MODELLED = (
    "Liger's norms, activations and rotary kernels (they keep less than torch's; counted as torch's)",
    "Liger's chunk of logits to the byte (its upper bound is counted), and releases other than 0.8.5",
)
IGNORED = -100


def use_fused_cross_entropy(model: torch.nn.Module, model_type: str, target: str) -> None:
    """Makes `model` compute its loss as under Liger.

    Raises:
        TraceError: Liger does not know the model, the device, or this transformers has no loss function to replace.
    """
    if target != "cuda":
        raise TraceError("fused_cross_entropy: Liger's kernels need a GPU; set it to false")
    if model_type not in MODELS:
        raise TraceError(
            f"fused_cross_entropy: model_type {model_type!r} cannot be traced with Liger; set it to false (known:"
            f" {', '.join(sorted(MODELS))})"
        )
    inner = next((module for module in model.modules() if _has_head(module)), None)
    if inner is None:
        raise TraceError("fused_cross_entropy: this transformers' models have no loss function to replace; set it to false")
    head = inner.lm_head
    head.forward = lambda hidden: hidden  # the loss multiplies
    inner.loss_function = lambda logits, labels, vocab_size=None, **_: _loss(logits, head.weight, labels)
    inner.register_forward_hook(lambda module, args, output: {"loss": output["loss"]})  # there are no logits to return
    if getattr(inner.config, "final_logit_softcapping", None) is not None:
        inner.config.final_logit_softcapping = None  # inside the kernel


def _has_head(module: Any) -> bool:
    return isinstance(getattr(module, "lm_head", None), torch.nn.Linear) and hasattr(type(module), "loss_function")


def _loss(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    shifted = functional.pad(labels, (0, 1), value=IGNORED)[..., 1:].contiguous()
    loss: torch.Tensor = _FusedLinearCrossEntropy.apply(hidden.view(-1, hidden.shape[-1]), weight, shifted.view(-1))
    return loss


class _FusedLinearCrossEntropy(torch.autograd.Function):
    """[tokens, hidden], [vocabulary, hidden], [tokens] -> loss. Same allocations in the same order as Liger's."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        grad_hidden = torch.zeros_like(hidden)
        grad_weight = torch.zeros_like(weight) if weight.requires_grad else None
        losses = torch.zeros(hidden.shape[0], dtype=torch.float32, device=hidden.device)
        (labels != IGNORED).sum()
        products = 3 if weight.requires_grad else 2
        if _written_in_place(hidden, weight):
            _multiply(hidden, weight.t(), _logits(hidden, weight, hidden.dtype), products)
        else:
            _one_chunk_under_autocast(hidden, weight, products)
        ctx.save_for_backward(grad_hidden.detach(), None if grad_weight is None else grad_weight.detach())
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        grad_hidden, grad_weight = ctx.saved_tensors  # multiplied in place by the loss's own gradient
        return grad_hidden, grad_weight, None


def _written_in_place(hidden: torch.Tensor, weight: torch.Tensor) -> bool:
    """`_can_use_mm_out`: one buffer of logits serves all chunks, unless autocast has to cast the operands."""
    if hidden.dtype != weight.dtype:
        return False
    return not torch.is_autocast_enabled("cpu") or torch.get_autocast_dtype("cpu") == hidden.dtype


def _logits(hidden: torch.Tensor, weight: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
    """A tensor as large as the chunk's upper bound, exactly linear in the tokens: [tokens, 2 x hidden]."""
    vocabulary, width = weight.shape
    return torch.empty((hidden.shape[0], min(vocabulary, 2 * width)), dtype=kind, device=hidden.device)


def _one_chunk_under_autocast(hidden: torch.Tensor, weight: torch.Tensor, products: int) -> None:
    """A chunk after the first. `@` casts the operands: the head's copy of the second product (a leaf) is kept until autocast

    ends, that of the first (a view) and the chunk's hidden states live as long as their product.
    """
    kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden.dtype
    logits = _logits(hidden, weight, kind)
    logits[:1, :1].expand(1, weight.shape[0]) @ weight
    turned = weight.t().to(kind)
    piece = hidden[: max(1, hidden.shape[0] * logits.shape[1] // weight.shape[0])].to(kind)
    _multiply(piece[:1].expand(hidden.shape), turned, logits, products)


def _multiply(hidden: torch.Tensor, head: torch.Tensor, logits: torch.Tensor, products: int) -> None:
    """`products` times tokens x hidden x vocabulary: logits, the hidden states' gradient, the head's; all are as large."""
    columns = logits.shape[1]
    for start in range(0, head.shape[1], columns):
        part = head[:, start : start + columns]
        for _ in range(products):
            torch.mm(hidden, part, out=logits[:, : part.shape[1]])
