"""What a search maximises, in which unit it is told, and what an epoch takes and costs."""

from dataclasses import dataclass
from typing import Literal

from autofit.config.prediction import Prediction

Objective = Literal["samples_per_second", "tokens_per_second", "effective_tokens_per_second", "epoch_seconds", "cost_per_epoch"]
OF_AN_EPOCH: frozenset[Objective] = frozenset({"epoch_seconds", "cost_per_epoch"})
"""They need the number of samples, and go down as speed goes up."""
_HOUR = 3600


def rate_of(objective: Objective) -> str:
    """The field of a result (or a prediction) that is maximised for an objective.

    Devices, global batch and data are those of the study, so that an epoch's time and its cost are both in inverse proportion
    to samples per second: who trains most samples a second needs least time and costs least.
    """
    return "samples_per_second" if objective in OF_AN_EPOCH else objective


@dataclass(frozen=True)
class Epoch:
    """One pass over the data on a study's devices."""

    samples: int | None
    """None: nobody said how many, and there is no profile."""
    num_gpus: int
    gpu_hour_price: float | None
    """Of one device, in the user's currency; None: not said."""

    def seconds(self, samples_per_second: float | None) -> float | None:
        """Its duration at a speed; None where either is unknown."""
        return self.samples / samples_per_second if self.samples and samples_per_second else None

    def cost(self, samples_per_second: float | None) -> float | None:
        """Its price at a speed, all devices together; None where it cannot be told."""
        seconds = self.seconds(samples_per_second)
        if seconds is None or self.gpu_hour_price is None:
            return None
        return seconds / _HOUR * self.num_gpus * self.gpu_hour_price


def rate_of_prediction(prediction: Prediction, rate: str) -> float:
    """A rate as it is predicted. Predictions are made for full samples, so that each of their tokens is an effective one."""
    return float(getattr(prediction, "tokens_per_second" if rate == "effective_tokens_per_second" else rate))
