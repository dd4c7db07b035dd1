"""Which of the user's samples a trial sees, and what its timed steps say of an epoch.

First and last comes the worst batch: of all that the sampler can draw, the one with the highest predicted peak. The timed steps
are drawn one from each stratum of equal size of an epoch's steps by what they compute, so that few of them stand for all; what
they measure is carried to the epoch's own mean with a confidence interval (`data/throughput.py`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from autofit.config.model import Model
from autofit.config.result import EpochEstimate, TrialResult
from autofit.config.trial import TrialSpec
from autofit.data.throughput import CONFIDENCE, Estimate, Steps, Throughput, epoch_steps, stratified, throughput
from autofit.data.worst import WorstBatch, worst_batch
from autofit.errors import AutofitError
from autofit.predict.predictor import Predictor
from autofit.tuning.data import StudyData

EPOCHS_STEPS = 4
"""The steps that strata are made of are at least this many times those to be timed, from as many epochs as that takes."""


@dataclass(frozen=True)
class Chosen:
    """The samples of one configuration's trial; None: the worker's own choice."""

    worst: WorstBatch | None = None
    epoch: Steps | None = None
    timed: Steps | None = None
    """Of `epoch`, those that are timed, in their order."""

    @property
    def worst_places(self) -> tuple[int, ...] | None:
        """`RunSpec.worst_batch`."""
        return self.worst.samples if self.worst else None

    @property
    def timed_places(self) -> tuple[tuple[int, ...], ...] | None:
        """`RunSpec.timed_batches`."""
        if self.timed is None:
            return None
        return tuple(tuple(step.reshape(-1).tolist()) for step in self.timed.samples)


class Batches:
    """Chooses the samples of a study's trials; the same for the same spec and number of steps."""

    def __init__(self, data: StudyData, model: Model, predictor: Predictor, seed: int) -> None:
        self.data = data
        self._model = model
        self._predictor = predictor
        self._seed = seed
        self._worst: dict[TrialSpec, WorstBatch] = {}
        self._said: set[str] = set()

    def choose(self, spec: TrialSpec, steps: int, said: Callable[[str], None] = lambda _: None) -> Chosen:
        """The samples of a trial of `spec` with so many timed steps."""
        if self.data.unlike:
            return Chosen()
        profile = self.data.profile
        if spec not in self._worst:
            peaks = partial(self._peaks, spec, said)
            self._worst[spec] = worst_batch(profile, spec.cutoff_len, spec.micro_batch_size, peaks)
        chosen = Chosen(self._worst[spec])
        if self.data.not_shuffled:
            return chosen
        try:
            an_epoch = len(profile) // spec.global_batch_size
            epochs = max(1, math.ceil(EPOCHS_STEPS * steps / max(1, an_epoch)))
            shape = (spec.cutoff_len, spec.micro_batch_size, spec.gradient_accumulation_steps, spec.num_gpus)
            epoch = epoch_steps(profile, *shape, seed=self._seed, epochs=epochs)
        except AutofitError as error:
            self._once(said, f"speed is that of the timed steps, not of an epoch of your data: {error}")
            return chosen
        return Chosen(self._worst[spec], epoch, epoch.take(stratified(epoch, steps, self._seed)))

    def on_data(self, spec: TrialSpec, result: TrialResult, warmup_steps: int, steps: int) -> TrialResult:
        """`result` with the speed of an epoch, where its steps were those that were chosen; says so where they were not."""
        chosen = self.choose(spec, steps)
        if result.outcome != "COMPLETED" or chosen.worst is None:
            return result
        if (why := _other_worst(chosen.worst, spec, result)) is not None:
            result = result.model_copy(update={"not_measured": [*result.not_measured, why]})
        if chosen.epoch is None or chosen.timed is None:
            return result
        tokens = [sum(values) for values in zip(*(rank.step_tokens for rank in result.ranks), strict=False)]
        ran, wanted = tokens[warmup_steps : warmup_steps + steps], chosen.timed.computed_tokens.tolist()
        if ran != wanted:
            why = f"speed on an epoch: the timed steps had {ran[:3]}... tokens, the data's profile says {wanted[:3]}..."
            return result.model_copy(update={"not_measured": [*result.not_measured, why]})
        seconds = [max(values) for values in zip(*(rank.step_seconds for rank in result.ranks), strict=False)]
        timed = seconds[warmup_steps : warmup_steps + steps]
        found = throughput(chosen.epoch, chosen.timed, timed, len(self.data.profile))
        return result.model_copy(update=_speed(found, spec, len(self.data.profile)))

    def _peaks(
        self, spec: TrialSpec, said: Callable[[str], None], size: npt.ArrayLike, length: npt.ArrayLike, patches: npt.ArrayLike
    ) -> npt.NDArray[np.float64]:
        """Predicted peaks of batches that can be drawn. Where one has the most tokens and the most patches, nothing is traced:

        none can need more. Where the configuration cannot be predicted, the longest counts as the worst.
        """
        tokens, images = np.asarray(length, dtype=np.float64), np.asarray(patches, dtype=np.float64)
        by_length: npt.NDArray[np.float64] = np.asarray(size) * tokens + images / (1.0 + images.max())
        if np.any((tokens == tokens.max()) & (images == images.max())):
            return by_length
        try:
            return self._predictor.peaks(spec, self._model, length, patches)
        except AutofitError as error:
            self._once(said, f"the worst batch is the longest that the data can make, its peak is not predicted: {error}")
            return by_length

    def _once(self, said: Callable[[str], None], message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            said(message)


def _other_worst(worst: WorstBatch, spec: TrialSpec, result: TrialResult) -> str | None:
    """What to say if the first step was not the worst batch that was ordered."""
    wanted = (spec.micro_batch_size * worst.length, worst.patches)
    for rank in result.ranks:
        if not rank.step_batch_tokens:
            continue
        ran = (rank.step_batch_tokens[0], rank.step_batch_patches[0] if rank.step_batch_patches else 0)
        if ran != wanted:
            return f"the worst batch: {wanted} tokens and patches by the data's profile, rank {rank.rank} was given {ran}"
    return None


def _speed(found: Throughput, spec: TrialSpec, samples: int) -> dict[str, object]:
    """The fields of a result that an epoch's figures replace."""
    if not found.step_time_seconds.value > 0:
        return {}
    rates = ("samples_per_second", "tokens_per_second", "effective_tokens_per_second")
    ends = {f"{name}_{end}": _end(getattr(getattr(found, name), end)) for name in rates for end in ("low", "high")}
    estimate = EpochEstimate(
        samples=samples,
        steps=max(1, samples // spec.global_batch_size),
        confidence=CONFIDENCE,
        seconds=found.epoch_seconds.value,
        seconds_low=_positive(found.epoch_seconds, "low"),
        seconds_high=_positive(found.epoch_seconds, "high"),
        **ends,
    )
    return {
        "step_time_seconds": found.step_time_seconds.value,
        **{name: getattr(found, name).value for name in rates},
        "epoch": estimate,
    }


def _end(value: float) -> float | None:
    return value if math.isfinite(value) and value > 0 else None


def _positive(estimate: Estimate, end: str) -> float | None:
    return _end(float(getattr(estimate, end)))
