"""A trial spec under ZeRO: DeepSpeed's settings as LLaMA-Factory's files have them, and the terms on top of its trace."""

from collections.abc import Hashable
from dataclasses import replace

from autofit.config.model import Model
from autofit.config.trial import TrialSpec
from autofit.predict.symbolic import SymbolicTrace
from autofit.predict.zero import ZeroHeld, ZeroTerms, llamafactory_settings, replay_zero
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


def zero_settings(spec: TrialSpec, model: Model) -> ZeroSettings:
    """The settings under which a spec runs on CUDA."""
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
    return replace(settings, weight_bytes=width, gradient_bytes=width, state_bytes=state, optimizer_temporary_bytes=temporary)


def zero_terms(  # noqa: PLR0917 - a shape is three numbers
    settings: ZeroSettings,
    trace: SymbolicTrace,
    batch: int,
    length: int,
    patches: int = 0,
    kept: dict[Hashable, ZeroHeld] | None = None,
) -> ZeroTerms:
    """What a rank holds in each phase at one shape: ZeRO's own memory replayed over the moments of the one-rank trace.

    Args:
        kept: replays that were made before, and where this one is put: what ZeRO holds does not depend on the shape, so that
            one replay serves all of them.
    """
    kept = {} if kept is None else kept
    moments = trace.moments(batch, length, patches)
    alike = replace(settings, gradient_accumulation_steps=min(MICRO_STEPS_REPLAYED, settings.gradient_accumulation_steps))
    key = (alike, tuple(trace.parameters), tuple((moment.kind, moment.index) for moment in moments))
    if key not in kept:
        kept[key] = replay_zero(alike, trace.parameters, moments)
    return kept[key].under([moment.peak_bytes for moment in moments], [moment.live_bytes for moment in moments])
