"""The trace document of a variant: its shapes traced, aligned, and written; a shallow trace as the deep model's.

A shallow trace is written deep only after it has passed a check on itself: written from the first occurrence of each of its
own contexts it must give itself back, record by record (kinds, phases, sizes, categories, which storage is freed, modules,
gradients, operations). So what is copied some thirty times has been seen to be a copy at least once, in this variant and
regime. The deep model's parameters are compared one by one besides. A variant that fails is traced at full depth.
"""

import importlib
import platform
from typing import Any

import numpy as np

from autofit.worker.trace_autocast import unknown_operators
from autofit.worker.trace_blocks import NotReducible, Shallow, shallow
from autofit.worker.trace_expand import Ints, Layout, Names, NotExpandable, Row, first_difference, require_lifetimes
from autofit.worker.trace_inputs import Shape, TraceError
from autofit.worker.trace_kernels import CUBLAS_WORKSPACE
from autofit.worker.trace_operations import Recorded
from autofit.worker.trace_parts import owner_modules, parameter_groups
from autofit.worker.trace_session import MICRO_STEPS, Session
from autofit.worker.trace_tracer import CATEGORIES, PHASES, StorageTracer

FORMAT = 2


def document(model: dict[str, Any], trial: dict[str, Any], options: dict[str, Any], shapes: list[Shape]) -> dict[str, Any]:
    """The whole trace: one group a regime, in the order in which the regimes appear.

    Args:
        options: the spec's `trace` key; `depth: "shallow"` allows a shallow model to stand for a deep one.
        shapes: none: the trial's own batch.

    Raises:
        TraceError: the configuration cannot be traced, or its events differ between the shapes of a regime.
    """
    stand_in, reason = _stand_in(model, trial, options)
    if stand_in is not None:
        try:
            return _document(_session(model, trial, options, stand_in), shapes)
        except NotExpandable as error:
            reason = str(error)
    return _document(_session(model, trial, options, None), shapes, reason)


def _stand_in(model: dict[str, Any], trial: dict[str, Any], options: dict[str, Any]) -> tuple[Shallow | None, str]:
    if options.get("depth") != "shallow":
        return None, "asked for"
    try:
        return shallow(model, trial), ""
    except NotReducible as error:
        return None, str(error)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError, ArithmeticError) as error:
        return None, f"cannot be built: {error}"  # the session will say it to the user


def _session(model: dict[str, Any], trial: dict[str, Any], options: dict[str, Any], stand_in: Shallow | None) -> Session:
    try:
        return Session(model, trial, options, stand_in)
    except KeyError as error:
        raise TraceError(f"spec without {error}: needs model and a whole trial") from error


def _document(session: Session, shapes: list[Shape], reason: str = "") -> dict[str, Any]:
    shapes = shapes or [session.own_shape()]
    regimes = list(dict.fromkeys(shape.regime for shape in shapes))
    groups = [_group(session, [shape for shape in shapes if shape.regime == regime]) for regime in regimes]
    layout = session.shallow.layout if session.shallow is not None else None
    depth: dict[str, Any]
    if session.shallow is not None:
        whole = session.shallow.layout
        depth = {"traced": list(whole.depths), "of": [len(row) - 1 for row in whole.templates]}
    else:
        depth = {"full": reason}
    return {
        "format": FORMAT,
        "categories": list(CATEGORIES),
        "phases": list(PHASES),
        "groups": groups,
        "parameters": _parameters(session, layout),
        "metadata": _metadata(session) | {"depth": depth},
    }


def _group(session: Session, shapes: list[Shape]) -> dict[str, Any]:
    """Traces shapes of one regime: one structure, sizes a shape."""
    reference = session.full(shapes[0])
    sizes, operations = [reference.storage_bytes], [reference.operations]
    for shape in shapes[1:]:
        probe = session.probe(shape)
        sizes.append(_aligned_sizes(reference, probe, shape))
        operations.append(_aligned_operations(reference, probe, shape))
    if session.shallow is not None and reference.orphans:
        raise NotExpandable(f"the optimizer makes {len(reference.orphans)} storages that belong to no parameter")
    written = _Written(session, reference, session.shallow.layout if session.shallow is not None else None)
    if session.shallow is not None:
        _require_itself(session, reference, session.shallow)
    return {
        "regime": shapes[0].regime,
        "shapes": [shape.written() for shape in shapes],
        "events": written.events(),
        "storages": written.storages(sizes),
        "moments": written.moments(),
        "operations": written.operations(operations),
    }


