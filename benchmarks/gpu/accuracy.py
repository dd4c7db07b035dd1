"""Part (a): predicted against measured memory and step time, configuration by configuration.

The plan - which configurations, and what is predicted of each - is a record of its own, written before the first of them runs.
"""

import subprocess
from itertools import islice
from typing import Any

from autofit.config.trial import TrialSpec
from benchmarks.gpu.forecast import Forecaster
from benchmarks.gpu.place import Place, measured
from benchmarks.gpu.records import Ledger
from benchmarks.gpu.sampler import FAMILIES, candidates

PLAN = "plan"
_FILLED = 0.95
"""Share of the card that a configuration may be predicted to take: what runs out of memory tells nothing of its peak."""


def run(place: Place) -> tuple[int, int]:
    """(configurations recorded, configurations planned)"""
    ledger = place.ledger("accuracy")
    plan = plan_of(place, ledger)
    for number, item in enumerate(plan):
        if item["key"] not in ledger.mine():
            _measure(place, ledger, item, f"accuracy-{number:03d}")
    return len(set(ledger.mine()) - {PLAN}), len(plan)


def plan_of(place: Place, ledger: Ledger) -> list[dict[str, Any]]:
    """The plan as it was recorded; drawn and recorded first where there is none. Items: key, family, spec, predicted."""
    if (kept := ledger.mine().get(PLAN)) is None:
        kept = ledger.add(PLAN, seed=place.seed, **_draw(place))
    return list(kept["configurations"])


def _draw(place: Place) -> dict[str, Any]:
    forecaster = place.forecaster()
    drawn = {
        family: list(islice(candidates(family, place.load, place.seed), place.load.draws * place.load.counts[family]))
        for family in FAMILIES
    }
    forecaster.prepare([spec for specs in drawn.values() for spec in specs])
    configurations, passed_over = [], 0
    for family, specs in drawn.items():
        chosen = [item for spec in specs if (item := _item(family, spec, place, forecaster)) is not None]
        configurations += chosen[: place.load.counts[family]]
        passed_over += len(specs) - len(chosen)
    return {"configurations": _interleaved(configurations), "predicted_not_to_fit": passed_over, "card": forecaster.card}


def _item(family: str, spec: TrialSpec, place: Place, forecaster: Forecaster) -> dict[str, Any] | None:
    """A configuration of the plan; None where it is predicted to need more than the card."""
    said = forecaster.of(spec, whole=True)
    if said.device is not None and said.device > _FILLED * place.device.memory_bytes:
        return None
    return {"key": spec.config_key(), "family": family, "spec": spec.model_dump(mode="json"), "predicted": said.document()}


def _interleaved(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One of each family in turn, so that a plan that is cut short has some of all."""
    families: dict[str, list[dict[str, Any]]] = {}
    for item in items:
        families.setdefault(item["family"], []).append(item)
    longest = max((len(each) for each in families.values()), default=0)
    return [each[place] for place in range(longest) for each in families.values() if place < len(each)]


def _measure(place: Place, ledger: Ledger, item: dict[str, Any], name: str) -> None:
    spec = TrialSpec.model_validate(item["spec"])
    kept = {name: item[name] for name in ("family", "spec", "predicted")}
    if reason := _impossible(spec, place):
        ledger.add(item["key"], **kept, measured={"outcome": "NOT_RUN", "message": reason})
        return
    ledger.add(item["key"], **kept, measured=measured(place.run(name, spec)))


def _impossible(spec: TrialSpec, place: Place) -> str | None:
    """Why this machine cannot run a configuration at all, or None."""
    if spec.attention == "flash_attention_2" and (place.kind == "cpu" or not _has(place, "flash_attn")):
        return "flash_attention_2: " + ("needs a GPU" if place.kind == "cpu" else "the package flash_attn is not installed")
    if spec.zero_stage and "deepspeed" not in place.environment.versions:
        return "ZeRO: deepspeed is not installed"
    return None


def _has(place: Place, package: str) -> bool:
    """Whether the training environment has a package."""
    command = [place.environment.python, "-c", f"import importlib.metadata as m; m.version('{package}')"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
