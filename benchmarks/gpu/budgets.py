"""Part (b): smaller cards, emulated. Does what is predicted to fit run, and does what is refused run out of memory?

Configurations of part (a), each with its micro-batch raised until the card is full: the last step that is predicted to fit and
the first that is not, where a prediction is most easily wrong.
"""

import random
from dataclasses import dataclass
from typing import Any

from autofit.config.trial import TrialSpec
from benchmarks.gpu.accuracy import plan_of
from benchmarks.gpu.forecast import Forecast, Forecaster
from benchmarks.gpu.place import Place, measured

_MICRO_BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
_LADDER_FAMILIES = ("vision_lora", "text_lora", "vision_full", "text_full")
PLAN = "plan"


@dataclass(frozen=True)
class _Rung:
    """One configuration on one card."""

    card: str
    budget: int
    spec: TrialSpec
    said: Forecast

    @property
    def key(self) -> str:
        return f"{self.card}/{self.spec.config_key()}"


def run(place: Place) -> tuple[int, int]:
    """(configurations recorded, configurations planned)"""
    ledger = place.ledger("budgets")
    if (kept := ledger.mine().get(PLAN)) is None:
        kept = ledger.add(PLAN, rungs=[_document(rung) for rung in _rungs(place)])
    for number, item in enumerate(kept["rungs"]):
        if item["key"] in ledger.mine():
            continue
        spec = TrialSpec.model_validate(item["spec"])
        ran = place.run(f"budgets-{number:03d}", spec, budget=item["budget"])
        found = measured(ran)
        judged = verdict(item["predicted"]["fits"], found, item["budget"])
        ledger.add(**item, measured=found, verdict=judged)
    return len(set(ledger.mine()) - {PLAN}), len(kept["rungs"])


def verdict(fits: bool | None, found: dict[str, Any], budget: int) -> str:
    """`hit`, `miss` (predicted to fit and does not), `refused` (rightly), `false refusal`, or `no answer`."""
    out_of_memory = found["outcome"] == "OOM" or (found["outcome"] == "COMPLETED" and (found["device"] or 0) > budget)
    if fits is None or (found["outcome"] != "COMPLETED" and not out_of_memory):
        return "no answer"
    if fits:
        return "miss" if out_of_memory else "hit"
    return "refused" if out_of_memory else "false refusal"


def _document(rung: _Rung) -> dict[str, Any]:
    spec = rung.spec.model_dump(mode="json")
    return {"key": rung.key, "card": rung.card, "budget": rung.budget, "spec": spec, "predicted": rung.said.document()}


def _rungs(place: Place) -> list[_Rung]:
    forecaster, found = place.forecaster(), []
    for base in _bases(place):
        for card, size in place.load.cards.items():
            if size <= 1.03 * place.device.memory_bytes:  # a card's label is a little more than its memory
                found += _around_the_wall(base, card, place.budget(size), forecaster)
    return list({rung.key: rung for rung in found}.values())


def _bases(place: Place) -> list[TrialSpec]:
    """One configuration of each of the first families, chosen by the seed."""
    plan = plan_of(place, place.ledger("accuracy"))
    draw = random.Random(f"{place.seed}/budgets")
    bases = []
    for family in _LADDER_FAMILIES[: place.load.ladder_bases]:
        able = [item for item in plan if item["family"] == family and item["predicted"]["device"] is not None]
        if able:
            bases.append(TrialSpec.model_validate(draw.choice(able)["spec"]))
    return bases


def _around_the_wall(base: TrialSpec, card: str, budget: int, forecaster: Forecaster) -> list[_Rung]:
    """The largest micro-batch that is predicted to fit, and the smallest that is not; what there is of them."""
    fitting: _Rung | None = None
    for micro in _MICRO_BATCHES:
        spec = base.model_copy(update={"micro_batch_size": micro, "gradient_accumulation_steps": 1})
        rung = _Rung(card, budget, spec, forecaster.of(spec, budget))
        if rung.said.fits is None:
            break
        if not rung.said.fits:
            return [each for each in (fitting, rung) if each is not None]
        fitting = rung
    return [fitting] if fitting else []
