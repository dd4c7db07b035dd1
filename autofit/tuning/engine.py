"""Which training loop runs the trials, and why: LLaMA-Factory's own wherever it can, for that is the run to be launched."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from autofit.config.model import Model
from autofit.config.space import DatasetRef
from autofit.config.trial import Engine, TrialSpec
from autofit.errors import UsageError
from autofit.export.llamafactory_arguments import arguments
from autofit.export.source import dataset_for
from autofit.launch.environment import TrainingEnvironment

TESTED = ((0, 9, 4), (0, 9, 5))
"""Oldest and newest LLaMA-Factory that the engine is tested with."""
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


@dataclass(frozen=True)
class Choice:
    """An engine, and what to say about it."""

    engine: Engine
    why: str
    warning: str | None = None


def choose(  # noqa: PLR0917
    wanted: Literal["auto"] | Engine,
    environment: TrainingEnvironment,
    model: Model,
    dataset: DatasetRef | None,
    spec: TrialSpec,
    device: str,
) -> Choice:
    """The engine for a study of `model` whose reference is `spec`.

    Raises:
        UsageError: `llamafactory` is asked for and cannot be.
    """
    if wanted == "transformers":
        return Choice("transformers", "as asked")
    version = environment.versions.get("llamafactory")
    obstacle = "it is not installed there" if version is None else _obstacle(model, dataset, spec, device)
    if obstacle is None and version is not None:
        why = "as asked" if wanted == "llamafactory" else f"{environment.python} has it"
        return Choice("llamafactory", why, untested(version))
    if wanted == "llamafactory":
        raise UsageError(f"--engine llamafactory: {environment.python} cannot run it: {obstacle}")
    return Choice("transformers", f"LLaMA-Factory cannot run the trials: {obstacle}")


def untested(version: str) -> str | None:
    """What to say of a LLaMA-Factory outside the tested range, None inside it."""
    numbers = tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
    oldest, newest = (".".join(map(str, each)) for each in TESTED)
    if TESTED[0] <= numbers <= TESTED[1]:
        return None
    difference = f"older than {oldest}, the oldest" if numbers < TESTED[0] else f"newer than {newest}, the newest"
    return (
        f"LLaMA-Factory {version} is {difference} that this engine is tested with: CRASHED trials may mean that a key"
        " or a function has changed; --engine transformers does without"
    )


def _obstacle(model: Model, dataset: DatasetRef | None, spec: TrialSpec, device: str) -> str | None:
    """Why LLaMA-Factory could not even start, or None."""
    try:
        arguments(spec, model, dataset, device)
    except UsageError as error:
        return str(error)
    if model.path and not any((Path(model.path) / name).is_file() for name in _TOKENIZER_FILES):
        return f"model folder {model.path} has no tokenizer"
    data = dataset_for(model, dataset)
    described = Path(data.dir) / "dataset_info.json"
    try:
        known = json.loads(described.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"{described} cannot be read; name your data with --dataset FILE"
    missing = [name for name in (part.strip() for part in data.name.split(",")) if name not in known]
    return f"{described} lists no dataset {missing[0]}" if missing else None
