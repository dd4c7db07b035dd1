"""What CUDA (or the CPU) executes where `meta` would take a fallback, and the scratch that its kernels use.

Attention. `scaled_dot_product_attention` on `meta` takes the math kernel, which keeps O(S^2) scores. CUDA takes flash (no
mask, half precision, head up to 256 in multiples of 8) or the memory-efficient kernel (a mask, or fp32); a boolean mask
becomes an additive bias, padded to 16 (half) or 4 elements, and keys and values are repeated for grouped queries. The CPU has
its own flash kernel. flash_attention_2 calls the same kernels as flash; vision towers that loop over windows do so once,
over all patches (`single_window` in `trace_parts`): outputs, saved tensors and copies have the same total size.

Composite backward operators. An operator with a `CompositeImplicitAutograd` kernel and a CPU/CUDA kernel of its own runs as
one kernel on a device and decomposes on `meta`. Of all ATen operators of torch 2.13 these are `silu_backward` and
`mish_backward` (and `native_channel_shuffle`, a forward that no language model uses); both get a `meta` kernel here. The other
composite backward operators decompose on CUDA too: `embedding_backward`, `embedding_sparse_backward`, `gather_backward`,
`index_select_backward`, `masked_select_backward`, `cumprod_backward`, `matrix_exp_backward`, `trace_backward`,
`value_selecting_reduction_backward`, `affine_grid_generator_backward`, `infinitely_differentiable_gelu_backward` (double
backward only), `_convolution_double_backward`, the rnn and quantisation ones. `benchmarks/cpu_accuracy.py` and a test ask
torch for that list again, so that a new one is noticed. `torch.nn.functional.rms_norm` is a single CUDA kernel since torch 2.8
and decomposes on `meta`: it gets a stand-in of one operator too.

Dropout on CUDA is one kernel that keeps a mask of one byte an element (`native_dropout`); on `meta` it is a product with a mask
of the input's own type, both of which are kept. Seen in measurements of fms-acceleration: `benchmarks/published`.

Scratch that dispatch cannot see (sources: aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp,
native/cuda/IndexKernel.cpp, Embedding.cu; torch 2.13):
  flash backward    softmax_d 4*B*H*Sr, dq_accum 4*B*H*Sr*Dr, with grouped queries dk and dv expanded to all heads
  masked_scatter    int64 prefix sum and a contiguous copy of the mask: 8 + 1 bytes an element
  mixed types       on the CPU alone, a copy of the operand that is not of the common type
  index by a mask   int64 coordinates of what it picks: 8 bytes an element and dimension of the mask (on the CPU too)
  embedding backward sorted and original indices, int64 (from 3072 indices on; always counted, so that events do not change)
  cuBLAS            two workspaces of 8.125 MiB, main and autograd thread, from the first product on (32 MiB on Hopper)
Not visible, not modelled: cuDNN's conv3d workspace, sorts in index backward, the memory-efficient kernel's fp32 accumulators.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

from autofit.worker.trace_tracer import Scratch

CUBLAS_WORKSPACE = 8_519_680
NOT_MODELLED = {
    "cuda": [
        "cuDNN convolution workspace",
        "sorts inside index backward",
        "fp32 accumulators of the memory-efficient attention kernel",
    ],
    "cpu": ["oneDNN and thread-local scratch"],
}

aten = torch.ops.aten


def scratch_of(target: str) -> dict[str, Scratch]:
    """Operator name -> bytes that its kernel takes inside, for a kind of device."""
    everywhere: dict[str, Scratch] = {"index": _coordinates}
    if target != "cuda":
        return everywhere | dict.fromkeys(("add", "sub", "mul", "div"), _promoted)
    return {
        **everywhere,
        "_scaled_dot_product_flash_attention_backward": _flash_backward_scratch,
        "masked_scatter": lambda args, out: [8 * args[0].numel(), args[0].numel()],
        "embedding_dense_backward": lambda args, out: [8 * args[1].numel()] * 4,
    }


def _promoted(args: tuple[Any, ...], out: Any) -> list[int]:
    """On the CPU an operand of another type is first copied to the common one (TensorIterator.cpp); CUDA's kernels cast as

    they read. The output, which is seen only afterwards, lives at the same time and is counted with it.
    """
    copied = [value for value in args[:2] if isinstance(value, torch.Tensor) and value.dim() and value.dtype != out.dtype]
    if not copied:
        return []
    return [sum(value.numel() for value in copied) * out.element_size() + out.numel() * out.element_size()]


def _coordinates(args: tuple[Any, ...], out: Any) -> list[int]:
    # Real masks are those of the image grids: a few numbers, and as many of them as there are images.
    masks = [index for index in args[1] if index is not None and index.dtype == torch.bool and index.is_meta]
    return [8 * mask.dim() * out.numel() for mask in masks] if len(args[1]) == len(masks) == 1 else []


def _flash_backward_scratch(args: tuple[Any, ...], out: Any) -> list[int]:
    query, key = args[1], args[2]
    batch, heads, length, width = query.shape
    rows, columns = -(-length // 128) * 128, -(-width // 32) * 32
    sizes = [4 * batch * heads * rows, 4 * batch * heads * rows * columns]
    if key.shape[1] != heads:
        sizes += [batch * key.shape[2] * heads * width * query.element_size()] * 2
    return sizes


@contextmanager
def device_kernels(target: str, masked: float = 0.0) -> Iterator[None]:
    """Within, `scaled_dot_product_attention` and the composite backward operators run as on `target` (`cuda` or `cpu`).

    Args:
        masked: share of its elements that a mask without values selects: the image tokens of the batch.
    """
    library = torch.library.Library("aten", "IMPL")
    library.m.impl("nonzero", "Meta", lambda mask: _selected(mask, masked))
    for name in ("silu_backward", "mish_backward"):
        library.m.impl(name, "Meta", lambda gradient, value: torch.empty_like(value))  # `impl` itself forbids it
    real_attention, real_norm = functional.scaled_dot_product_attention, functional.rms_norm
    real_dropout = functional.dropout
    functional.scaled_dot_product_attention = _cuda_attention if target == "cuda" else _cpu_attention
    if target == "cuda":
        functional.rms_norm = _fused_rms_norm  # type: ignore[assignment]
        functional.dropout = _fused_dropout
    try:
        with _supported_devices(), _real_index_lists():
            yield
    finally:
        functional.scaled_dot_product_attention, functional.rms_norm = real_attention, real_norm
        functional.dropout = real_dropout
        library._destroy()


def _selected(mask: torch.Tensor, share: float) -> torch.Tensor:
    """The coordinates that `nonzero` gives; models count the image tokens among the embeddings with them."""
    return torch.empty((round(mask.numel() * share), mask.dim()), dtype=torch.long, device=mask.device)


@contextmanager
def _real_index_lists() -> Iterator[None]:
    """Tensors made of a flat list of whole numbers keep their values, on the CPU, although `meta` was asked for.

    Qwen2.5-VL before transformers 5.2x makes the bounds of its windows so, and then reads them.
    """
    real = torch.tensor

    def tensor(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        whole = isinstance(data, list) and len(data) > 1 and all(type(item) is int for item in data)
        return real(data, *args, device="cpu" if whole and str(device) == "meta" else device, **kwargs)

    torch.tensor = tensor
    try:
        yield
    finally:
        torch.tensor = real


@contextmanager
def _supported_devices() -> Iterator[None]:
    """Fused and foreach optimizers refuse devices that are not on a list; `meta` joins it."""
    import torch.utils._foreach_utils as foreach_utils

    real_foreach, real_fused = (
        foreach_utils._get_foreach_kernels_supported_devices,
        foreach_utils._get_fused_kernels_supported_devices,
    )

    def foreach() -> list[str]:
        return [*real_foreach(), "meta"]

    def fused() -> list[str]:
        return [*real_fused(), "meta"]

    from torch.optim import optimizer

    changed: list[tuple[Any, str, Any]] = []
    for module in (foreach_utils, optimizer):
        for name, function in (
            ("_get_foreach_kernels_supported_devices", foreach),
            ("_get_fused_kernels_supported_devices", fused),
        ):
            if hasattr(module, name):
                changed.append((module, name, vars(module)[name]))
                setattr(module, name, function)
    try:
        yield
    finally:
        for module, name, value in changed:
            setattr(module, name, value)


def _half(tensor: torch.Tensor) -> bool:
    return tensor.dtype in (torch.bfloat16, torch.float16)


def _autocast(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Attention is in autocast's lower-precision class; the state of autocast is held by the CPU's flag (`trace_autocast`)."""
    if not torch.is_autocast_enabled("cpu"):
        return tensors
    dtype = torch.get_autocast_dtype("cpu")
    return tuple(tensor.to(dtype) for tensor in tensors)