class _Written:
    """The records of a tracer as columns; with a layout, those of the deep model."""

    def __init__(self, session: Session, tracer: StorageTracer, layout: Layout | None) -> None:
        self.tracer = tracer
        self.layout = layout
        kind = np.asarray(tracer.event_kind, dtype=np.int64)
        at = np.asarray([event for event, *_ in tracer.moments], dtype=np.int64)
        self._order = np.argsort(np.r_[2 * np.arange(len(kind)) + 1, 2 * at], kind="stable")
        self._is_event = self._order < len(kind)
        storage = np.asarray([*tracer.event_storage, *(storage for *_, storage in tracer.moments)], dtype=np.int64)
        self._storage = storage[self._order]
        self._source = np.arange(len(self._order))
        self._things: dict[str, Ints] = {}
        if layout is None:
            return
        cuts = np.asarray([*tracer.event_cut, *tracer.moment_cut], dtype=np.int64)[self._order]
        row = Row(np.asarray([*tracer.event_tag, *tracer.moment_tag], dtype=np.int64)[self._order], layout, cuts)
        made = np.flatnonzero(self._is_event & (np.r_[kind, np.zeros(len(at), dtype=np.int64)][self._order] > 0))
        names = Names(row, made)
        self._template = names.template
        self._source = row.deep(self._source)
        freed = self._storage
        self._storage = names.deep(row, freed)
        self._require_same_storages(row.deep(freed))
        for name, tags in _owners(session).items():
            things = np.full(len(self._order), -1, dtype=np.int64)
            moments = np.flatnonzero(~self._is_event)
            mine = np.asarray([(kind == "grad") == (name == "grad") for _, kind, _, _ in tracer.moments], dtype=bool)
            index = np.asarray([index for _, _, index, _ in tracer.moments], dtype=np.int64)
            things[moments[mine]] = index[mine]
            numbered = Row(tags, layout)
            self._things[name] = Names(numbered, np.arange(len(tags))).deep(row, things)

    def _require_same_storages(self, wanted: Ints) -> None:
        """What a block frees of its neighbour must be what its template freed there."""
        bytes_ = np.asarray(self.tracer.storage_bytes)
        some = wanted >= 0
        found = self._template[self._storage[some]]
        if np.any(bytes_[found] != bytes_[wanted[some]]):
            raise NotExpandable("blocks with equal neighbours leave them different storages")
        events = self._is_event[self._source]
        kinds = np.asarray(self.tracer.event_kind)[self._order[self._source[events]]]
        mortal = np.isin(np.arange(len(bytes_)), np.asarray(self.tracer.event_storage)[np.asarray(self.tracer.event_kind) < 0])
        require_lifetimes(kinds, self._storage[events], mortal[self._template])

    def events(self) -> dict[str, list[int]]:
        chosen = self._is_event[self._source]
        at = self._order[self._source[chosen]]
        tracer = self.tracer
        return {
            "kind": np.asarray(tracer.event_kind)[at].tolist(),
            "storage": self._storage[chosen].tolist(),
            "phase": np.asarray(tracer.event_phase)[at].tolist(),
            "step": np.asarray(tracer.event_step)[at].tolist(),
        }

    def storages(self, sizes: list[list[int]]) -> dict[str, Any]:
        """Sizes a shape of what was traced; `template` says for each storage of the events which of them it is."""
        tracer = self.tracer
        written = {"category": tracer.storage_category, "source": _indexed(tracer.storage_source), "bytes": sizes}
        if self.layout is None:
            return written
        spread = {storage: self._deep_sum(parts) for storage, parts in tracer.storage_spread.items()}
        written["bytes"] = [[spread.get(at, size) for at, size in enumerate(row)] if spread else row for row in sizes]
        return written | {"template": self._template.tolist()}

    def moments(self) -> dict[str, list[Any]]:
        before = np.cumsum(self._is_event[self._source])
        chosen = np.flatnonzero(~self._is_event[self._source])
        source = self._order[self._source[chosen]] - len(self.tracer.event_kind)
        kinds = [self.tracer.moments[at][1] for at in source]
        if self.layout is None:
            index = [self.tracer.moments[at][2] for at in source]
        else:
            parts = (self._things["grad" if kind == "grad" else "module"][at] for kind, at in zip(kinds, chosen, strict=True))
            index = [int(part) for part in parts]
        return {"event": before[chosen].tolist(), "kind": kinds, "index": index, "storage": self._storage[chosen].tolist()}

    def operations(self, shapes: list[list[Recorded]]) -> dict[str, Any]:
        """Figures a shape of what was traced; `count` says how often each of them is run."""
        first = shapes[0]
        written = {
            "name": _indexed([row.name for row in first]),
            "phase": [row.phase for row in first],
            "flops": [[row.flops for row in rows] for rows in shapes],
            "bytes_read": [[self._traffic(row, 0) for row in rows] for rows in shapes],
            "bytes_written": [[self._traffic(row, 1) for row in rows] for rows in shapes],
        }
        if self.layout is None:
            return written
        count = {tag: self.layout.copies(tag) for tag in {row.tag for row in first}}
        return written | {"count": [count[row.tag] for row in first]}

    def _traffic(self, row: Recorded, which: int) -> float:
        if self.layout is None or row.spread is None:
            return row.bytes_written if which else row.bytes_read
        return float(self._deep_sum(row.spread[which]))

    def _deep_sum(self, parts: dict[int, int]) -> int:
        assert self.layout is not None
        return sum(part * self.layout.copies(tag) for tag, part in parts.items())


