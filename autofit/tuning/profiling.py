"""From what the user names - a model, a dataset - to the dataset's profile."""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from autofit.config.model import Model, ModelRef, resolve_model
from autofit.data.collect import ProfileOptions, ProfileRequest, Progress, collect, default_cache
from autofit.data.profile import DataProfile
from autofit.data.sources import find_sources
from autofit.errors import UsageError
from autofit.export.templates import template_for
from autofit.launch.environment import probe


@dataclass(frozen=True)
class ProfileQuestion:
    """What `autofit profile` was asked. None: not said."""

    model: str
    dataset: str
    dataset_dir: str | None = None
    media_dir: str | None = None
    template: str | None = None
    python: str | None = None
    image_max_pixels: int = 589_824
    processes: int | None = None
    options: ProfileOptions = field(default_factory=ProfileOptions)


def profile_data(question: ProfileQuestion, progress: Progress | None = None, cache: Path | None = None) -> DataProfile:
    """The profile that a question asks for, from the cache or made now.

    Raises:
        UsageError: no such model, dataset or certain template.
        LaunchError: the interpreter cannot run the worker.
        AutofitError: the data cannot be profiled; one line says why.
    """
    ref = ModelRef.from_text(question.model)
    sources = find_sources(question.dataset, question.dataset_dir)
    request = ProfileRequest(
        model=tokenizer_folder(resolve_model(ref)),
        sources=sources,
        template=question.template or _template(ref),
        media_dir=question.media_dir and str(Path(question.media_dir).resolve()),
        image_max_pixels=question.image_max_pixels,
        options=question.options,
    )
    environment = probe(question.python or sys.executable)
    return collect(request, environment, cache or default_cache(), question.processes, progress)


def tokenizer_folder(model: Model) -> str:
    """Where a model's tokenizer is: its own folder, or the hub's cache.

    Raises:
        UsageError: nowhere on this machine.
    """
    folder = model.path or _hub_folder(model.id)
    if folder is None:
        raise UsageError(f"--model {model.label}: no tokenizer on this machine; give the model's folder")
    return folder


def _template(ref: ModelRef) -> str:
    try:
        return template_for(resolve_model(ref))
    except UsageError as error:
        what = str(error).split(";", maxsplit=1)[0]
        raise UsageError(f"{what}; name LLaMA-Factory's template with --template") from error


def _hub_folder(model_id: str | None) -> str | None:
    """The newest snapshot of a hub model in the local cache, where huggingface_hub keeps it; None if there is none."""
    if model_id is None:
        return None
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub") / f"models--{model_id.replace('/', '--')}"
    try:
        snapshot = hub / "snapshots" / (hub / "refs" / "main").read_text().strip()
    except OSError:
        return None
    return str(snapshot) if snapshot.is_dir() else None
