"""Which files a dataset's name means: LLaMA-Factory's `dataset_info.json`, read and checked before anything is started."""

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autofit.config.base import Frozen
from autofit.errors import UsageError

INFO = "dataset_info.json"
_ELSEWHERE = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
_SUFFIXES = {".json", ".jsonl", ".csv", ".parquet", ".arrow", ".txt"}
_FORMATS = ("alpaca", "sharegpt", "openai")


class Sources(Frozen):
    """Datasets that lie on this machine."""

    dataset_dir: str
    """Absolute folder of `dataset_info.json`."""
    names: tuple[str, ...]
    entries: dict[str, dict[str, Any]]
    """Name -> its entry in `dataset_info.json`."""
    files: dict[str, tuple[str, ...]]
    """Name -> its files, absolute."""


def find_sources(dataset: str, dataset_dir: str | None) -> Sources:
    """The datasets behind NAME, NAME,NAME or FILE; a FILE is one that the `dataset_info.json` beside it lists.

    Args:
        dataset_dir: folder of `dataset_info.json`; None: `data`, or the FILE's own.

    Raises:
        UsageError: no such name, file or folder, a dataset that is not on this machine, or an entry that LLaMA-Factory
            could not read for supervised fine-tuning.
    """
    file = Path(dataset)
    if file.is_file() or "/" in dataset or file.suffix in _SUFFIXES:
        if not file.is_file():
            raise UsageError(f"--dataset {dataset}: no such file")
        folder = Path(dataset_dir) if dataset_dir else file.parent
        info = _read_info(folder)
        names = [name for name, entry in info.items() if _lists(folder, entry, file)]
        if not names:
            raise UsageError(
                f"--dataset {dataset}: {folder / INFO} does not list it; add an entry with its format and columns, as"
                f" LLaMA-Factory needs (it lists {_listed(info)})"
            )
        names = names[:1]
    else:
        folder = Path(dataset_dir or "data")
        info = _read_info(folder)
        names = [name.strip() for name in dataset.split(",") if name.strip()]
    if not names:
        raise UsageError("--dataset: names no dataset")
    entries = {name: _entry(info, name, folder) for name in names}
    return Sources(
        dataset_dir=str(folder.resolve()),
        names=tuple(names),
        entries=entries,
        files={name: _files(name, entry, folder) for name, entry in entries.items()},
    )


def _read_info(folder: Path) -> dict[str, Any]:
    path = folder / INFO
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        hint = "" if folder.is_dir() else "; name the folder with --dataset-dir"
        raise UsageError(f"{path}: cannot be read ({error.strerror or error}){hint}") from error
    except ValueError as error:
        raise UsageError(f"{path}: is not JSON ({error})") from error
    if not isinstance(info, dict):
        raise UsageError(f"{path}: must hold an object, name -> entry")
    return info


def _entry(info: dict[str, Any], name: str, folder: Path) -> dict[str, Any]:
    if name not in info:
        near = difflib.get_close_matches(name, info, n=1, cutoff=0.4)
        hint = f"did you mean '{near[0]}'?" if near else f"it lists {_listed(info)}"
        raise UsageError(f"{folder / INFO} lists no dataset '{name}'; {hint}")
    entry = info[name]
    if not isinstance(entry, dict):
        raise UsageError(f"{folder / INFO}: the entry of '{name}' is a {type(entry).__name__}, not an object")
    for key in _ELSEWHERE:
        if key in entry:
            raise UsageError(
                f"dataset '{name}' comes from elsewhere ({key}: {entry[key]}), so it cannot be profiled offline; download it"
                f" and give {folder / INFO} an entry with its file_name"
            )
    if entry.get("formatting", "alpaca") not in _FORMATS:
        raise UsageError(
            f"{folder / INFO}: '{name}' has the formatting '{entry['formatting']}'; LLaMA-Factory knows {', '.join(_FORMATS)}"
        )
    if entry.get("ranking"):
        raise UsageError(f"dataset '{name}' is one of preferences (ranking); only supervised fine-tuning is profiled")
    return entry


def _files(name: str, entry: dict[str, Any], folder: Path) -> tuple[str, ...]:
    if not isinstance(entry.get("file_name"), str):
        raise UsageError(f"{folder / INFO}: the entry of '{name}' has no file_name")
    path = folder / entry["file_name"]
    if path.is_dir():
        found: Sequence[Path] = sorted(path.iterdir())
    else:
        found = [path] if path.is_file() else []
    if not found:
        raise UsageError(f"dataset '{name}': {path}, which {folder / INFO} names, does not exist")
    return tuple(str(file.resolve()) for file in found)


def _lists(folder: Path, entry: Any, file: Path) -> bool:
    named = entry.get("file_name") if isinstance(entry, dict) else None
    return isinstance(named, str) and (folder / named).resolve() == file.resolve()


def _listed(info: dict[str, Any], limit: int = 8) -> str:
    names = list(info)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "") if names else "none"
