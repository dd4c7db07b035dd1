"""What is said of a configuration before it runs, in one form for both kinds of device. Bytes and seconds; all predicted."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from autofit.config.hardware import Device
from autofit.config.model import Model, resolve_model
from autofit.config.trial import TrialSpec
from autofit.errors import AutofitError
from autofit.launch.environment import TrainingEnvironment
from autofit.predict.devices import recognise
from autofit.predict.images import image_patches
from autofit.predict.predictor import Predictor
from autofit.predict.symbolic import SymbolicTrace
from autofit.predict.tracers import Tracers
from autofit.predict.variants import symbolic_trace, symbolic_traces

_STACK = ("torch", "transformers", "peft")
_CPU_SHARE, _CPU_BYTES = 1.035, 35 * 2**20
"""What a process takes above its tensors on the CPU, about: a rehearsal needs an estimate, not a good one."""


@dataclass(frozen=True)
class Forecast:
    """One configuration's prediction. None: not predicted on this device."""

    allocated: int | None = None
    reserved: int | None = None
    device: int | None = None
    device_high: int | None = None
    """With its margin: it decides `fits`."""
    fits: bool | None = None
    """Within the budget that was asked about."""
    step_seconds: float | None = None
    terms: dict[str, int] = field(default_factory=dict)
    """Name -> bytes at the peak."""
    phases: dict[str, int] = field(default_factory=dict)
    """Phase -> highest allocated bytes in it."""
    overhead: int = 0
    """Bytes that are assumed outside of the allocator."""
    timing: dict[str, Any] | None = None
    """Operations of a step as the roofline takes them, so that its constants can be fitted from the record alone."""
    error: str | None = None
    """Why there is no prediction."""

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


class Forecaster:
    """Predicts for a GPU (`Predictor`), or allocated bytes alone for a CPU."""

    def __init__(self, kind: str, device: Device, environment: TrainingEnvironment, cache: Path) -> None:
        self._kind, self._environment, self._cache = kind, environment, cache
        self._versions = {name: environment.versions[name] for name in _STACK if name in environment.versions}
        card = recognise(device.name) if kind == "cuda" else None
        self._tracers = Tracers(environment.python)
        self._predictor = Predictor(environment.python, environment.versions, cache=cache, device=card, tracers=self._tracers)
        self.card = card.name if card else None
        self._memory = device.memory_bytes

    def prepare(self, specs: Sequence[TrialSpec]) -> None:
        """Traces all variants of these specs side by side; what cannot be traced says so when it is asked about."""
        pairs = [(spec, resolve_model(spec.model)) for spec in specs]
        if self._kind == "cuda":
            self._predictor.prepare(pairs)
        else:
            symbolic_traces(pairs, self._versions, self._cache, self._tracers, target="cpu")

    def of(self, spec: TrialSpec, budget: int | None = None, *, whole: bool = False) -> Forecast:
        """The forecast of a canonical spec. `whole` adds phases and timing, which cost more."""
        model = resolve_model(spec.model)
        try:
            return self._cuda(spec, model, budget, whole) if self._kind == "cuda" else self._cpu(spec, model, budget)
        except AutofitError as error:
            return Forecast(error=str(error))

    def trace(self, spec: TrialSpec) -> SymbolicTrace:
        """The symbolic trace of a spec's variant.

        Raises:
            AutofitError: it cannot be traced.
        """
        target = "cuda" if self._kind == "cuda" else "cpu"
        model = resolve_model(spec.model)
        return symbolic_trace(spec, model, self._versions, self._cache, self._tracers, target)

    def _cuda(self, spec: TrialSpec, model: Model, budget: int | None, whole: bool) -> Forecast:
        said = self._predictor.predict(spec, model, budget or self._memory)
        overhead = sum(said.terms.get(name, 0) for name in ("cuda_context", "communication_buffers"))
        return Forecast(
            allocated=said.peak_allocated_bytes,
            reserved=said.peak_reserved_bytes,
            device=said.peak_device_bytes,
            device_high=said.peak_device_bytes_high,
            fits=said.fits,
            step_seconds=said.step_time_seconds if self.card else None,
            terms=said.terms,
            phases=self._predictor.timeline(spec, model).phases if whole else {},
            overhead=overhead,
            timing=self._timing(spec, model) if whole and self.card else None,
        )

    def _cpu(self, spec: TrialSpec, model: Model, budget: int | None) -> Forecast:
        if spec.zero_stage:
            return Forecast(error="ZeRO is predicted for GPUs only")
        patches = spec.micro_batch_size * spec.images.per_sample * image_patches(spec, model)
        shape = (spec.micro_batch_size, spec.cutoff_len, patches)
        peak = self.trace(spec).peak(*shape, spec.gradient_accumulation_steps)
        device = round(peak.peak_bytes * _CPU_SHARE) + _CPU_BYTES
        return Forecast(
            allocated=peak.peak_bytes,
            device=device,
            device_high=device,
            fits=None if budget is None else device <= budget,
            terms=peak.terms,
            overhead=device - peak.peak_bytes,
        )

    def _timing(self, spec: TrialSpec, model: Model) -> dict[str, Any]:
        timing = self._predictor.timing(spec, model)
        found = {
            name: {
                "flops": part.flops.tolist(),
                "bytes": part.bytes.tolist(),
                "count": part.count.tolist(),
                "matrix": None if part.matrix is None else part.matrix.tolist(),
            }
            for name, part in (("micro_step", timing.micro_step), ("optimizer", timing.optimizer))
        }
        return {**found, "job": asdict(timing.job)}
