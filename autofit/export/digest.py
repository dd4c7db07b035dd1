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
from autofit.export.media import media_digest, media_named

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


def dataset_digest(dataset: DatasetRef | None, media_dir: str | None = None) -> DatasetDigest:
    """The digest over the entries of `dataset_info.json` that `dataset` names, every data file they name, in order, and the
    contents of every image that their rows name (`media.py` says why contents). Where something is not here none, and why.
    """
    if dataset is None:
        return DatasetDigest(name="", dir="", reason="the study names no data set")
    described: dict[str, Any] = {"name": dataset.name, "dir": dataset.dir, "media_dir": media_dir}
    folder = Path(dataset.dir)
    media: list[str] = []
    unread: list[str] = []
    if not (folder / "dataset_info.json").is_file():
        return DatasetDigest(**described, reason=f"{folder / 'dataset_info.json'} is not here")
    try:
        entries = read_yaml(folder / "dataset_info.json")
        digest = hashlib.sha256()
        for name in map(str.strip, dataset.name.split(",")):
            digest.update(json.dumps([name, entries.get(name)], sort_keys=True).encode())
            for file in _files(name, entries.get(name), folder):
                digest.update(f"\n{file.relative_to(folder)} {file_digest(file)}".encode())
                if (named := media_named(entries[name], file)) is None:
                    unread.append(str(file.relative_to(folder)))
                else:
                    media.extend(named)
        if media:
            content, described["media_files"] = media_digest(media, Path(media_dir or folder))
            digest.update(f"\nmedia {content}".encode())
    except UsageError as error:
        return DatasetDigest(**described, reason=str(error))
    except OSError as error:
        return DatasetDigest(**described, reason=f"{error.filename} cannot be read ({error.strerror})")
    except ValueError as error:
        return DatasetDigest(**described, reason=f"a data file of {dataset.name} is not what its name says ({error})")
    return DatasetDigest(**described, unread=tuple(unread), sha256=digest.hexdigest())


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
