"""A predictor that is wrong: the forecasts of a table, distorted by seed. The truth stays."""

import random
from dataclasses import replace

from autofit.config.prediction import Prediction
from autofit.config.trial import TrialSpec
from benchmarks.replay.table import Table, prediction

SHARE = 0.3


def common(table: Table, seed: int) -> Table:
    """Memory and time of all configurations too high or too low by 30 %, the sign of each by seed."""
    draw = random.Random(f"common {seed}")
    memory, time = (1 + draw.choice((-SHARE, SHARE)) for _ in range(2))
    return replace(table, forecasts={spec: _scaled(spec, one, memory, time) for spec, one in table.forecasts.items()})


def scattered(table: Table, seed: int) -> Table:
    """Memory and time of each configuration wrong by a factor of its own, anywhere from -30 % to +30 %."""
    found = {}
    for spec, one in table.forecasts.items():
        draw = random.Random(f"scattered {seed} {spec.config_key()}")
        found[spec] = _scaled(spec, one, 1 + draw.uniform(-SHARE, SHARE), 1 + draw.uniform(-SHARE, SHARE))
    return replace(table, forecasts=found)


def _scaled(spec: TrialSpec, one: Prediction, memory: float, time: float) -> Prediction:
    kept = {"peak_bytes": one.peak_device_bytes * memory, "step_seconds": one.step_time_seconds * time}
    return prediction(spec, kept, one.step_terms)
