"""Autocast for tensors that are not on a device: the casting policy of CUDA (or of the CPU) at autocast's own place.

Autocast does nothing on `meta` tensors: they carry no autocast dispatch key and the C++ kernels test the device. Here the
key `AutocastCPU` is put into the thread's included keys, so that every operator passes through it above autograd, exactly
where the real cast happens (composite operators are cast at their inner calls too, an inner call of a cast operator is
not), and Python kernels with the wanted policy stand in for the C++ ones. On and off, nesting, restoring within a
checkpointed recomputation and clearing of the weight cache are torch's own: `torch.autocast("cpu")` holds the state.

Which operators have a policy is asked of the torch that runs; how they are cast is the table below (ATen/autocast_mode.h
and autocast_mode.cpp of torch 2.13). An operator that torch registers and the tables lack would be cast to fp32, torch's
cautious class, and is listed by `unknown_operators`.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


LOWER = {
    "cuda": _names(
        "_convolution.deprecated _convolution conv1d conv2d conv3d conv_tbc conv_transpose1d"
        " conv_transpose2d.input conv_transpose3d.input convolution cudnn_convolution cudnn_convolution_transpose prelu"
        " addmm addmv addr matmul einsum mm mv linalg_vecdot linear addbmm baddbmm"
        " bmm chain_matmul linalg_multi_dot _thnn_fused_lstm_cell _thnn_fused_gru_cell lstm_cell gru_cell rnn_tanh_cell"
        " rnn_relu_cell _scaled_dot_product_flash_attention scaled_dot_product_attention"
    ),
    "cpu": _names(
        "conv1d conv1d.padding conv2d conv2d.padding conv3d conv3d.padding bmm mm linalg_vecdot baddbmm addmm"
        " _addmm_activation addbmm linear _convolution.deprecated matmul conv_tbc mkldnn_rnn_layer conv_transpose1d"
        " conv_transpose2d.input conv_transpose3d.input prelu scaled_dot_product_attention"
        " _native_multi_head_attention"
    ),
}
PROMOTE = {
    "cuda": _names(
        "addcdiv addcmul atan2 bilinear cross dot vdot grid_sampler index_put tensordot scatter_add stack cat index_copy"
    ),
    "cpu": _names("stack cat index_copy"),
}
SET_DTYPE = {
    "cuda": _names(
        "prod prod.dim_int softmax.int log_softmax.int cumprod cumsum linalg_vector_norm linalg_matrix_norm"
        " linalg_matrix_norm.str_ord sum sum.dim_IntList"
    ),
    "cpu": frozenset[str](),
}
BANNED = frozenset({"binary_cross_entropy"})
_FP32_CUDA = _names(
    "acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow.Tensor_Scalar pow.Tensor_Tensor"
    " pow.Scalar softplus layer_norm native_layer_norm rms_norm group_norm frobenius_norm.dim nuclear_norm nuclear_norm.dim"
    " cosine_similarity poisson_nll_loss cosine_embedding_loss nll_loss nll_loss2d hinge_embedding_loss kl_div l1_loss"
    " smooth_l1_loss huber_loss mse_loss margin_ranking_loss multilabel_margin_loss soft_margin_loss triplet_margin_loss"
    " multi_margin_loss binary_cross_entropy_with_logits dist pdist cdist renorm logsumexp upsample_nearest1d"
    " _upsample_nearest_exact1d upsample_nearest2d _upsample_nearest_exact2d upsample_nearest3d _upsample_nearest_exact3d"
    " upsample_linear1d upsample_bilinear2d _upsample_bilinear2d_aa upsample_trilinear3d upsample_bicubic2d"
    " _upsample_bicubic2d_aa norm.Scalar norm.ScalarOpt_dim"
)
_KEY = {"cuda": "AutocastCUDA", "cpu": "AutocastCPU"}
_KEYSET = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)


def registered_operators(policy: str) -> list[str]:
    """The ATen operators for which this torch has an autocast kernel, for example `linear` or `softmax.int`."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    names = (name for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::"))
    return sorted(name.removeprefix("aten::") for name in names if has(name, _KEY[policy]))


def unknown_operators(policy: str) -> list[str]:
    """Registered operators that the tables of this file do not know (cast to fp32 here)."""
    known = LOWER[policy] | PROMOTE[policy] | SET_DTYPE[policy] | BANNED
    if policy == "cpu":
        return []  # the CPU's fp32 class is whatever is left
    return [name for name in registered_operators(policy) if name not in known | _FP32_CUDA]


