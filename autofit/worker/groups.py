"""LLaMA-Factory's module groups: which parameters each freeze flag and each adapter reaches, by substrings of their names.

Source: LLaMA-Factory 0.9.5, `model/model_utils/visual.py` (registry of composite models), `model_utils/misc.py`
(`find_all_linear_modules`) and `adapter.py`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

FREEZE_TRAINABLE_LAYERS = 2
"""Layers that method `freeze` trains (LLaMA-Factory `freeze_trainable_layers`)."""


@dataclass(frozen=True)
class Groups:
    """Substrings of parameter names."""

    vision: tuple[str, ...]
    projector: tuple[str, ...]
    language: tuple[str, ...]


_LANGUAGE = ("language_model", "lm_head")
_QWEN2 = Groups(("visual.patch_embed", "visual.blocks"), ("visual.merger",), _LANGUAGE)
_QWEN3 = Groups(
    ("visual.pos_embed", "visual.patch_embed", "visual.blocks", "visual.deepstack_merger_list"), ("visual.merger",), _LANGUAGE
)
_QWEN3_5 = Groups(("visual.pos_embed", "visual.patch_embed", "visual.blocks"), ("visual.merger",), _LANGUAGE)
GROUPS: dict[str, Groups] = {
    "qwen2_vl": _QWEN2,
    "qwen2_5_vl": _QWEN2,
    "qwen3_vl": _QWEN3,
    "qwen3_vl_moe": _QWEN3,
    "qwen3_5": _QWEN3_5,
    "qwen3_5_moe": _QWEN3_5,
}
"""`model_type` -> groups. A model that is not here has no groups: its freeze flags do nothing, as in LLaMA-Factory."""

_NEVER_ADAPTED = ("lm_head",)
_LORA_CONFLICT = ("patch_embed",)


class NothingToTrain(ValueError):  # noqa: N818 - reads better where it is raised
    """The freeze flags and the method leave no parameter to train."""


def frozen_names(model_type: str, trial: dict[str, Any]) -> tuple[str, ...]:
    """Substrings of the parameters that the three flags freeze."""
    groups = GROUPS.get(model_type)
    if groups is None:
        return ()
    flags = (
        (trial["freeze_vision_tower"], groups.vision),
        (trial["freeze_multi_modal_projector"], groups.projector),
        (trial["freeze_language_model"], groups.language),
    )
    return tuple(name for frozen, names in flags if frozen for name in names)


def freeze(model: torch.nn.Module, model_type: str, text_layers: int, trial: dict[str, Any]) -> None:
    """Sets `requires_grad` for methods `full` and `freeze`.

    `freeze` trains what has the number of one of the last FREEZE_TRAINABLE_LAYERS of `text_layers` layers in its name, and the
    projector; neither if a flag freezes it. So a vision tower that is not frozen is trained in the blocks of those numbers.

    Raises:
        NothingToTrain: everything is frozen.
    """
    frozen = frozen_names(model_type, trial)
    layers = [f".{number}." for number in range(max(0, text_layers - FREEZE_TRAINABLE_LAYERS), text_layers)]
    projector = GROUPS[model_type].projector if model_type in GROUPS else ()
    for name, parameter in model.named_parameters():
        chosen = trial["method"] != "freeze" or _any_in((*layers, *projector), name)
        parameter.requires_grad_(chosen and not _any_in(frozen, name))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise NothingToTrain("everything is frozen: nothing would be trained")


def lora_targets(model: torch.nn.Module, model_type: str, trial: dict[str, Any]) -> list[str]:
    """Full names of the linear modules that get an adapter.

    `all`: every linear module outside lm_head, the projector, the patch embedding and what is frozen. A list of names: the
    modules that end so, likewise.

    Raises:
        NothingToTrain: no module is left.
    """
    groups = GROUPS.get(model_type)
    excluded = (*_NEVER_ADAPTED, *frozen_names(model_type, trial), *((*groups.projector, *_LORA_CONFLICT) if groups else ()))
    wanted = trial["lora"]["target"]
    endings = None if wanted == "all" else {name.strip() for name in wanted.split(",")}
    found = [
        name
        for name, module in model.named_modules()
        if "Linear" in type(module).__name__ and not _any_in(excluded, name) and (endings is None or _ending(name) in endings)
    ]
    if not found:
        raise NothingToTrain(f"lora target '{wanted}': no linear module is left to adapt")
    return found


def _any_in(substrings: Iterable[str], name: str) -> bool:
    return any(substring in name for substring in substrings)


def _ending(name: str) -> str:
    return name.rpartition(".")[2]