def _cuda_attention(  # noqa: PLR0917 - torch's own signature
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    query, key, value = _autocast(query, key, value)
    width = query.shape[-1]
    if _half(query) and attn_mask is None and width <= 256 and width % 8 == 0:
        return aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, False, scale=scale)[0]
    if enable_gqa and key.shape[1] != query.shape[1]:
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, -3), value.repeat_interleave(repeats, -3)
    bias = None if attn_mask is None else _padded_bias(attn_mask, query, key)
    gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    return aten._scaled_dot_product_efficient_attention(query, key, value, bias, gradient, dropout_p, is_causal, scale=scale)[0]


def _padded_bias(mask: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    bias = _additive(mask, query.dtype)
    alignment = 16 if _half(query) else 4
    length = bias.shape[-1]
    if length % alignment:
        bias = functional.pad(bias, (0, alignment - length % alignment))[..., :length]
    return bias.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])


def _additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if mask.dtype != torch.bool:
        return mask
    bias = torch.zeros_like(mask, dtype=dtype)
    bias.masked_fill_(mask.logical_not(), float("-inf"))
    return bias


def _cpu_attention(  # noqa: PLR0917 - torch's own signature
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    query, key, value = _autocast(query, key, value)
    bias = None if attn_mask is None else _additive(attn_mask, query.dtype)
    return aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout_p, is_causal, attn_mask=bias, scale=scale
    )[0]


