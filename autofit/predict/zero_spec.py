"""A trial spec under ZeRO: DeepSpeed's settings as LLaMA-Factory's files have them, and the terms on top of its trace."""

from collections.abc import Hashable
from dataclasses import dataclass, field, replace

from autofit.config.model import Model
from autofit.config.trial import TrialSpec
from autofit.predict.symbolic import SymbolicTrace
from autofit.predict.zero import ZeroHeld, ZeroTerms, llamafactory_settings, replay_zero
from autofit.predict.zero_moments import Moment
from autofit.predict.zero_replicated import MICRO_STEPS_REPLAYED
from autofit.predict.zero_settings import ZeroSettings

_OPTIMIZERS = {
    "adamw_torch": (8.0, 4),
    "adamw_torch_fused": (8.0, 0),
    "adamw_8bit": (2 + 8 / 256, 0),
    "paged_adamw_8bit": (8 / 256, 0),
    "adafactor": (4.0, 8),
    "sgd": (0.0, 0),
}
"""Optimizer -> bytes per element of its state in the flat fp32 partition, and of its temporaries while it updates (CUDA).

Adafactor cannot factor a flat partition and keeps one second moment an element (`transformers/optimization.py`); the state of
the 8-bit ones is that of `worker/trace_optim.py`."""


@dataclass
class Kept:
    """Replays and moments of one predictor: what ZeRO holds does not depend on the shape, so that one replay serves all shapes

    whose moments come in one order; and all stages meet the same moments at a shape.
    """

    held: dict[tuple[ZeroSettings, int], ZeroHeld] = field(default_factory=dict)
    moments: dict[tuple[int, int, int, int], tuple[SymbolicTrace, list[Moment], int]] = field(default_factory=dict)
    """(identity of the trace, shape) -> the trace, which must live as long, its moments, and the number of their order."""
    orders: dict[Hashable, int] = field(default_factory=dict)


_CPU_ADAMW_TEMPORARY = 8
"""Bytes per element of AdamW's temporaries on the CPU, where torch updates one tensor at a time (`_single_tensor_adamw`)."""


def zero_settings(spec: TrialSpec, model: Model, cpu_elements: int | None = None) -> ZeroSettings:
    """The settings under which a spec runs.

    Args:
        cpu_elements: None on CUDA; on the CPU the parameters of the model, at which a trial ends the buckets of stages 1 and 2
            (`worker/startup.py`).
    """
    config = model.config or {}
    settings = llamafactory_settings(
        spec.zero_stage,
        spec.num_gpus,
        int((config.get("text_config") or config)["hidden_size"]),
        gradient_accumulation_steps=spec.gradient_accumulation_steps,
        offload_optimizer=spec.offload_optimizer,
        offload_param=spec.offload_param,
    )
    state, temporary = _OPTIMIZERS[spec.optimizer]
    width = 4 if spec.precision == "fp32" else 2
    if cpu_elements is not None:
        temporary = _CPU_ADAMW_TEMPORARY if spec.optimizer.startswith("adamw") else temporary
        if spec.zero_stage < 3:
            settings = replace(settings, reduce_bucket_size=min(settings.reduce_bucket_size, cpu_elements))
    return replace(settings, weight_bytes=width, gradient_bytes=width, state_bytes=state, optimizer_temporary_bytes=temporary)


def zero_terms(  # noqa: PLR0917 - a shape is three numbers
    settings: ZeroSettings,
    trace: SymbolicTrace,
    batch: int,
    length: int,
    patches: int = 0,
    kept: Kept | None = None,
) -> ZeroTerms:
    """What a rank holds in each phase at one shape: ZeRO's own memory replayed over the moments of the one-rank trace.

    Args:
        kept: what was made before, and where this is put.
    """
    kept = Kept() if kept is None else kept
    at = (id(trace), batch, length, patches)
    if at not in kept.moments:
        found = trace.moments(batch, length, patches)
        order = (tuple(trace.parameters), tuple((moment.kind, moment.index) for moment in found))
        kept.moments[at] = (trace, found, kept.orders.setdefault(order, len(kept.orders)))
    _, moments, number = kept.moments[at]
    micro_steps = 1 if settings.stage == 3 else min(MICRO_STEPS_REPLAYED, settings.gradient_accumulation_steps)
    alike = replace(settings, gradient_accumulation_steps=micro_steps, offload_param=False)
    if (alike, number) not in kept.held:
        kept.held[alike, number] = replay_zero(alike, trace.parameters, moments)
    held = kept.held[alike, number]
    if settings.offload_param:
        held = held.without("weights")
    return held.under([m.peak_bytes for m in moments], [m.live_bytes for m in moments])
