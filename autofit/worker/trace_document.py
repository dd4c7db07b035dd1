"""The trace document of a variant: its shapes traced and aligned, and what there is to say about the model."""

import importlib
import platform
from typing import Any

import numpy as np

from autofit.worker.trace_accumulation import NotAlike, Unrolled
from autofit.worker.trace_autocast import unknown_operators
from autofit.worker.trace_blocks import NotReducible, Shallow, shallow
from autofit.worker.trace_expand import Layout, Names, NotExpandable, Row
from autofit.worker.trace_inputs import Shape, TraceError
from autofit.worker.trace_kernels import CUBLAS_WORKSPACE
from autofit.worker.trace_operations import Recorded
from autofit.worker.trace_parts import owner_modules, parameter_groups
from autofit.worker.trace_session import Session
from autofit.worker.trace_tracer import CATEGORIES, PHASES, StorageTracer
from autofit.worker.trace_written import Written, require_itself

FORMAT = 6


def document(model: dict[str, Any], trial: dict[str, Any], options: dict[str, Any], shapes: list[Shape]) -> dict[str, Any]:
    """The whole trace: one group a regime (with `single` two), in the order in which the regimes appear.

    Args:
        options: the spec's `trace` key; `depth: "shallow"` allows a shallow model to stand for a deep one.
        shapes: none: the trial's own batch.

    Raises:
        TraceError: the configuration cannot be traced, or its events differ between the shapes of a regime.
    """
    single = bool(options.get("single"))
    stand_in, reason = _stand_in(model, trial, options)
    if stand_in is not None:
        try:
            return _document(_session(model, trial, options, stand_in), shapes, single)
        except NotExpandable as error:
            reason = str(error)
    return _document(_session(model, trial, options, None), shapes, single, reason)


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


def _document(session: Session, shapes: list[Shape], single: bool, reason: str = "") -> dict[str, Any]:
    shapes = shapes or [session.own_shape()]
    regimes = list(dict.fromkeys(shape.regime for shape in shapes))
    groups = []
    for regime in regimes:
        groups += _groups(session, [shape for shape in shapes if shape.regime == regime], single)
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


def _groups(session: Session, shapes: list[Shape], single: bool) -> list[dict[str, Any]]:
    """Traces shapes of one regime: one structure, sizes a shape; one with accumulation and, with `single`, one without."""
    if not single or session.micro_steps == 1:
        return [_strict(session, shapes, session.micro_steps)]
    one, several = (session.full(shapes[0], micro_steps) for micro_steps in (1, session.micro_steps))
    probes = [session.probe(shape, 1) for shape in shapes[1:]]
    alone = _aligned(session, shapes, 1, one, probes)
    try:
        unrolled = Unrolled(several, one)
        sizes = [unrolled.sizes(probe) for probe in probes]
        operations = [unrolled.operations(probe) for probe in probes]
    except NotAlike:
        return [_strict(session, shapes, session.micro_steps), alone]
    return [_group(session, shapes, session.micro_steps, several, sizes, operations), alone]


def _strict(session: Session, shapes: list[Shape], micro_steps: int) -> dict[str, Any]:
    """Every shape traced with that many micro-batches, event by event the same."""
    reference = session.full(shapes[0], micro_steps)
    probes = [session.probe(shape, micro_steps) for shape in shapes[1:]]
    return _aligned(session, shapes, micro_steps, reference, probes)


def _aligned(
    session: Session, shapes: list[Shape], micro_steps: int, reference: StorageTracer, probes: list[StorageTracer]
) -> dict[str, Any]:
    pairs = list(zip(probes, shapes[1:], strict=True))
    sizes = [_aligned_sizes(reference, probe, shape) for probe, shape in pairs]
    operations = [_aligned_operations(reference, probe, shape) for probe, shape in pairs]
    return _group(session, shapes, micro_steps, reference, sizes, operations)


def _group(  # noqa: PLR0917 - the columns of one group
    session: Session,
    shapes: list[Shape],
    micro_steps: int,
    reference: StorageTracer,
    sizes: list[list[int]],
    operations: list[list[Recorded]],
) -> dict[str, Any]:
    """A regime's group; sizes and operations are those of the shapes after the first."""
    if session.shallow is not None:
        require_itself(session, reference, session.shallow.check)
    written = Written(session, reference, session.shallow.layout if session.shallow is not None else None)
    return {
        "regime": shapes[0].regime,
        "micro_steps": micro_steps,
        "shapes": [shape.written() for shape in shapes],
        "events": written.events(),
        "storages": written.storages([reference.storage_bytes, *sizes]),
        "moments": written.moments(),
        "operations": written.operations([reference.operations, *operations]),
    }


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
    modules = Row([session.tag_of(name) for name in owner_modules(session.model)], layout)
    own = np.asarray([int(parameter["module"]) for parameter in session.parameters])
    numbers = Names(modules, np.arange(modules.length)).deep(row, own)
    return [{**session.parameters[at], "module": int(number)} for at, number in zip(source, numbers, strict=True)]


def _metadata(session: Session) -> dict[str, Any]:
    layout = session.shallow.layout if session.shallow is not None else None
    groups = parameter_groups(session.model, lambda name: 1 if layout is None else layout.copies(session.tag_of(name)))
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
        "micro_steps_traced": session.micro_steps,
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


def _aligned_operations(reference: StorageTracer, probe: StorageTracer, shape: Shape) -> list[Recorded]:
    """The reference's operations with the probe's numbers; the optimizer's keep their own."""
    count = len(probe.operations)
    if [row[:2] for row in probe.operations] != [row[:2] for row in reference.operations[:count]]:
        raise TraceError(f"{shape}: the operations are not those of the first shape of its regime {shape.regime!r}")
    return probe.operations + reference.operations[count:]


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("torch", "transformers", "peft", "accelerate"):
        try:
            found[name] = str(importlib.import_module(name).__version__)
        except ImportError:
            continue
    return found
