"""Predictions for a whole space, on all cores: each process takes the specs of some variants and the traces from the cache."""

import gc
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from multiprocessing import get_context

from autofit.config.model import Model
from autofit.config.prediction import Prediction
from autofit.config.trial import TrialSpec
from autofit.errors import AutofitError
from autofit.predict.predictor import Predictor
from autofit.predict.variants import structure

_WORTH_A_PROCESS = 60
"""Specs below which starting processes (half a second) takes longer than predicting."""

Answers = dict[TrialSpec, Prediction | str]


@dataclass
class Forecaster:
    """A predictor that is asked for whole spaces."""

    predictor: Predictor

    def prepare(self, specs: Iterable[tuple[TrialSpec, Model]], on_progress: Callable[[int, int], None]) -> None:
        """See `Predictor.prepare`; to be called before `many`. What is in the cache is left there for who predicts with it."""
        self.predictor.prepare([pair for pair in specs if not self.predictor.kept(*pair)], on_progress)

    def many(self, specs: Sequence[TrialSpec], model: Model, gpu_mem_bytes: int | None) -> Iterator[Answers]:
        """Spec -> its prediction, or why there is none; in parts, as they are done."""
        failed: Answers = {spec: str(error) for spec in specs if (error := self.predictor.untraceable(spec, model))}
        if failed:
            yield failed
        able = sorted((spec for spec in specs if spec not in failed), key=lambda spec: _family(spec, model))
        parts = [list(part) for _, part in groupby(able, key=lambda spec: _family(spec, model))]
        if len(specs) < _WORTH_A_PROCESS:
            for part in parts:
                yield _predict(self.predictor, part, model, gpu_mem_bytes)
            return
        bare = replace(self.predictor, tracers=None)  # a process reads the traces faster than it is sent them
        workers, spawn = os.cpu_count() or 1, get_context("spawn")
        with ProcessPoolExecutor(
            workers, spawn, initializer=gc.disable
        ) as pool:  # no cycles here, but millions of small objects
            parts.sort(key=lambda part: -sum(spec.zero_stage == 0 or 0.2 for spec in part))  # replays of events last longest
            for done in [pool.submit(_predict, bare, part, model, gpu_mem_bytes) for part in parts]:
                yield done.result()

    def all_of(self, specs: Sequence[TrialSpec], model: Model, gpu_mem_bytes: int | None) -> Answers:
        """`prepare` and `many` for whoever wants no progress; in the order of `specs`."""
        self.prepare([(spec, model) for spec in specs], lambda done, of: None)
        found: Answers = {}
        for part in self.many(specs, model, gpu_mem_bytes):
            found |= part
        return {spec: found[spec] for spec in specs}


def _family(spec: TrialSpec, model: Model) -> str:
    """What specs have in common that share a trace, or at least the replay of what ZeRO holds."""
    return repr({name: value for name, value in structure(spec, model).items() if name != "gradient_accumulation_steps"})


def _predict(predictor: Predictor, specs: Sequence[TrialSpec], model: Model, gpu_mem_bytes: int | None) -> Answers:
    found: Answers = {}
    for spec in specs:
        try:
            found[spec] = predictor.predict(spec, model, gpu_mem_bytes)
        except AutofitError as error:
            found[spec] = str(error)
    return found
