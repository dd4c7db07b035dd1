"""Digests of files and of training data."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autofit.config.base import read_yaml
from autofit.config.certificate import DatasetDigest
from autofit.config.space import DatasetRef
from autofit.errors import UsageError

_CHUNK = 2**20


def text_digest(text: str) -> str:
    """SHA-256 of a text as it is written to disk."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def file_digest(file: Path) -> str:
    """SHA-256 of a file's bytes.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    for chunk in _chunks(file):
        digest.update(chunk)
    return digest.hexdigest()


def dataset_digest(dataset: DatasetRef | None) -> DatasetDigest:
    """The digest over the entries of `dataset_info.json` that `dataset` names and every data file they name, in order.

    Images are not part of it: their paths are, as they stand in the data. No digest, and why, where something is not here.
    """
    if dataset is None:
        return DatasetDigest(name="", dir="", reason="the study names no data set")
    described = {"name": dataset.name, "dir": dataset.dir}
    folder = Path(dataset.dir)
    if not (folder / "dataset_info.json").is_file():
        return DatasetDigest(**described, reason=f"{folder / 'dataset_info.json'} is not here")
    try:
        entries = read_yaml(folder / "dataset_info.json")
        digest = hashlib.sha256()
        for name in map(str.strip, dataset.name.split(",")):
            digest.update(json.dumps([name, entries.get(name)], sort_keys=True).encode())
            for file in _files(name, entries.get(name), folder):
                digest.update(f"\n{file.relative_to(folder)} {file_digest(file)}".encode())
    except UsageError as error:
        return DatasetDigest(**described, reason=str(error))
    except OSError as error:
        return DatasetDigest(**described, reason=f"{error.filename} cannot be read ({error.strerror})")
    return DatasetDigest(**described, sha256=digest.hexdigest())


def _files(name: str, entry: Any, folder: Path) -> list[Path]:
    """The data files of one entry.

    Raises:
        UsageError: the entry is missing, or its data are not local.
    """
    if not isinstance(entry, dict):
        raise UsageError(f"{folder / 'dataset_info.json'} has no entry {name}")
    if "file_name" not in entry:
        raise UsageError(f"data set {name} is not local ({', '.join(sorted(entry))})")
    path = folder / str(entry["file_name"])
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.is_file())
    if not path.is_file():
        raise UsageError(f"{path} is not here")
    return [path]


def _chunks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            yield chunk
