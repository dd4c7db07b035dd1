"""Which part of a model is running: hooks on its few large modules tell the tracer."""

import re
from collections.abc import Callable
from typing import Any

import torch

from autofit.worker.checkpointing import module_of
from autofit.worker.trace_optim import decays
from autofit.worker.trace_tracer import StorageTracer

VISION = re.compile(r"(^|\.)(visual|vision_tower|vision_model)$")
PROJECTOR = re.compile(r"(^|\.)(merger|deepstack_merger_list(\.\d+)?|multi_modal_projector|connector)$")
HEAD = re.compile(r"(^|\.)lm_head$")
_VISION_ATTENTION = re.compile(r"Vision.*Attention$")


def parts_of(model: torch.nn.Module) -> dict[str, str]:
    """Module name -> part, for the modules where a part begins."""
    found: dict[str, str] = {}
    for name, _ in model.named_modules():
        if HEAD.search(name):
            found[name] = "logits"
        elif PROJECTOR.search(name):
            found[name] = "projector"
        elif VISION.search(name):
            found[name] = "vision"
    return found


def parameter_groups(model: torch.nn.Module, copies: Callable[[str], int] = lambda name: 1) -> dict[str, dict[str, int]]:
    """Parameters in all and trainable, by part; `logits` is the language-model head (0 when it is the embedding itself).

    Args:
        copies: how often the parameter of a name counts.
    """
    starts = sorted(parts_of(model).items(), key=lambda item: -len(item[0]))
    groups: dict[str, dict[str, int]] = {}
    for name, parameter in model.named_parameters():
        part = next((part for start, part in starts if name.startswith(start + ".")), "language")
        group = groups.setdefault(part, {"total": 0, "trainable": 0})
        elements = parameter.numel() * copies(name)
        group["total"] += elements
        group["trainable"] += elements if parameter.requires_grad else 0
    return groups


def watch_parts(model: torch.nn.Module, tracer: StorageTracer) -> None:
    """Puts the hooks on. What follows the head (the loss) still counts as logits, until the next forward."""

    def enter(part: str) -> Callable[..., None]:
        def hook(module: Any, args: Any) -> None:
            module._autofit_before = tracer.mark(part)

        return hook

    def leave(module: Any, args: Any, output: Any) -> None:
        tracer.mark(*module._autofit_before)

    modules = dict(model.named_modules())
    for name, part in parts_of(model).items():
        modules[name].register_forward_pre_hook(enter(part))
        if part != "logits":
            modules[name].register_forward_hook(leave)
    for module in modules.values():
        if _VISION_ATTENTION.search(type(module).__name__):
            _single_window(module, tracer)


def watch_blocks(model: torch.nn.Module, blocks: dict[str, int], tracer: StorageTracer) -> None:
    """Tells the tracer which block runs, from its call to the next one's; a recomputed one says so again."""
    modules = dict(model.named_modules())
    tags = {id(modules[name]): tag for name, tag in blocks.items()}
    for name, tag in blocks.items():
        modules[name].register_forward_pre_hook(lambda module, args, tag=tag: tracer.block(tag))
        stack, _, place = name.rpartition(".")
        if f"{stack}.{int(place) + 1}" not in blocks:
            modules[name].register_forward_hook(lambda module, args, output, tag=tag: tracer.block_end(tag + 1))
            modules[stack.rpartition(".")[0]].register_forward_hook(lambda module, args, output: tracer.block_end(-1))
    for module in modules.values() if blocks else ():
        if callable(recompute := vars(module).get("_gradient_checkpointing_func")):
            module._gradient_checkpointing_func = _saying_block(recompute, tags, tracer)


def _saying_block(recompute: Callable[..., Any], tags: dict[int, int], tracer: StorageTracer) -> Callable[..., Any]:
    """Some transformers recompute a block's forward without its hooks, and autograd numbers the checkpoint before them."""

    def apply(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        tag = tags.get(id(module_of(function)))
        if tag is None:
            return recompute(function, *args, **kwargs)

        def said(*inner: Any, **given: Any) -> Any:
            tracer.block(tag)
            return function(*inner, **given)

        said.__self__ = module_of(function)  # type: ignore[attr-defined]
        tracer.block(tag)
        return recompute(said, *args, **kwargs)

    return apply


def owner_modules(model: torch.nn.Module) -> list[str]:
    """Names of the modules that own parameters themselves, in the order of their numbers."""
    return [name for name, module in model.named_modules() if any(True for _ in module.parameters(recurse=False))]


def watch_modules(model: torch.nn.Module, tracer: StorageTracer) -> None:
    """Tells the tracer when modules that own parameters run."""
    for number, name in enumerate(owner_modules(model)):
        module = model.get_submodule(name)
        module.register_forward_pre_hook(lambda module, args, number=number: tracer.module_forward(number))
        module.register_forward_hook(lambda module, args, output, number=number: tracer.module_forward_end(number))


def parameters_of(model: torch.nn.Module) -> list[dict[str, int | bool]]:
    """The parameters with the numbers of the modules that own them (`owner_modules`)."""
    number_of: dict[int, int] = {}
    tied: set[int] = set()
    for number, name in enumerate(owner_modules(model)):
        for parameter in model.get_submodule(name).parameters(recurse=False):
            if number_of.setdefault(id(parameter), number) != number:
                tied.add(id(parameter))
    return [
        {
            "elements": parameter.numel(),
            "trainable": parameter.requires_grad,
            "module": number_of[id(parameter)],
            "weight_bytes": parameter.element_size(),
            "decays": decaying,
            "tied": id(parameter) in tied,
        }
        for parameter, decaying in zip(model.parameters(), decays(model), strict=True)
    ]


def _single_window(module: torch.nn.Module, tracer: StorageTracer) -> None:
    """One attention call over all patches instead of one a window or image.

    The loop over chunks makes outputs, row sums and gradients of the same total size, each chunk its own tensor, and the
    number of events would depend on the images. The share of the square that is really computed goes to the tracer.
    """

    def enter(module: Any, args: Any, kwargs: Any) -> Any:
        bounds = kwargs.get("cu_seqlens")
        if not isinstance(bounds, torch.Tensor) or bounds.device.type != "cpu":
            return None
        lengths = (bounds[1:] - bounds[:-1]).double()
        total = float(lengths.sum())
        share = float((lengths**2).sum()) / total**2 if total else 1.0
        module._autofit_window = tracer.mark("vision", share)
        return args, {**kwargs, "cu_seqlens": bounds[[0, -1]]}

    def leave(module: Any, args: Any, output: Any) -> None:
        before = module.__dict__.pop("_autofit_window", None)
        if before is not None:
            tracer.mark(*before)

    module.register_forward_pre_hook(enter, with_kwargs=True)
    module.register_forward_hook(leave)
