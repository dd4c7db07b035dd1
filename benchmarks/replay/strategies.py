"""The strategies: autofit's own samplers, asked as a search asks them. DeepSpeed's rules: `deepspeed_rules.py`."""

from autofit.config.record import TrialRecord
from autofit.config.trial import TrialSpec
from autofit.search.guide import Choice
from autofit.search.samplers import Context, propose
from benchmarks.replay.course import Strategy
from benchmarks.replay.table import Table


def sampled(sampler: str, table: Table, seed: int) -> Strategy:
    """One of autofit's samplers on a table's space with the table's forecasts."""
    history: list[TrialRecord] = []
    measure = table.header.space.measure
    while True:
        context = Context(
            table.legal,
            history,
            table.budget_bytes,
            table.header.objective,
            seed,
            forecasts=table.forecasts,
            steps=measure.warmup_steps + measure.steps,
        )
        found = propose(sampler, context)
        if not isinstance(found, Choice):
            return
        spec: TrialSpec = found.spec
        history.append((yield spec))
