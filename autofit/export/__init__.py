"""Turns a trial into the files that a launcher runs.

`EXPORTERS` lists the launchers; each renders a `Source` to file texts and knows the command that runs them; `export` writes
them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from autofit.config.record import StudyRecord, TrialRecord
from autofit.errors import UsageError
from autofit.export import deepspeed, llamafactory, transformers_trainer
from autofit.export.files import write_all
from autofit.export.source import Source

__all__ = ["EXPORTERS", "Exporter", "Source", "export", "launch_command"]


@dataclass(frozen=True)
class Exporter:
    """One launcher."""

    render: Callable[[Source], dict[str, str]]
    """File name -> text. Raises UsageError where the launcher cannot run what the trial ran."""
    command: Callable[[Source, Path], str]
    """The shell command that runs the files in a folder."""


EXPORTERS: dict[str, Exporter] = {
    "llamafactory": Exporter(llamafactory.render, llamafactory.command),
    "transformers": Exporter(transformers_trainer.render, transformers_trainer.command),
    "deepspeed": Exporter(deepspeed.render, deepspeed.command),
}


def export(study: StudyRecord, trial: TrialRecord, reference: TrialRecord | None, launcher: str, out_dir: Path) -> list[Path]:
    """Writes the files of `launcher` for `trial` into `out_dir` and returns their paths, the main one first.

    Each file appears whole or not at all; other files in the folder are left alone. `reference` is the trial that speeds are
    compared with, if it ran.

    Raises:
        UsageError: no such launcher, or one that cannot run what the trial ran.
        AutofitError: the trial has not finished, or the folder cannot be written.
    """
    exporter = _exporter(launcher)
    return write_all(out_dir, exporter.render(Source(study, trial, reference)))


def launch_command(study: StudyRecord, trial: TrialRecord, launcher: str, out_dir: Path) -> str:
    """The shell command that runs what `export` wrote."""
    return _exporter(launcher).command(Source(study, trial, None), out_dir)


def _exporter(launcher: str) -> Exporter:
    if launcher not in EXPORTERS:
        raise UsageError(f"no launcher '{launcher}'; choose from {', '.join(EXPORTERS)}")
    return EXPORTERS[launcher]
