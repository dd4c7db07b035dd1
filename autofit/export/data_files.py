"""The study's data set as launchers other than LLaMA-Factory name it: a file and the form of its rows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from autofit.config.base import read_yaml
from autofit.errors import UsageError
from autofit.export.source import Source

_READERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
_SHAREGPT_TAGS = {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"}


@dataclass(frozen=True)
class DataFile:
    """One entry of `dataset_info.json`."""

    name: str
    path: str
    reader: str
    """What Hugging Face `datasets` reads it with."""
    form: Literal["alpaca", "messages"]
    columns: dict[str, str]
    """LLaMA-Factory's column -> the file's own."""
    tags: dict[str, str]
    """`messages`: its `role_tag` and `content_tag`, and how roles are called."""


def data_files(source: Source, launcher: str) -> list[DataFile] | None:
    """The study's data files; None where it names no data set.

    Raises:
        UsageError: they are not local files that another launcher could read.
    """
    dataset = source.study.space.dataset
    if dataset is None:
        return None
    folder = Path(source.dataset.dir)
    info = folder / "dataset_info.json"
    if not info.is_file():
        raise UsageError(f"{info} is not here, so {launcher} cannot be told where data set {dataset.name} lies")
    entries = read_yaml(info)
    return [_file(name.strip(), entries.get(name.strip()), folder, launcher) for name in dataset.name.split(",")]


def _file(name: str, entry: Any, folder: Path, launcher: str) -> DataFile:
    file = folder / str(entry.get("file_name", "")) if isinstance(entry, dict) else folder
    if not isinstance(entry, dict) or file.suffix not in _READERS:
        raise UsageError(f"data set {name} in {folder / 'dataset_info.json'} is no local file that {launcher} reads")
    sharegpt = entry.get("formatting", "alpaca") != "alpaca"
    return DataFile(
        name=name,
        path=str(file),
        reader=_READERS[file.suffix],
        form="messages" if sharegpt else "alpaca",
        columns=dict(entry.get("columns") or {}),
        tags={**_SHAREGPT_TAGS, **(entry.get("tags") or {})},
    )