def _owners(session: Session) -> dict[str, list[int]]:
    """Tags of the parameters and of the modules that own some, in the order of their numbers."""
    if not session.watches_modules:
        return {}
    return {
        "grad": [session.tag_of(name) for name, _ in session.model.named_parameters()],
        "module": [session.tag_of(name) for name in owner_modules(session.model)],
    }


def _require_itself(session: Session, tracer: StorageTracer, stand_in: Shallow) -> None:
    """Raises NotExpandable unless the trace, written from the first of its blocks that are alike, is the trace itself."""
    there, here = _Written(session, tracer, stand_in.check), _Written(session, tracer, None)
    events, own = there.events(), here.events()
    sizes, template = np.asarray(tracer.storage_bytes), there._template
    categories = np.asarray(tracer.storage_category)
    pairs = [(name, events[name], own[name]) for name in ("kind", "phase", "step")]
    born, own_born = (np.asarray(column["storage"])[np.asarray(column["kind"]) > 0] for column in (events, own))
    if (at := first_difference(sizes[template[born]], sizes[own_born])) is not None:
        raise NotExpandable(f"storage {at} of blocks that should be alike differs in size")
    pairs.append(("category", categories[template[born]], categories[own_born]))
    renamed = np.argsort(born), np.argsort(own_born)
    pairs.append(("storage", renamed[0][np.asarray(events["storage"])], renamed[1][np.asarray(own["storage"])]))
    moments, own_moments = there.moments(), here.moments()
    pairs += [(f"moment {name}", moments[name], own_moments[name]) for name in ("event", "kind", "index")]
    for name, one, other in pairs:
        if (at := first_difference(one, other)) is not None:
            raise NotExpandable(f"{name} {at} of blocks that should be alike differs")
    _require_alike_operations(tracer, stand_in.check)


def _require_alike_operations(tracer: StorageTracer, check: Layout) -> None:
    """Operations of alike blocks move the same bytes in the same order; arithmetic may differ (kinds of attention)."""
    by_tag: dict[int, list[Any]] = {}
    for row in tracer.operations:
        by_tag.setdefault(row.tag, []).append((row.name, row.phase, row.bytes_read, row.bytes_written))
    for tag, rows in by_tag.items():
        if tag >= 0:
            first = check.first(tag)
            if rows != by_tag.get(first):
                raise NotExpandable(f"operations of block {tag} are not those of block {first}, which it should be like")


