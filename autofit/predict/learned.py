"""What a study's own measurements teach its predictions: corrections of memory and constants of time, with what they hold for.

A correction is made of trials of the same model family on the same device under the same versions, and serves predictions of
the same: other versions allocate otherwise (their loss code alone is worth up to 15 %), and another card has other rates.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from autofit.config.base import Frozen
from autofit.config.model import Model
from autofit.config.prediction import Prediction
from autofit.config.record import TrialRecord
from autofit.config.result import TrialResult
from autofit.predict.calibrate import PRIOR_MARGIN, Calibration, Residual, calibrate
from autofit.predict.devices import DeviceModel
from autofit.predict.roofline import Constants, Timing, fit

STACK = ("torch", "transformers", "peft", "deepspeed")
"""Packages whose versions decide what is allocated."""


class Basis(Frozen):
    """What a correction holds for."""

    family: str
    """`model_type` of the model's config: models of a family share their code."""
    device: str
    """Name of the device model."""
    versions: dict[str, str]
    """Of the training environment, those of STACK that it has."""

    @classmethod
    def of(cls, model: Model, device: str, versions: Mapping[str, str]) -> "Basis":
        """The basis of a model on a device in a training environment."""
        family = str((model.config or {}).get("model_type") or model.label)
        return cls(family=family, device=device, versions={name: versions[name] for name in STACK if name in versions})

    def __str__(self) -> str:
        stack = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return f"{self.family} on {self.device}, {stack}"


class Measured(NamedTuple):
    """A finished trial with the model that it trained and the name of the device model that it ran on."""

    model: Model
    device: str
    trial: TrialRecord


class Learned(Frozen):
    """Corrections and constants with their basis; a document that can be stored and read back."""

    basis: Basis
    calibrations: dict[str, Calibration]
    """allocated, reserved, device; without trials the prior margins."""
    constants: Constants
    """Without trials the stated assumptions."""


def learn(trials: Iterable[Measured], basis: Basis, device: DeviceModel, timing: Callable[[Measured], Timing]) -> Learned:
    """Corrections and constants from the search trials of `basis`; others are left out, and confirmations, which repeat one.

    Args:
        timing: what a trial's step is made of (`Predictor.timing`); asked for completed trials only.
    """
    chosen = [trial for trial in trials if _serves(trial, basis)]
    return Learned(basis=basis, calibrations=calibrations(chosen), constants=constants(chosen, basis, device, timing))


def calibrations(trials: Iterable[Measured]) -> dict[str, Calibration]:
    """Corrections by quantity.

    Where the allocator had to give cached blocks back, reserved and device memory are what the card had room for and say
    nothing of the demand: such trials teach the allocated figure only.
    """
    residuals: dict[str, list[Residual]] = {name: [] for name in PRIOR_MARGIN}
    for _, _, trial in trials:
        if trial.prediction is None or trial.result is None or trial.result.outcome != "COMPLETED":
            continue
        capped = _capped(trial.prediction, trial.result)
        for name, found in residuals.items():
            measured = getattr(trial.result, f"peak_{name}_bytes")
            if measured is not None and (name == "allocated" or not capped):
                found.append(Residual(_uncorrected(trial.prediction, name), measured))
    return {name: calibrate(found, name) for name, found in residuals.items()}


def constants(trials: Iterable[Measured], basis: Basis, device: DeviceModel, timing: Callable[[Measured], Timing]) -> Constants:
    """The device's constants refitted on the step times of completed trials; the assumptions where there is none."""
    samples = []
    for measured in trials:
        result = measured.trial.result
        if result is not None and result.outcome == "COMPLETED" and result.step_time_seconds is not None:
            samples.append((*timing(measured), result.step_time_seconds))
    return fit(device, samples, str(basis)) if samples else Constants()


def _serves(measured: Measured, basis: Basis) -> bool:
    result = measured.trial.result
    if result is None or measured.trial.purpose != "search":
        return False
    return Basis.of(measured.model, measured.device, result.versions) == basis


def _capped(prediction: Prediction, result: TrialResult) -> bool:
    return bool(prediction.alloc_retries) or any(rank.num_alloc_retries for rank in result.ranks)


def _uncorrected(prediction: Prediction, name: str) -> int:
    stored = getattr(prediction, f"peak_{name}_bytes")
    return int(prediction.uncorrected_bytes.get(name, stored))
