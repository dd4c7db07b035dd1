"""What a search and a survey say alike: the compromise table, the Pareto front, and what an epoch takes and costs."""

import sys
from collections.abc import Sequence
from typing import Any

from autofit.cli import output
from autofit.config.objective import Epoch
from autofit.config.quality import Quality
from autofit.config.space import LegalSpace
from autofit.config.trial import TrialSpec
from autofit.tuning.compromise import Compromise
from autofit.tuning.figures import Figures
from autofit.units import format_bytes, format_seconds

SHOWN_FRONT = 12


def print_compromises(rows: Sequence[Compromise]) -> None:
    """Two tables: other trainings, and other ways to run the same."""
    titles = {
        "training": "what another training would buy against the winner",
        "running": "what running the same training in another way would do",
    }
    for kind, title in titles.items():
        if mine := [row for row in rows if row.kind == kind]:
            sys.stdout.write(f"\n{title}\n")
            with_share = any(row.truncated_share is not None for row in mine)
            headers = ["speed", "peak", "memory", "trial", "evidence", *["truncated"] * with_share, "change"]
            output.print_table(headers, [_cells(row, with_share=with_share) for row in mine])


def _cells(row: Compromise, *, with_share: bool) -> list[str]:
    share = [output.NOTHING if row.truncated_share is None else f"{row.truncated_share:.1%}"] if with_share else []
    along = f" (with {', '.join(row.along)})" if row.along else ""
    return [
        output.NOTHING if row.speedup is None else f"{row.speedup:.2f}x",
        format_bytes(row.best.peak_device_bytes),
        signed_bytes(row.more_bytes),
        output.NOTHING if row.best.trial_number is None else str(row.best.trial_number),
        row.evidence,
        *share,
        "; ".join(row.changes) + along + ("" if row.best.fits else f": {row.best.outcome}"),
    ]


def signed_bytes(value: int | None) -> str:
    """`+1.20 GiB`, `-20.6 MiB`, or `-` for no value."""
    return output.NOTHING if value is None else f"{'+' if value > 0 else ''}{format_bytes(value)}"


def print_front(front: Sequence[Figures]) -> None:
    """The front in a line."""
    numbers = [str(one.trial_number) for one in front if one.trial_number is not None]
    more = f" and {len(numbers) - SHOWN_FRONT} more" if len(numbers) > SHOWN_FRONT else ""
    if numbers:
        shown = ", ".join(numbers[:SHOWN_FRONT])
        sys.stdout.write(f"\nPareto front of speed x memory x quality ({front[0].evidence}): trials {shown}{more}\n")


def epoch_line(epoch: Epoch, samples_per_second: float | None) -> list[str]:
    """What an epoch takes and, with a price, costs: one line, or none where the number of samples is not known."""
    seconds, cost = epoch.seconds(samples_per_second), epoch.cost(samples_per_second)
    if seconds is None:
        return []
    price = "" if cost is None else f" and costs {cost:.2f} ({epoch.num_gpus} x {epoch.gpu_hour_price:g} an hour)"
    return [f"an epoch of {epoch.samples:,} samples takes {format_seconds(seconds)}{price}"]


def demand_lines(quality: Quality, legal: LegalSpace, winner: TrialSpec) -> list[str]:
    """What the user demanded, and what of the reference's training the winner gives up by that; nothing where all is kept."""
    from autofit.config.legality import training_changes

    if quality == Quality():
        return []
    given_up = training_changes(winner, legal.reference)
    share = legal.truncated_share(winner)
    truncated = "" if share is None else f"; {share:.1%} of the samples are truncated"
    return [f"you asked for: {quality.words}", f"against the reference: {'; '.join(given_up) or 'nothing given up'}{truncated}"]


def documents(
    rows: Sequence[Compromise], front: Sequence[Figures], epoch: Epoch, samples_per_second: float | None
) -> dict[str, Any]:
    """The same for a program; `samples_per_second` is the winner's."""
    return {
        "compromises": [
            {
                "kind": row.kind,
                "changes": list(row.changes),
                "along": list(row.along),
                "evidence": row.evidence,
                "trial_number": row.best.trial_number,
                "fits": row.best.fits,
                "outcome": row.best.outcome,
                "speedup": row.speedup,
                "samples_per_second": row.best.samples_per_second,
                "peak_device_bytes": row.best.peak_device_bytes,
                "more_bytes": row.more_bytes,
                "truncated_share": row.truncated_share,
                "spec": row.best.spec.model_dump(mode="json"),
            }
            for row in rows
        ],
        "pareto_front": [{"trial_number": one.trial_number, "evidence": one.evidence} for one in front],
        "epoch": {
            "samples": epoch.samples,
            "seconds": epoch.seconds(samples_per_second),
            "cost": epoch.cost(samples_per_second),
            "gpu_hour_price": epoch.gpu_hour_price,
        },
    }
