"""Gradient checkpointing as LLaMA-Factory 0.9.5 applies it (`model/model_utils/checkpointing.py` there), not as Trainer does.

Only modules with a trainable parameter are checkpointed, and the first floating-point input of each is made to require a
gradient: with re-entrant checkpointing its output would otherwise be cut off from the graph below a frozen embedding.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def enable_checkpointing(model: Any, *, use_reentrant: bool = True) -> None:
    """Turns it on for a transformers model.

    Raises:
        ValueError: the model's class does not support it.
    """
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise ValueError(f"{type(model).__name__} does not support gradient checkpointing; set gradient_checkpointing to false")
    recompute = functools.partial(checkpoint, use_reentrant=use_reentrant)
    model._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=_only_trainable(recompute))


def _only_trainable(recompute: Callable[..., Any]) -> Callable[..., Any]:
    def apply(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        module = module_of(function)
        if not any(parameter.requires_grad for parameter in module.parameters()):
            return function(*args, **kwargs)
        for value in args:
            if torch.is_tensor(value) and torch.is_floating_point(value):
                value.requires_grad_(True)
                break  # the hidden states come first
        return recompute(function, *args, **kwargs)

    return apply


def module_of(function: Callable[..., Any]) -> torch.nn.Module:
    """The layer behind what transformers hands over: its bound method, a partial of that, or (transformers >= 5.2x) a partial

    of the plain function with the layer as first argument.
    """
    if isinstance(function, functools.partial):
        if function.args and isinstance(function.args[0], torch.nn.Module):
            return function.args[0]
        function = function.func
    module: torch.nn.Module = function.__self__  # type: ignore[attr-defined]
    return module
