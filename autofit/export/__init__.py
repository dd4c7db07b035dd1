"""Turns a trial into the files that a launcher runs, and a certificate of what proved them.

`EXPORTERS` lists the launchers; each renders a `Source` to file texts and knows how it is started on them; `export` writes
them.
"""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from autofit.config.certificate import CERTIFICATE_FILE, Start
from autofit.config.record import StudyRecord, TrialRecord
from autofit.errors import UsageError
from autofit.export import axolotl, deepspeed, llamafactory, transformers_trainer, trl
from autofit.export.certify import certificate
from autofit.export.files import write_all
from autofit.export.source import Source

__all__ = ["EXPORTERS", "Exporter", "Source", "export", "in_folder", "launch_command"]


@dataclass(frozen=True)
class Exporter:
    """One launcher."""

    render: Callable[[Source], dict[str, str]]
    """File name -> text. Raises UsageError where the launcher cannot run what the trial ran."""
    start: Callable[[Source], Start]
    """How the launcher is started on those files."""


EXPORTERS: dict[str, Exporter] = {
    "llamafactory": Exporter(llamafactory.render, llamafactory.start),
    "transformers": Exporter(transformers_trainer.render, transformers_trainer.start),
    "trl": Exporter(trl.render, trl.start),
    "axolotl": Exporter(axolotl.render, axolotl.start),
    "deepspeed": Exporter(deepspeed.render, deepspeed.start),
}


def export(
    study: StudyRecord,
    trial: TrialRecord,
    reference: TrialRecord | None,
    launcher: str,
    out_dir: Path,
    *,
    confirm: TrialRecord | None = None,
) -> list[Path]:
    """Writes the files of `launcher` for `trial` into `out_dir` and returns their paths, the main one first.

    The last is `autofit.json`, the certificate. Each file appears whole or not at all; other files in the folder are left
    alone.
    `reference` is the trial that speeds are compared with, `confirm` the longer run of this one, if they ran.

    Raises:
        UsageError: no such launcher, or one that cannot run what the trial ran.
        AutofitError: the trial has not finished, or the folder cannot be written.
    """
    exporter, source = _exporter(launcher), Source(study, trial, reference, confirm)
    _ = source.result  # a trial without one is refused before anything is looked at
    texts = exporter.render(source)
    proof = certificate(source, launcher, exporter.start(source), texts)
    return write_all(out_dir, {**texts, CERTIFICATE_FILE: proof.model_dump_json(indent=1) + "\n"})


def launch_command(study: StudyRecord, trial: TrialRecord, launcher: str, out_dir: Path) -> str:
    """The shell command that runs what `export` wrote."""
    start = _exporter(launcher).start(Source(study, trial, None))
    variables = [f"{name}={shlex.quote(value)}" for name, value in start.environment.items()]
    return " ".join([*variables, shlex.join(in_folder(start, out_dir))])


def in_folder(start: Start, folder: Path) -> list[str]:
    """The arguments of `start` with exported files, which end in .yaml or .json, named in their folder."""
    return [str(folder / part) if part.endswith((".yaml", ".json")) else part for part in start.arguments]


def _exporter(launcher: str) -> Exporter:
    if launcher not in EXPORTERS:
        raise UsageError(f"no launcher '{launcher}'; choose from {', '.join(EXPORTERS)}")
    return EXPORTERS[launcher]
