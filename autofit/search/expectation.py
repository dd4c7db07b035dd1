"""What is expected of a configuration before it is measured: its prediction, or a rule of thumb where there is none."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from autofit.config.objective import rate_of_prediction
from autofit.config.prediction import Prediction
from autofit.config.trial import TrialSpec
from autofit.search.models import Observation, Parts, Scales

PREDICTED_MEMORY = Scales(common=0.12, knob=0.035, joint=0.03, own=0.015, noise=0.005)
"""A prediction may be off by a common 30 % (2.5 deviations) and still be mended by the first trial."""
PREDICTED_SPEED = Scales(common=0.25, knob=0.06, joint=0.05, own=0.03, noise=0.015, part=0.3)
GUESSED_MEMORY = Scales(common=0.7, knob=0.25, joint=0.1, own=0.05, noise=0.005)
GUESSED_SPEED = Scales(common=2.0, knob=0.3, joint=0.15, own=0.05, noise=0.015)
GUESSED_SHARE = 0.5
"""Of the budget: what a reference is guessed to need when nothing is known; the common factor makes up for it."""

_SHARDED = {0: (0.0, 0.0), 1: (-0.25, -0.03), 2: (-0.4, -0.06), 3: (-0.7, -0.25)}
"""ZeRO stage -> log memory and log speed against none, on several devices."""


@dataclass(frozen=True)
class Earlier:
    """A finished trial of an earlier study of the same model family, stack and device."""

    study: str
    spec: TrialSpec
    prediction: Prediction | None
    """Made before it ran."""
    peak_bytes: int | None = None
    at_least_bytes: int | None = None
    """Out of memory: the peak is above this."""
    speed: float | None = None
    """Its objective."""


class Expectation:
    """Log peak bytes and log speed of configurations, with how far to trust them."""

    def __init__(
        self, forecasts: Mapping[TrialSpec, Prediction], reference: TrialSpec, budget_bytes: int, objective: str
    ) -> None:
        self._forecasts = forecasts
        self._reference = reference
        self._objective = objective
        self.predicted = bool(forecasts)
        self.memory = PREDICTED_MEMORY if forecasts else GUESSED_MEMORY
        self.speed = PREDICTED_SPEED if forecasts else GUESSED_SPEED
        self._parts = sorted({name for one in forecasts.values() for name in one.step_terms})
        known = [_shares(one, self._parts) for one in forecasts.values() if one.step_terms]
        self._typical = tuple(map(median, zip(*known, strict=True))) or (1.0,)
        """Without any terms, the whole step is one part."""
        self._anchor = (math.log(GUESSED_SHARE * budget_bytes), 0.0)
        if forecasts:  # a point that cannot be predicted is guessed from those that can
            gaps = [
                tuple(known - guess for known, guess in zip(self._of(one), _rule(spec, reference), strict=True))
                for spec, one in forecasts.items()
            ]
            self._anchor = (median(gap[0] for gap in gaps), median(gap[1] for gap in gaps))

    def log_peak(self, spec: TrialSpec) -> float:
        """Logarithm of the expected peak in bytes."""
        return self._both(spec)[0]

    def log_speed(self, spec: TrialSpec) -> float:
        """Logarithm of the expected objective."""
        return self._both(spec)[1]

    def memory_of(self, earlier: Sequence[Earlier]) -> list[Observation]:
        """How earlier trials' peaks compare with what was expected of them."""
        found = []
        for one in earlier:
            known = one.peak_bytes or one.at_least_bytes
            if known and self._comparable(one):
                residual = math.log(known) - self._before(one)[0]
                found.append(Observation(one.spec, residual, censored=one.peak_bytes is None, study=one.study))
        return found

    def speed_of(self, earlier: Sequence[Earlier]) -> list[Observation]:
        """How earlier trials' speeds compare with what was expected of them."""
        return [
            Observation(
                one.spec,
                math.log(one.speed) - self._before(one)[1],
                study=one.study,
                parts=self._parts_of(one.prediction or self._forecasts.get(one.spec)),
            )
            for one in earlier
            if one.speed and self._comparable(one)
        ]

    def step_parts(self, spec: TrialSpec) -> Parts:
        """Shares of the expected step by what limits it; those of a typical one where it is not predicted."""
        return self._parts_of(self._forecasts.get(spec))

    def _parts_of(self, prediction: Prediction | None) -> Parts:
        if prediction is None or not prediction.step_terms or not self._parts:
            return self._typical
        return _shares(prediction, self._parts)

    def _comparable(self, one: Earlier) -> bool:
        """A prediction's residual says nothing of a rule of thumb, nor the other way round."""
        return (one.prediction is not None or one.spec in self._forecasts) == self.predicted

    def _before(self, one: Earlier) -> tuple[float, float]:
        return self._of(one.prediction) if one.prediction is not None else self._both(one.spec)

    def _both(self, spec: TrialSpec) -> tuple[float, float]:
        if spec in self._forecasts:
            return self._of(self._forecasts[spec])
        memory, speed = _rule(spec, self._reference)
        return self._anchor[0] + memory, self._anchor[1] + speed

    def _of(self, prediction: Prediction) -> tuple[float, float]:
        peak = prediction.uncorrected_bytes.get("device", prediction.peak_device_bytes)
        speed = rate_of_prediction(prediction, self._objective)
        return math.log(peak), math.log(speed)


def _shares(prediction: Prediction, names: Sequence[str]) -> Parts:
    whole = sum(prediction.step_terms.values())
    return tuple(prediction.step_terms.get(name, 0.0) / whole for name in names)


def _rule(spec: TrialSpec, reference: TrialSpec) -> tuple[float, float]:
    """Log memory and log speed of `spec` against the reference, by rule of thumb: signs are sure, sizes are not."""
    here, there = _weigh(spec), _weigh(reference)
    return here[0] - there[0], here[1] - there[1]


def _weigh(spec: TrialSpec) -> tuple[float, float]:
    batch, length = math.log2(spec.micro_batch_size), math.log2(spec.cutoff_len)
    memory = 0.3 * batch + 0.3 * length - 0.35 * spec.gradient_checkpointing
    speed = 0.15 * batch - 0.6 * length - 0.25 * spec.gradient_checkpointing
    if spec.num_gpus > 1:
        less, slower = _SHARDED[spec.zero_stage]
        memory, speed = memory + less, speed + slower
    if spec.method != "full":
        memory, speed = memory - 0.6, speed + 0.3
    frozen = 0.4 * spec.freeze_language_model + 0.05 * (spec.freeze_vision_tower + spec.freeze_multi_modal_projector)
    memory -= frozen + 0.3 * spec.offload_optimizer + 0.2 * spec.offload_param + 0.4 * spec.pure_bf16
    speed += frozen - 0.7 * spec.offload_optimizer - 0.5 * spec.offload_param
    return memory - 0.1 * spec.fused_cross_entropy, speed + 0.05 * spec.fused_cross_entropy
