"""What a request may name: shipped spaces and presets, hub ids, configured interpreters, paths inside configured folders."""

import re
from pathlib import Path

from autofit.config.job import JobRequest
from autofit.config.model import preset_names
from autofit.config.trial import TrialSpec
from autofit.resources import resource_dir
from autofit.web.problems import Refused
from autofit.web.settings import Settings

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


def shipped_spaces() -> list[str]:
    """Names of the search spaces that ship."""
    return sorted(file.stem for file in resource_dir("search_spaces").glob("*.yaml"))


def confined(settings: Settings, asked: JobRequest) -> JobRequest:
    """`asked` with its names made what the command line takes.

    Raises:
        Refused: it names an interpreter or a path that the configuration does not allow.
    """
    return asked.model_copy(
        update={
            "space": _space(settings, asked.space),
            "model": _model(settings, asked.model),
            "dataset": _dataset(settings, asked.dataset),
            "from_file": _optional(settings, asked.from_file, "from_file"),
            "python": interpreter(settings, asked.python),
        }
    )


def confined_spec(settings: Settings, spec: TrialSpec) -> TrialSpec:
    """`spec` with its model's folder checked.

    Raises:
        Refused: it is a path outside the roots, or an inline config, whose size nothing bounds.
    """
    if spec.model.config is not None:
        raise Refused(422, "name the model by preset or folder; an inline config is not taken here", "spec.model.config")
    if spec.model.path is None:
        return spec
    path = str(inside(settings, spec.model.path, "spec.model.path"))
    return spec.model_copy(update={"model": spec.model.model_copy(update={"path": path})})


def interpreter(settings: Settings, name: str | None) -> str:
    """The interpreter of that name; None: the service's own.

    Raises:
        Refused: it is not configured.
    """
    if name is None:
        return settings.python
    if name not in settings.pythons:
        known = ", ".join(settings.pythons) or "none"
        raise Refused(422, f"python: '{name}' is no configured interpreter; configured (--python): {known}", "python")
    return settings.pythons[name]


def inside(settings: Settings, text: str, field: str) -> Path:
    """`text` as a path inside one of the roots, links followed; a relative one is looked for in each.

    Raises:
        Refused: it is in none.
    """
    if "\0" not in text:
        for root in settings.roots:
            base = root.resolve()
            try:
                path = (base / text).resolve()
                if path.is_relative_to(base) and path.exists():
                    return path
            except (OSError, RuntimeError, ValueError):
                continue
    raise Refused(422, f"{field}: no such path in the folders that the service may use (--root)", field)


def _optional(settings: Settings, text: str | None, field: str) -> str | None:
    return None if text is None else str(inside(settings, text, field))


def _space(settings: Settings, text: str | None) -> str | None:
    if text is None:
        return None
    if text in shipped_spaces():
        return str(resource_dir("search_spaces") / f"{text}.yaml")
    return str(inside(settings, text, "space"))


def _model(settings: Settings, text: str | None) -> str | None:
    if text is None or text in preset_names():
        return text
    try:
        return str(inside(settings, text, "model"))
    except Refused:
        if _HUB_ID.fullmatch(text):
            return text
        raise


def _dataset(settings: Settings, text: str | None) -> str | None:
    if text is None:
        return None
    try:
        return str(inside(settings, text, "dataset"))
    except Refused:
        if _NAME.fullmatch(text) and "." not in text:
            return text
        raise