class _Dropout(torch.autograd.Function):
    """One kernel each way; keeps a mask of one byte an element (aten/native/Dropout.cpp, `native_dropout`)."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(torch.empty_like(value, dtype=torch.bool))
        return torch.empty_like(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return torch.empty_like(gradients[0])


def _fused_dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    return _Dropout.apply(input) if training and 0 < p < 1 else input


class _RmsNorm(torch.autograd.Function):
    """One kernel each way; keeps the input and one fp32 reciprocal a row (aten/native/cuda/layer_norm_kernel.cu)."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, weight: torch.Tensor | None, normalized: int) -> torch.Tensor:
        rows = torch.empty((*value.shape[:-normalized], *[1] * normalized), dtype=torch.float32, device=value.device)
        ctx.save_for_backward(value, weight, rows)
        return torch.empty_like(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        value, weight, _ = ctx.saved_tensors
        return torch.empty_like(value), None if weight is None else torch.empty_like(weight), None


def _fused_rms_norm(
    value: torch.Tensor, normalized_shape: Sequence[int], weight: torch.Tensor | None = None, eps: float | None = None
) -> torch.Tensor:
    if torch.is_autocast_enabled("cpu"):
        value = value.float()
    return _RmsNorm.apply(value, weight, len(normalized_shape))


def flash_attention_interface() -> Callable[..., Any]:
    """What transformers calls as `flash_attention_2`, in transformers' layout, with the memory of the flash kernels."""

    def forward(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any = None, **kwargs: Any
    ) -> tuple[torch.Tensor, None]:
        query, key, value = (_lowered(tensor) for tensor in (query, key, value))
        given = kwargs.get("is_causal")
        causal = bool(getattr(module, "is_causal", True) if given is None else given)
        scale = kwargs.get("scaling")
        out = aten._scaled_dot_product_flash_attention(query, key, value, 0.0, causal, False, scale=scale)[0]
        return out.transpose(1, 2).contiguous(), None

    return forward


def _lowered(tensor: torch.Tensor) -> torch.Tensor:
    """flash-attn takes half precision only: transformers casts fp32 (integrations/flash_attention.py)."""
    if _half(tensor):
        return tensor
    return tensor.to(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.bfloat16)
