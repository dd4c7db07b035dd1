"""Part (f): what goes wrong, made to go wrong. Is it called by its name, and does the device get its memory back?

Running out of memory in each phase: the victim's weights W, its gradients and its moments fill the memory one after the other,
so that a budget between two of them ends the run in a known phase. In an evaluation and a save, which need less than a step, a
planted fault takes the memory, for real.
"""

import json
import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from autofit.config.legality import canonical
from autofit.config.model import resolve_model
from autofit.config.trial import Images, Measure, StepShape, TrialSpec
from autofit.errors import LaunchError
from autofit.launch.local import Heartbeat
from benchmarks.gpu.filler import Filler
from benchmarks.gpu.place import Place, Ran, measured

_MIB = 2**20
WHOLE = "completes"
"""The case in which nothing goes wrong; the budgets of the others follow from its weights."""
_SHORT = Measure(warmup_steps=1, steps=1)
_SETTLED = 40
"""Equal steps before lengths rise: the filler takes the device during these."""


def run(place: Place) -> tuple[int, int]:
    """(cases recorded, cases planned)"""
    cases: dict[str, Callable[[Place], dict[str, Any]]] = {
        WHOLE: partial(_phase, case=_Case("completes", "COMPLETED", None, None)),
        **{f"OOM in {case.name}": partial(_phase, case=case) for case in _CASES},
        "killed worker": _killed,
        "device taken before": _taken_before,
        "device taken during": _taken_during,
    }
    ledger = place.ledger("safety")
    for name, case in cases.items():
        if name not in ledger.mine():
            ledger.add(name, **case(place))
    return len(ledger.mine()), len(cases)


@dataclass(frozen=True)
class _Case:
    """An out-of-memory that is made to happen."""

    name: str
    outcome: str
    phase: str | None
    times_weights: float | None
    """Budget above what the device holds before the model, as a multiple of the weights; None: no budget."""
    fault_phase: str | None = None
    many: bool = False
    """Activations of several times the weights."""


_CASES = (
    _Case("load", "OOM", "load", 0.5),
    _Case("forward", "OOM", "forward", 1.3, many=True),
    _Case("backward", "OOM", "backward", 1.5),
    _Case("optimizer_step", "OOM", "optimizer_step", 2.7),
    _Case("eval", "OOM", "eval", 8.0, fault_phase="eval"),
    _Case("save", "OOM", "save", 8.0, fault_phase="save"),
)


def _victim(place: Place, **knobs: Any) -> TrialSpec:
    """All parameters in fp32 with two moments: after the first step W of weights, W of gradients and 2 W of moments."""
    ref = place.load.victim
    fields = {"method": "full", "precision": "fp32", "cutoff_len": 64, "images": Images(per_sample=0), **knobs}
    return canonical(TrialSpec(model=ref, **fields), resolve_model(ref))


def _phase(place: Place, case: _Case) -> dict[str, Any]:
    micro, cutoff = place.load.victim_many if case.many else (1, 64)
    spec = _victim(place, micro_batch_size=micro, cutoff_len=cutoff, gradient_checkpointing=not case.many)
    budget = None
    if case.times_weights is not None:
        weights = place.ledger("safety").mine()[WHOLE]["weights"]
        budget = round(case.times_weights * weights) + (_OUTSIDE_BYTES if place.kind == "cuda" else 0)
    measure = _SHORT.model_copy(update={"evaluate": case.fault_phase == "eval", "save": case.fault_phase == "save"})
    fault = f"hog:{case.fault_phase}:{(budget or 0) // _MIB}" if case.fault_phase else None
    ran = place.run(f"safety-{case.name}", spec, measure=measure, budget=budget, fault=fault)
    found = measured(ran)
    if case.outcome == "COMPLETED" and found["outcome"] != "COMPLETED":
        raise RuntimeError(f"the victim does not train, so nothing of it can be broken: {found['outcome']}: {found['message']}")
    good = found["outcome"] == case.outcome and (case.phase is None or found["phase"] == case.phase)
    weights = 4 * (ran.result.total_parameters or 0)
    expected = {"outcome": case.outcome, "phase": case.phase}
    return {"budget": budget, "planted": fault, "expected": expected, "weights": weights, **_judged(ran, good)}


