"""Simulated tables: the shipped Qwen2.5-VL-7B space on 8 cards of 24, 48 and 80 GB, from the predictor alone. Nothing is run.

    .venv/bin/python -m benchmarks.replay.simulate

What a strategy is told is the prediction; the "truth" that it is scored by is that prediction with a seeded error of the kind
a predictor has: a common factor, one a knob's value, and one a configuration, all lognormal. These tables say how a search gets
on with such a predictor, not how good the predictor is.
"""

import math
import platform
import random
from pathlib import Path

from autofit.config.prediction import Prediction
from autofit.config.space import KNOBS
from autofit.config.trial import TrialSpec
from autofit.launch.environment import probe
from autofit.predict.devices import device_model
from autofit.predict.many import Forecaster
from autofit.predict.predictor import Predictor
from autofit.tuning.plan import Plan, SearchRequest, plan_study
from autofit.units import GIB
from benchmarks.replay.table import Header, Row, differing, save, shrink

TABLES = Path(__file__).parent / "tables"
CARDS = (24, 48, 80)
SEED = 7
ERROR = {"memory": (0.04, 0.02, 0.01), "speed": (0.2, 0.06, 0.03)}
"""Standard deviations of the log error: common, a knob's value, a configuration."""
STARTUP_SECONDS = 90.0
"""Assumed of a 7B trial: processes, weights, first step."""


class Error:
    """A predictor's error: the same for the same seed and configuration."""

    def __init__(self, seed: str, common: float, knob: float, own: float) -> None:
        self._seed, self._common, self._knob, self._own = seed, common, knob, own

    def of(self, spec: TrialSpec) -> float:
        """truth / prediction"""
        total = self._draw("common", self._common)
        total += sum(self._draw(f"{name}={getattr(spec, name)}", self._knob) for name in KNOBS)
        return math.exp(total + self._draw(spec.config_key(), self._own))

    def _draw(self, what: str, deviation: float) -> float:
        return random.Random(f"{self._seed} {what}").gauss(0.0, deviation)


def main() -> None:
    TABLES.mkdir(exist_ok=True)
    for card in CARDS:
        plan = plan_study(SearchRequest(gpu_mem_bytes=card * GIB, space="qwen2_5_vl_7b", device="none"))
        predictor = _predictor(plan)
        found = Forecaster(predictor).all_of(plan.legal.points, plan.study.model, plan.study.memory_budget_bytes)
        trace, _ = predictor._traced(plan.legal.reference, plan.study.model)
        parameters = sum(parameter.elements for parameter in trace.parameters)
        file = TABLES / f"simulated_7b_{card}gb.jsonl"
        rows = [_row(plan, spec, answer, card) for spec, answer in found.items()]
        save(file, _header(plan, card, parameters), rows)
        print(file.name, len(rows), "configurations")


def _predictor(plan: Plan) -> Predictor:
    environment = probe(plan.study.python)
    card = device_model(plan.study.hardware.devices[0].name)
    return Predictor(environment.python, environment.versions, device=card)


def _header(plan: Plan, card: int, parameters: int) -> Header:
    study = plan.study
    return Header(
        name=f"simulated_7b_{card}gb",
        evidence="simulated",
        note=f"truth = prediction x seeded lognormal error (seed {SEED}, deviations {ERROR}); nothing was run",
        space=study.space,
        model=study.model,
        num_gpus=len(study.hardware.devices),
        objective=study.space.objective,
        budget_bytes=study.memory_budget_bytes,
        total_parameters=parameters,
        machine={"planned": f"{len(study.hardware.devices)} x {study.hardware.devices[0].name}"},
        versions={"python": platform.python_version(), **probe(study.python).versions},
        base=plan.legal.reference,
    )


def _row(plan: Plan, spec: TrialSpec, answer: Prediction | str, card: int) -> Row:
    if isinstance(answer, str):
        return Row(knobs=differing(spec, plan.legal.reference), outcome="CRASHED")
    study = plan.study
    kept = shrink(answer, study.space.objective)
    peak = int(kept["peak_bytes"] * Error(f"{SEED} {card} memory", *ERROR["memory"]).of(spec))
    factor = Error(f"{SEED} {card} speed", *ERROR["speed"]).of(spec)
    steps = study.space.measure.warmup_steps + study.space.measure.steps
    return Row(
        knobs=differing(spec, plan.legal.reference),
        outcome="COMPLETED",
        peak_bytes=peak,
        speed=kept["speed"] * factor,
        wall_seconds=STARTUP_SECONDS + steps * kept["step_seconds"] / factor,
        prediction=kept,
        step_terms=answer.step_terms,
    )


if __name__ == "__main__":
    main()
