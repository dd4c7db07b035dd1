"""Which blocks of a model repeat, and the shallow model in which every one of them meets the neighbours that it has.

A block's *signature* is what decides the events of its forward and backward: classes and plain attributes of its modules,
shapes of its parameters and which of them are trained or adapted, its kind of attention, its place among the layers that hand
features over (deepstack). A block is alike another one when their signatures and those of both neighbours are. The full model
is reduced to the shortest row of blocks that has every such context of it, twice where the full model has it more than once, so
that one occurrence can be checked against the other.
"""

import copy
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from autofit.worker.groups import freeze, lora_targets
from autofit.worker.models import build, load_config, text_config
from autofit.worker.trace_expand import Layout

_TEXT = re.compile(r"(^|\.)layers$")
_VISION = re.compile(r"(^|\.)visual\.blocks$")
_PLACE = frozenset({"layer_idx", "layer_id", "layer_number"})
_LAYER_LISTS = ("fullatt_block_indexes", "deepstack_visual_indexes")
"""Keys of a vision config that name blocks; any other list of numbers is not understood here."""
_FREE_LISTS = frozenset({"architectures", "keys_to_ignore_at_inference", "eos_token_id", "bos_token_id", "pad_token_id"})

Signature = tuple[Any, ...]


class NotReducible(ValueError):  # noqa: N818 - reads better where it is raised
    """The model cannot be traced shallow; says why."""


@dataclass(frozen=True)
class Shallow:
    """A shallow model that stands for a deep one."""

    model: dict[str, Any]
    """`autofit.config.model.Model` as a dict, with the reduced config."""
    layout: Layout
    """How to write the deep one."""
    check: Layout
    """How to write the shallow one from its own first occurrences: must give it back."""
    parameters: list[int]
    """Elements of the deep model's parameters before adapters, in order."""


@dataclass(frozen=True)
class Stack:
    """A list of blocks that run one after the other."""

    name: str
    """Of the module list, for example `model.language_model.layers`."""
    container: str
    """Of the module whose forward runs them."""
    depth: int


