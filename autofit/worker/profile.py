"""`profile ORDER.json OUT`: how long every row of a dataset is, in tokens and image patches, before any truncation.

ORDER.json: `model` (folder with a tokenizer), `datasets` (names), `dataset_dir`, `media_dir` (or null), `entries` and `files`
(name -> its entry in dataset_info.json; name -> paths), `template`, `image_max_pixels`, `image_min_pixels`, `options`
(`mask_history`, `train_on_prompt`, `default_system`, `tool_format`, `enable_thinking`: LLaMA-Factory's), `processes`, `cwd`.

Writes into the folder OUT `progress.json` ({"done", "rows"}), `samples.npz` (integer arrays, see `profile_samples`) and, last,
`facts.json`. Rows that training would stop at are listed there as faults; they do not end the job.
"""

import importlib.util
import json
import multiprocessing
import os
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autofit.worker.files import write_json
from autofit.worker.probe import versions
from autofit.worker.profile_samples import INTEGERS, TURN_INTEGERS, Backend, Chunk, Dropped, ProfileError, RowError, one_line

FORMAT = 1
_CHUNK_ROWS = 64
_FAULTS = 1000
"""Faulty rows that are listed; more are counted."""


def main(argv: list[str]) -> int:
    """Exit status: 0 written, 1 the data cannot be profiled (one line on stderr says why), 2 usage."""
    if len(argv) != 2 or argv[0].startswith("-"):
        return _say("usage: autofit.worker profile ORDER.json OUT", 2)
    try:
        order = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return _say(f"autofit.worker: {argv[0]}: is not a readable order ({error})", 2)
    out = Path(argv[1]).resolve()
    os.chdir(order.get("cwd") or ".")  # paths in the data may be relative to where training is launched
    try:
        profile(order, out)
    except ProfileError as error:
        return _say(f"autofit.worker: {error}", 1)
    return 0


def _say(line: str, status: int) -> int:
    sys.stderr.write(line + "\n")
    return status


def profile(order: dict[str, Any], out: Path) -> None:
    """Works an order through.

    Raises:
        ProfileError: a dataset cannot be read, or the tokenizer or template not be loaded.
    """
    backend = _backend(order)
    total = sum(len(dataset) for dataset in backend.datasets)
    whole = Chunk()
    for chunk in _chunks(backend, int(order.get("processes") or 1)):
        whole.extend(chunk)
        write_json(out / "progress.json", {"done": whole.rows, "rows": total}, durable=False)
    _write(out, order, backend, whole)


def _backend(order: dict[str, Any]) -> Backend:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("DISABLE_VERSION_CHECK", "1")  # LLaMA-Factory's; what trains is another job's matter
    if importlib.util.find_spec("llamafactory") is not None:
        from autofit.worker.profile_llamafactory import LlamaFactoryBackend

        try:
            return LlamaFactoryBackend(order)
        except ImportError as error:
            raise ProfileError(
                f"LLaMA-Factory is installed in {sys.executable} but cannot be used: {one_line(error)}"
            ) from error
    from autofit.worker.profile_plain import PlainBackend

    return PlainBackend(order)


_forked: Backend | None = None
"""The backend that worker processes inherit: tokenizers and tables are shared by forking, never pickled."""


def _chunks(backend: Backend, processes: int) -> Iterator[Chunk]:
    """Every row of every dataset, in order, a chunk at a time."""
    global _forked  # noqa: PLW0603 - what a forked process can reach
    spans = [
        (number, start, min(start + _CHUNK_ROWS, len(dataset)))
        for number, dataset in enumerate(backend.datasets)
        for start in range(0, len(dataset), _CHUNK_ROWS)
    ]
    _forked = backend
    if processes <= 1 or len(spans) <= 1:
        yield from map(_worked, spans)
        return
    with multiprocessing.get_context("fork").Pool(min(processes, len(spans))) as pool:
        yield from pool.imap(_worked, spans)


def _worked(span: tuple[int, int, int]) -> Chunk:
    number, start, end = span
    assert _forked is not None
    chunk = Chunk(rows=end - start)
    for row, content in enumerate(_forked.datasets[number].between(start, end), start):
        try:
            sample = _forked.sample(number, content)
        except RowError as error:
            chunk.faults.append((number, row, str(error)))
            continue
        if isinstance(sample, Dropped):
            chunk.dropped[number, sample.reason] += 1
        else:
            chunk.add(number, row, sample)
    return chunk


def _write(out: Path, order: dict[str, Any], backend: Backend, whole: Chunk) -> None:
    import numpy as np

    arrays = {name: np.asarray(whole.columns[name], dtype=np.int32) for name in (*INTEGERS, *TURN_INTEGERS)}
    media = zlib.compress("\0".join(sorted(whole.media)).encode())
    with (out / "samples.npz").open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, media=np.frombuffer(media, dtype=np.uint8), **arrays)
    facts = backend.facts()
    for name, entry in order["entries"].items():
        if (drawn := entry.get("num_samples")) is not None:
            facts["notes"].append(
                f"{name}: LLaMA-Factory draws {drawn} of its rows anew in every run (num_samples); all are here"
            )
    document = {
        "format": FORMAT,
        "model": order["model"],
        "datasets": [{"name": dataset.name, "rows": len(dataset)} for dataset in backend.datasets],
        "image_max_pixels": order["image_max_pixels"],
        "image_min_pixels": order["image_min_pixels"],
        "dropped": [
            {"dataset": backend.datasets[number].name, "reason": reason, "rows": rows}
            for (number, reason), rows in sorted(whole.dropped.items())
        ],
        "faults": [
            {"dataset": backend.datasets[number].name, "row": row, "what": what} for number, row, what in whole.faults[:_FAULTS]
        ],
        "faulty_rows": len(whole.faults),
        "versions": versions(),
        **facts,
    }
    write_json(out / "facts.json", document)
