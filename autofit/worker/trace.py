"""`trace SPEC.json [-o trace.json.gz]`: what the training steps of one variant allocate and compute, without data.

`trace - PROCESSES SECONDS` traces many, a few at a time (`trace_crew`).

The model is the training environment's own transformers class, built by `models.build` as a trial builds it, on the `meta`
device. `meta` and not fake CUDA tensors: it needs no compiler and no CUDA build, is several times faster, and what it lacks
is put in: autocast at its own dispatch key (`trace_autocast`), CUDA's kernels and their scratch (`trace_kernels`).

The first shape is traced over two whole optimizer steps (the first creates the optimizer's state). What the optimizer
allocates does not depend on shapes, and both steps run forward and backward alike, so every further shape costs one forward
and backward only; that its events are those of the first shape, one by one, is checked.

The spec is a trial's `spec.json` with one more key: `"trace": {"shapes": [{"micro_batch_size", "cutoff_len", "grids"}],
"single": false, "depth": "full" | "shallow", "target": "cuda" | "cpu", "foreach": true | false, "optimizer": true,
"max_grad_norm": 1.0, "moments": false, "lookahead": 0}`, all optional. `single`: where gradients are accumulated, also the
groups of a step without (`trace_accumulation`). `depth`: whether a model of few blocks may stand for a deep one
(`trace_document` checks it). `lookahead` counts batches that the data loader fetches ahead: accelerate keeps one in host
memory, which is the device on the CPU.
"""

import gc
import gzip
import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def main(argv: list[str]) -> int:
    """Exit status: 0 written, 1 cannot be traced (one line on stderr says why), 2 usage."""
    output = "-"
    if "-o" in argv[:-1]:
        at = argv.index("-o")
        output, argv = argv[at + 1], argv[:at] + argv[at + 2 :]
    many = len(argv) == 3 and argv[0] == "-" and argv[1].isdigit() and argv[2].isdigit()
    if not many and (len(argv) != 1 or argv[0].startswith("-")):
        _say("usage: autofit.worker trace SPEC.json [-o trace.json.gz] | trace - PROCESSES SECONDS")
        return 2
    os.environ.setdefault("TRANSFORMERS_DISABLE_TORCH_CHECK", "1")  # its checks read values, and there are none
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if many:
        from autofit.worker.trace_crew import serve

        return serve(int(argv[1]), float(argv[2]), _import, _answered)
    try:
        spec = _read(argv[0])
    except ValueError as error:
        _say(f"autofit.worker: {error}")
        return 2
    from autofit.worker.trace_inputs import TraceError

    try:
        document = trace(spec)
    except TraceError as error:
        _say(f"autofit.worker: {error}")
        return 1
    _write(document, output)
    return 0


def _import() -> None:
    """All that tracing a spec imports, whatever the spec; what is missing is left for the spec to report."""
    try:
        importlib.import_module("transformers.modeling_utils")
        importlib.import_module("peft")
    except ImportError:
        pass
    importlib.import_module("autofit.worker.trace_document")


def _answered(name: str) -> str:
    """The file with the document of the spec in file `name`."""
    output = f"{name}.trace.json.gz"
    _write(trace(_read(name)), output)
    return output


def _read(name: str) -> dict[str, Any]:
    try:
        spec = json.loads(Path(name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}: is not a readable spec ({error})") from error
    if not isinstance(spec, dict):
        raise ValueError(f"{name}: is not a spec (a {type(spec).__name__})")
    return spec


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


def _write(document: dict[str, Any], output: str) -> None:
    text = json.dumps(document, separators=(",", ":"))
    if output == "-":
        sys.stdout.write(text + "\n")
        return
    path = Path(output)
    temporary = path.with_name(path.name + ".part")
    data = text.encode()
    temporary.write_bytes(gzip.compress(data, compresslevel=1) if path.suffix == ".gz" else data)
    temporary.replace(path)


def trace(spec: dict[str, Any]) -> dict[str, Any]:
    """The trace document of a spec (see the module's docstring; `trace_document` builds it).

    Raises:
        TraceError: the configuration cannot be traced, or its events differ between the shapes.
    """
    import torch

    from autofit.worker.trace_document import document as written
    from autofit.worker.trace_inputs import Shape, TraceError

    started = time.perf_counter()
    options = dict(spec.get("trace") or {})
    shapes = [Shape.read(value) for value in options.get("shapes") or []]
    if missing := [key for key in ("model", "trial") if key not in spec]:
        raise TraceError(f"spec without {missing[0]!r}: needs model and a whole trial")
    with _quiet(), torch.autograd.set_multithreading_enabled(False):
        document = written(spec["model"], spec["trial"], options, shapes)
    document["metadata"]["seconds"] = round(time.perf_counter() - started, 3)
    document["metadata"]["rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return document


@contextmanager
def _quiet() -> Iterator[None]:
    """Garbage collection would free cycles at random moments; the training loop's own references decide here."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