def stacks_of(model: torch.nn.Module) -> list[Stack]:
    """The vision tower's blocks and the language model's layers, as far as the model has them.

    Raises:
        NotReducible: no such list of layers, or several.
    """
    lists = {
        name: len(module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and (_TEXT.search(name) or _VISION.search(name))
    }
    found = []
    for pattern in (_VISION, _TEXT):
        names = [name for name in lists if pattern.search(name)]
        if len(names) > 1 or (pattern is _TEXT and not names):
            raise NotReducible(f"{len(names)} lists of blocks match {pattern.pattern}")
        found += [Stack(name, name.rpartition(".")[0], lists[name]) for name in names]
    return found


_bare: dict[str, torch.nn.Module] = {}


def shallow(model: dict[str, Any], trial: dict[str, Any]) -> Shallow:
    """The shallow stand-in of a model under a trial's method and freezing.

    Raises:
        NotReducible: says why.
        NothingToTrain, ValueError, ...: as `models.build`.
    """
    if not model.get("config"):
        raise NotReducible("the model's config is not in the spec")
    config = load_config(model)
    _understood(config)
    deep = _built(model, trial)
    stacks = stacks_of(deep)
    signatures = _signatures(deep, stacks, config, trial)
    rows = [reduced_row(memory, whole) for memory, whole in signatures]
    reduced = _with_blocks(model, config, stacks, rows)
    small = _built(reduced, trial)
    again = _signatures(small, stacks_of(small), load_config(reduced), trial)
    for (memory, whole), (there, whole_there), row in zip(signatures, again, rows, strict=True):
        if [memory[at] for at in row] != there or [whole[at] for at in row] != whole_there:
            raise NotReducible("a shallow config does not build the same blocks")
    layouts = [_templates(memory, whole, row) for (memory, whole), row in zip(signatures, rows, strict=True)]
    checks = [_first_alike(there) for there, _ in again]
    depths = tuple(len(row) for row in rows)
    sizes = [parameter.numel() for parameter in deep.parameters()]
    layout, check = (
        Layout(depths, tuple((*row, depth) for row, depth in zip(rows, depths, strict=True))) for rows in (layouts, checks)
    )
    return Shallow(reduced, layout, check, sizes)


def _understood(config: Any) -> None:
    """Refuses configs with lists of numbers whose meaning could depend on the depth."""
    text, vision = text_config(config), getattr(config, "vision_config", None)
    for part, known in ((text, ("layer_types",)), (vision, _LAYER_LISTS)):
        for key, value in (part.to_dict() if part is not None else {}).items():
            if key in known or key in _FREE_LISTS or not isinstance(value, (list, tuple)):
                continue
            raise NotReducible(f"config key {key} is a list that may name layers")


def _built(model: dict[str, Any], trial: dict[str, Any]) -> torch.nn.Module:
    """The plain model on `meta`, kept for the next variant."""
    plain = dict.fromkeys(("freeze_vision_tower", "freeze_multi_modal_projector", "freeze_language_model"), False)
    key = json.dumps(model["config"], sort_keys=True)
    if key not in _bare:
        if len(_bare) >= 8:
            _bare.clear()
        _bare[key] = build(model, {**trial, **plain, "method": "full", "gradient_checkpointing": False}, 0, "meta")
    return _bare[key]


def _signatures(
    model: torch.nn.Module, stacks: Sequence[Stack], config: Any, trial: dict[str, Any]
) -> list[tuple[list[Signature], list[Signature]]]:
    """Per stack: signatures of its blocks as far as events go, and with what changes arithmetic alone."""
    adapted: frozenset[str] = frozenset()
    text = text_config(config)
    if trial["method"] == "lora":
        adapted = frozenset(lora_targets(model, config.model_type, trial))
    else:
        freeze(model, config.model_type, int(text.num_hidden_layers), trial)
    vision = getattr(config, "vision_config", None)
    handed = list(getattr(vision, "deepstack_visual_indexes", None) or [])
    whole_squares = set(getattr(vision, "fullatt_block_indexes", None) or [])
    kinds = list(getattr(text, "layer_types", None) or [])
    result = []
    for stack in stacks:
        blocks = list(model.get_submodule(stack.name).children())
        of_vision = bool(_VISION.search(stack.name))
        memory: list[Signature] = []
        whole: list[Signature] = []
        for place, block in enumerate(blocks):
            if of_vision:
                role: Any = handed.index(place) if place in handed else None
            else:
                role = (kinds[place] if kinds else None, place if place < len(handed) else None)
            own = (role, _of_block(block, f"{stack.name}.{place}", adapted, trial["method"] != "lora"))
            memory.append(own)
            whole.append((own, place in whole_squares if of_vision else None))
        result.append((memory, whole))
    return result


def _of_block(block: torch.nn.Module, name: str, adapted: frozenset[str], trained: bool) -> Signature:
    modules = tuple(
        (
            inner,
            type(module).__name__,
            f"{name}.{inner}" in adapted,
            tuple(
                sorted(
                    (key, repr(value))
                    for key, value in vars(module).items()
                    if key not in _PLACE and isinstance(value, (bool, int, float, str, tuple, list, type(None)))
                )
            ),
        )
        for inner, module in block.named_modules()
    )
    parameters = tuple(
        (inner, tuple(parameter.shape), parameter.requires_grad and trained) for inner, parameter in block.named_parameters()
    )
    return modules, parameters


# ---- rows of blocks -----------------------------------------------------------------------------------------------------


def _contexts(memory: Sequence[Any], whole: Sequence[Any]) -> list[tuple[Any, Any, Any]]:
    """(events of the block before, the block itself, events of the block behind) of every block."""
    edges = [None, *memory, None]
    return [(edges[at], whole[at], edges[at + 2]) for at in range(len(memory))]


def reduced_row(memory: Sequence[Any], whole: Sequence[Any]) -> list[int]:
    """Positions of the blocks that a shallow model keeps, in order: as few as have every context of the deep one.

    Contexts of events that occur more than once stay twice.
    """
    memory, whole = _numbered(memory), _numbered(whole)
    wanted = set(_contexts(memory, whole))
    twice = {context: min(2, count) for context, count in Counter(_contexts(memory, memory)).items()}
    row = list(range(len(memory)))

    def enough(positions: list[int]) -> bool:
        events = [memory[at] for at in positions]
        if not wanted <= set(_contexts(events, [whole[at] for at in positions])):
            return False
        counts = Counter(_contexts(events, events))
        return all(counts[context] >= least for context, least in twice.items())

    for length in range(len(row) - 1, 0, -1):
        at = 0
        while at + length <= len(row):
            shorter = row[:at] + row[at + length :]
            if shorter and enough(shorter):
                row = shorter
            else:
                at += 1
    return row


def _numbered(values: Sequence[Any]) -> list[int]:
    known: dict[Any, int] = {}
    return [known.setdefault(value, len(known)) for value in values]


def _templates(memory: Sequence[Any], whole: Sequence[Any], row: Sequence[int]) -> tuple[int, ...]:
    """For every block of the deep model the last place in the row that has its context."""
    contexts = _contexts([memory[at] for at in row], [whole[at] for at in row])
    places = {context: place for place, context in enumerate(contexts)}
    return tuple(places[context] for context in _contexts(memory, whole))


def _first_alike(memory: Sequence[Any]) -> tuple[int, ...]:
    first: dict[Any, int] = {}
    return tuple(first.setdefault(context, place) for place, context in enumerate(_contexts(memory, memory)))


def _with_blocks(model: dict[str, Any], config: Any, stacks: Sequence[Stack], rows: Sequence[list[int]]) -> dict[str, Any]:
    """The model dict with only these blocks; keys that name positions are rewritten."""
    values = copy.deepcopy(model["config"])
    for stack, row in zip(stacks, rows, strict=True):
        if _VISION.search(stack.name):
            part, source = values["vision_config"], config.vision_config
            part["depth"] = len(row)
            for key in _LAYER_LISTS:
                if getattr(source, key, None):
                    part[key] = [place for place, at in enumerate(row) if at in getattr(source, key)]
            continue
        part, source = values.get("text_config") or values, text_config(config)
        part["num_hidden_layers"] = len(row)
        if getattr(source, "layer_types", None):
            part["layer_types"] = [source.layer_types[at] for at in row]
    return {**model, "config": values, "path": None, "id": None}
