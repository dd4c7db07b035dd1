"""Makes a profile in the training environment, or takes it from the cache.

A cached profile is valid while nothing that it was made from has changed: the data files, the entries in
`dataset_info.json`, the tokenizer's and processor's files, template, options and versions by content; the images, which may
be many and large, by path, size and time of change.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from autofit.config.base import Frozen
from autofit.data.profile import FORMAT, DataProfile, media_files
from autofit.data.sources import Sources
from autofit.errors import AutofitError, UsageError
from autofit.launch.environment import TrainingEnvironment
from autofit.launch.processes import ProcessGroup
from autofit.resources import worker_entry

Progress = Callable[[int, int], None]
"""(rows done, rows in all)"""

_POLL_SECONDS = 0.1
_GRACE_SECONDS = 2.0
_MEDIA_FILE = "media.sha256"
_NOT_THE_TOKENIZERS = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack", ".md"}


class ProfileOptions(Frozen):
    """LLaMA-Factory's data arguments that change lengths or labels; None: its default."""

    mask_history: bool | None = None
    train_on_prompt: bool | None = None
    default_system: str | None = None
    tool_format: str | None = None
    enable_thinking: bool | None = None


class ProfileRequest(Frozen):
    """What to profile."""

    model: str
    """Folder with tokenizer and, for images, processor."""
    sources: Sources
    template: str
    """LLaMA-Factory's chat template."""
    media_dir: str | None = None
    """Folder that paths of images are relative to; None: the dataset's."""
    image_max_pixels: int = 589_824
    image_min_pixels: int = 1024
    options: ProfileOptions = ProfileOptions()


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/autofit/profiles`, or the same under `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autofit" / "profiles"


def collect(
    request: ProfileRequest,
    environment: TrainingEnvironment,
    cache: Path,
    processes: int | None = None,
    progress: Progress | None = None,
) -> DataProfile:
    """The profile of a request.

    Args:
        processes: that share the rows; None: one a core.
        progress: called while it is made, not when the cache has it.

    Raises:
        UsageError: the model folder has no tokenizer.
        AutofitError: the interpreter cannot make it, or the data cannot be read; one line says why.
    """
    folder = cache / _key(request, environment)
    if (found := _cached(folder)) is not None:
        return found
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="making-", dir=cache) as made_in:
        made = Path(made_in) / "profile"
        made.mkdir()
        _make(request, environment, made, processes or os.cpu_count() or 1, progress)
        profile = DataProfile.load(made)
        if profile.facts.faulty_rows:
            return profile  # not kept: what mends it may be a file that no row could name yet
        (made / _MEDIA_FILE).write_text(_media_digest(media_files(made)))
        shutil.rmtree(folder, ignore_errors=True)
        made.replace(folder)
    return profile


def _cached(folder: Path) -> DataProfile | None:
    try:
        profile = DataProfile.load(folder)
        noted = (folder / _MEDIA_FILE).read_text()
    except (AutofitError, OSError):
        return None
    return profile if noted == _media_digest(media_files(folder)) else None


def _make(
    request: ProfileRequest, environment: TrainingEnvironment, out: Path, processes: int, progress: Progress | None
) -> None:
    """Runs the worker; `out` holds the profile afterwards."""
    order = {
        "model": request.model,
        "datasets": request.sources.names,
        **request.sources.model_dump(include={"dataset_dir", "entries", "files"}),
        "media_dir": request.media_dir,
        "template": request.template,
        "image_max_pixels": request.image_max_pixels,
        "image_min_pixels": request.image_min_pixels,
        "options": request.options.model_dump(exclude_none=True),
        "processes": processes,
        "cwd": str(Path.cwd()),
    }
    run = out.parent / "run"
    run.mkdir()
    (run / "order.json").write_text(json.dumps(order), encoding="utf-8")
    python = environment.python
    if os.sep in python:
        python = str(Path(python).absolute())  # the worker runs in another folder; a link is not followed: it may be a venv's
    argv = [python, str(worker_entry()), "profile", str(run / "order.json"), str(out)]
    with ProcessGroup(argv, _variables(), run, _GRACE_SECONDS) as group:
        told = (0, 0)
        while (status := group.poll()) is None:
            time.sleep(_POLL_SECONDS)
            told = _tell(out, told, progress)
        _tell(out, told, progress)
    if status:
        lines = [line for line in (run / "stderr.log").read_text(errors="replace").splitlines() if line.strip()]
        said = [line.removeprefix("autofit.worker: ") for line in lines if line.startswith("autofit.worker: ")]
        raise AutofitError((said or lines or [f"the profile's process ended with status {status}"])[-1])


def _tell(out: Path, told: tuple[int, int], progress: Progress | None) -> tuple[int, int]:
    """Passes new progress on; returns what was passed last."""
    try:
        found = json.loads((out / "progress.json").read_text())
    except (OSError, ValueError):
        return told
    now = (int(found["done"]), int(found["rows"]))
    if progress is not None and now != told:
        progress(*now)
    return now


def _variables() -> dict[str, str]:
    variables = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME"}}
    return variables | {"CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}


def _key(request: ProfileRequest, environment: TrainingEnvironment) -> str:
    folder = Path(request.model)
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix not in _NOT_THE_TOKENIZERS)
    if not any("token" in path.name or path.name == "vocab.json" for path in files):
        raise UsageError(f"model folder {folder} has no tokenizer; give the folder that the training will load")
    parts: dict[str, Any] = {
        "format": FORMAT,
        "request": request.model_dump(mode="json"),
        "versions": environment.versions,
        "data": {file: _content(Path(file)) for found in request.sources.files.values() for file in found},
        "tokenizer": {path.name: _content(path) for path in files},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def _content(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from error


def _media_digest(paths: Iterable[str]) -> str:
    """Of the paths, sizes and times of change of files; a missing one counts as such."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            found = Path(path).stat()
            digest.update(f"{path}\0{found.st_size}\0{found.st_mtime_ns}\0".encode())
        except OSError:
            digest.update(f"{path}\0missing\0".encode())
    return digest.hexdigest()