_OUTSIDE_BYTES = 640 * _MIB
"""What a CUDA context takes, about: the budget counts it, the victim's weights do not."""


def _judged(ran: Ran, good: bool) -> dict[str, Any]:
    """The record of a trial: whether it ended as it should, and what it left."""
    returned = ran.used_before is None or ran.seconds_until_free is not None
    return {
        "available": True,
        "ok": good and returned and ran.processes_left == 0,
        "as_expected": good,
        "memory_back": returned,
        "seconds_until_free": ran.seconds_until_free,
        "used_before": ran.used_before,
        "used_after": ran.used_after,
        "processes_left": ran.processes_left,
        "measured": measured(ran),
    }


def _killed(place: Place) -> dict[str, Any]:
    """The rank is killed in the middle of a step, as a cluster or the kernel would."""
    struck: list[int] = []

    def strike(beat: Heartbeat | None, folder: Path) -> None:
        if beat is not None and beat.step >= 1 and not struck:
            struck.append(_rank_of(folder))
            os.kill(struck[0], signal.SIGKILL)

    ran = place.run("safety-killed", _victim(place), measure=Measure(warmup_steps=1, steps=5000), on_tick=strike)
    expected = {"outcome": "CRASHED", "says": "SIGKILL"}
    good = ran.result.outcome == "CRASHED" and "SIGKILL" in (ran.result.message or "")
    return {"expected": expected, **_judged(ran, good)}


def _rank_of(folder: Path) -> int:
    return int(json.loads((folder / "heartbeat.rank0.json").read_bytes())["pid"])


def _taken_before(place: Place) -> dict[str, Any]:
    """Another process takes the device between two trials: the next one must not start and call it its own."""
    expected = {"raises": "LaunchError", "says": "more than before"}
    if place.kind == "cpu":
        return _not_on_a_cpu(expected)
    executor = place.executor()
    with Filler(place.environment.python) as filler:
        filler.fill()
        try:
            ran = place.run("safety-taken-before", _victim(place), measure=_SHORT, executor=executor)
        except LaunchError as error:
            return {"available": True, "expected": expected, "ok": "more than before" in str(error), "message": str(error)}
    return {"expected": expected, **_judged(ran, False)}


def _taken_during(place: Place) -> dict[str, Any]:
    """Another process takes the device while a trial runs whose lengths rise: its OOM is not the configuration's."""
    expected = {"outcome": "CRASHED", "error_type": "DeviceTaken"}
    if place.kind == "cpu":
        return _not_on_a_cpu(expected)
    micro, longest = place.load.victim_many
    rising = [StepShape(cutoff_len=length) for length in range(128, longest + 1, 128)]
    shapes = tuple([StepShape(cutoff_len=64)] * _SETTLED + rising)
    spec = _victim(place, micro_batch_size=micro, cutoff_len=longest, gradient_checkpointing=False)
    with ExitStack() as stack:
        filler = stack.enter_context(Filler(place.environment.python))

        def fill(beat: Heartbeat | None, folder: Path) -> None:
            if beat is not None and beat.step >= 1 and not filler.filled:
                filler.fill()

        ran = place.run(
            "safety-taken-during",
            spec,
            measure=Measure(warmup_steps=1, steps=len(shapes) - 1),
            shapes=shapes,
            on_tick=fill,
            executor=place.executor(),  # with the filler's own context on the device already
        )
        stack.close()
        good = ran.result.outcome == "CRASHED" and ran.result.error_type == "DeviceTaken"
        judged = _judged(ran, good)
    # The filler held the device when the trial ended, so the memory could not be back then.
    return {"expected": expected, **judged, "ok": good and ran.processes_left == 0, "memory_back": None}


def _not_on_a_cpu(expected: dict[str, Any]) -> dict[str, Any]:
    return {"available": False, "expected": expected, "reason": "a CPU's budget is the process's own: nobody else can take it"}