def _parameters(session: Session, layout: Layout | None) -> list[dict[str, int | bool]]:
    """Parameters of the (deep) model, with the numbers of the (deep) modules; compared with the model built deep."""
    if layout is None or session.shallow is None:
        return session.parameters
    named = list(session.model.named_parameters())
    row = Row([session.tag_of(name) for name, _ in named], layout)
    source = row.deep(np.arange(len(named)))
    sizes = [named[at][1].numel() for at in source if "lora_" not in named[at][0]]
    if sizes != session.shallow.parameters:
        raise NotExpandable(f"{sum(sizes)} parameters, the model has {sum(session.shallow.parameters)}")
    if not session.watches_modules:
        return []
    modules = Row([session.tag_of(name) for name in owner_modules(session.model)], layout)
    own = np.asarray([int(parameter["module"]) for parameter in session.parameters])
    numbers = Names(modules, np.arange(modules.length)).deep(row, own)
    return [{**session.parameters[at], "module": int(number)} for at, number in zip(source, numbers, strict=True)]


def _metadata(session: Session) -> dict[str, Any]:
    layout = session.shallow.layout if session.shallow is not None else None
    groups = parameter_groups(session.model, lambda name: 1 if layout is None else layout.copies(session.tag_of(name)))
    accumulation = int(session.trial["gradient_accumulation_steps"])
    unknown = unknown_operators(session.target) if session.kinds.autocast is not None else []
    if unknown:
        session.not_modelled.append(f"autocast of {', '.join(unknown)}")
    return {
        "target": session.target,
        "model_type": session.config.model_type,
        "parameters": {
            "total": sum(group["total"] for group in groups.values()),
            "trainable": sum(group["trainable"] for group in groups.values()),
            "groups": groups,
        },
        "precision_mode": session.kinds.words,
        "optimizer_traced": session.owns_optimizer,
        "gradient_accumulation_steps": accumulation,
        "micro_steps_traced": min(accumulation, MICRO_STEPS),
        "cublas_workspace_bytes": CUBLAS_WORKSPACE if session.target == "cuda" else 0,
        "not_modelled": session.not_modelled,
        "index_operators": session.index_operators(),
        "versions": _versions(),
    }


def _aligned_sizes(reference: StorageTracer, probe: StorageTracer, shape: Shape) -> list[int]:
    """Sizes of the reference's storages at the probe's shape.

    A step's batch, forward and backward are the same events in both; the other phases do not depend on the shape.

    Raises:
        TraceError: the events differ.
    """
    sizes = list(reference.storage_bytes)
    there = _segment(probe, 0)
    for step in sorted(set(reference.event_step)):
        here = _segment(reference, step)
        paired: dict[int, int] = {}
        for position, ((kind, storage), (other_kind, other)) in enumerate(zip(here, there, strict=False)):
            if kind > 0:
                paired[storage] = other
                sizes[storage] = probe.storage_bytes[other]
            if kind != other_kind or paired.get(storage, other) != other:
                raise TraceError(f"{shape}: event {position} is not that of the first shape of its regime {shape.regime!r}")
        if len(here) != len(there):
            raise TraceError(f"{shape}: {len(there)} events, the first shape of its regime {shape.regime!r} has {len(here)}")
    return sizes


def _segment(tracer: StorageTracer, step: int) -> list[tuple[int, int]]:
    wanted = {PHASES.index("batch"), PHASES.index("forward"), PHASES.index("backward")}
    return [
        (kind, storage)
        for kind, storage, phase, at in zip(
            tracer.event_kind, tracer.event_storage, tracer.event_phase, tracer.event_step, strict=True
        )
        if at == step and phase in wanted and tracer.storage_source[storage] != "cublas_workspace"
    ]


def _aligned_operations(reference: StorageTracer, probe: StorageTracer, shape: Shape) -> list[Any]:
    """The reference's operations with the probe's numbers; the optimizer's keep their own."""
    count = len(probe.operations)
    if [row[:2] for row in probe.operations] != [row[:2] for row in reference.operations[:count]]:
        raise TraceError(f"{shape}: the operations are not those of the first shape of its regime {shape.regime!r}")
    return probe.operations + reference.operations[count:]


def _indexed(names: list[str]) -> dict[str, Any]:
    table = sorted(set(names))
    index = {name: number for number, name in enumerate(table)}
    return {"names": table, "index": [index[name] for name in names]}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("torch", "transformers", "peft", "accelerate"):
        try:
            found[name] = str(importlib.import_module(name).__version__)
        except ImportError:
            continue
    return found