@contextmanager
def state_on_cpu() -> Iterator[None]:
    """Within, `torch.autocast` of CUDA or `meta` is that of the CPU, which holds the state here.

    Models turn autocast off around their rotary embeddings by the device of a tensor, and torch knows none for `meta`.
    """
    real = torch.autocast.__init__

    def init(context: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        real(context, "cpu" if device_type in ("cuda", "meta") else device_type, *args, **kwargs)

    torch.autocast.__init__ = init
    try:
        yield
    finally:
        torch.autocast.__init__ = real


class AutocastPolicy:
    """Casting kernels for one kind of device; `installed()` puts them in place.

    Args:
        policy: `cuda` or `cpu`: whose tables.
        label: context manager under which a cached copy of a weight is made (the tracer's category).
    """

    def __init__(self, policy: str, label: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        self.policy = policy
        self._label = label
        self._copies: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Within, `torch.autocast` of any device casts what passes by; outside nothing is left behind."""
        library = torch.library.Library("aten", "IMPL")
        real_clear = torch.clear_autocast_cache

        def clear() -> None:
            self._copies.clear()
            real_clear()

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # "overriding a previously registered kernel" is the purpose
                for name in registered_operators(self.policy):
                    if name not in BANNED:
                        _register(library, name, self._kernel(name))
                for name in set(registered_operators("cpu")) - set(registered_operators(self.policy)):
                    _register(library, name, torch.library.fallthrough_kernel)  # no entry in this policy
            torch.clear_autocast_cache = clear
            with state_on_cpu(), torch._C._IncludeDispatchKeyGuard(torch._C.DispatchKey.AutocastCPU):
                yield
        finally:
            torch.clear_autocast_cache = real_clear
            self._copies.clear()
            library._destroy()

    def _kernel(self, name: str) -> Callable[..., Any]:
        operator = _overload(name)
        if name in LOWER[self.policy]:
            return self._casting(operator, lambda args: torch.get_autocast_dtype("cpu"))
        if name in PROMOTE[self.policy]:
            return self._casting(operator, _widest)
        if name in SET_DTYPE[self.policy]:
            return _asking_fp32(operator)
        return self._casting(operator, lambda args: torch.float32)

    def _casting(self, operator: Any, wanted: Callable[[tuple[Any, ...]], torch.dtype]) -> Callable[..., Any]:
        def kernel(*args: Any, **kwargs: Any) -> Any:
            with torch._C._ExcludeDispatchKeyGuard(_KEYSET):
                dtype = wanted(args)
                given = {key: self._cast(value, dtype) for key, value in kwargs.items()}
                return operator(*[self._cast(value, dtype) for value in args], **given)

        return kernel

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if isinstance(value, (list, tuple)):
            return [self._cast(item, dtype) for item in value]
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            return value
        if value.dtype in (dtype, torch.float64):
            return value
        # Kept until the outermost context ends: leaf weights in fp32 (cached_cast in autocast_mode.cpp)
        cached = (
            torch.is_autocast_cache_enabled()
            and dtype == torch.get_autocast_dtype("cpu")
            and value.dtype == torch.float32
            and value.requires_grad
            and value.is_leaf
            and not value._is_view()
        )
        if not cached:
            return value.to(dtype)
        entry = self._copies.get(id(value))
        if entry is None:
            with self._label():
                entry = self._copies[id(value)] = (value, value.to(dtype))
        return entry[1]


def _widest(args: tuple[Any, ...]) -> torch.dtype:
    """The promoted type: fp32 if any floating argument is fp32, else autocast's own."""
    flat = [item for value in args for item in (value if isinstance(value, (list, tuple)) else [value])]
    floats = [item.dtype for item in flat if isinstance(item, torch.Tensor) and item.is_floating_point()]
    return torch.float32 if torch.float32 in floats else torch.get_autocast_dtype("cpu")


def _asking_fp32(operator: Any) -> Callable[..., Any]:
    """`softmax`, `sum` and their like: no cast of the input, but a result in fp32 unless a type was asked for."""
    names = [argument.name for argument in operator._schema.arguments]
    position = names.index("dtype")

    def kernel(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_KEYSET):
            first = args[0] if args else None
            given = kwargs.get("dtype") if len(args) <= position else args[position]
            if given is None and isinstance(first, torch.Tensor) and first.is_floating_point() and first.dtype != torch.float64:
                args, kwargs = args[:position], {**kwargs, "dtype": torch.float32}
            return operator(*args, **kwargs)

    return kernel


def _overload(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload or "default")


def _register(library: Any, name: str, kernel: Callable[..., Any]) -> None:
    try:
        library.impl(name, kernel, "AutocastCPU", allow_override=True)
    except TypeError:  # torch before 2.8 has no such argument
        library.impl(name, kernel, "AutocastCPU")
