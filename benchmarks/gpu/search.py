"""Part (c): a whole `autofit search`, its wall time, what the GPU did in it, and whether its winner held when run longer.

A search that the part's time cuts short goes on in the next call; its wall time is the sum of its sessions.
"""

from typing import Any

from autofit.config.record import TrialRecord
from benchmarks.gpu.command import figures, search_in_sessions
from benchmarks.gpu.place import Place

WHOLE = "search"


def run(place: Place) -> tuple[int, int]:
    """(1 if the search is recorded, 1)"""
    ledger = place.ledger("search")
    if WHOLE in ledger.mine():
        return 1, 1
    found = search_in_sessions(place, ledger, "search")
    confirmed = [trial for trial in found.trials if trial.purpose == "confirm"]
    winner = next((t for t in found.trials if t.trial_number == found.study.winner_trial_number), None)
    ledger.add(
        WHOLE,
        status=found.status,
        last_words=found.last_words if found.status else "",
        space=found.study.space.name,
        gpu_mem_bytes=found.study.gpu_mem_bytes,
        budget=found.study.memory_budget_bytes,
        sampler=found.study.sampler,
        wall_seconds=found.seconds,
        sessions=found.sessions,
        use=gpu_seconds(found.trials, found.seconds),
        trials=[figures(trial) for trial in found.trials],
        winner=None if winner is None else {**figures(winner), "spec": winner.spec.model_dump(mode="json")},
        confirmed=[figures(trial) for trial in confirmed],
    )
    return 1, 1


def gpu_seconds(trials: list[TrialRecord], wall_seconds: float) -> dict[str, float]:
    """Seconds that one GPU was held, by use; they add up to `wall_seconds`.

    start-up: importing and building the model, of all processes of a trial; measuring: from the first step to the last;
    rest of the trials: starting and ending processes, evaluation and checkpoints of other processes; between: everything else.
    """
    use = dict.fromkeys(("start-up", "measuring", "rest of the trials"), 0.0)
    for trial in trials:
        if trial.result is None or trial.finished_at is None:
            continue
        timings: dict[str, Any] = trial.result.timings
        start = sum(timings.get(part, 0.0) for part in ("import", "data", "load"))
        steps = timings.get("train", 0.0)
        use["start-up"] += start
        use["measuring"] += steps
        use["rest of the trials"] += max(0.0, (trial.finished_at - trial.started_at).total_seconds() - start - steps)
    return {**use, "between": max(0.0, wall_seconds - sum(use.values()))}
