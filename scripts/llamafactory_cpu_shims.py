"""Lets the PyPI wheels of torchvision and torchaudio load beside a torch without CUDA, and DeepSpeed start without a compiler.

`llamafactory-env.sh` installs this file with a one-line `.pth`, so that it is imported when an interpreter starts, also in
what `torchrun` and data loaders start. It costs nothing until one of the three modules is imported, and it leaves a CUDA torch
alone.

- torchvision: its C++ library needs libtorch_cuda, so its operators are missing and `_meta_registrations` fails on
  `torchvision::nms`. Declaring the two schemas is enough: image processors use the Python part only.
- torchaudio: `_load_lib` tolerates a library that is absent, but not one that cannot be linked (libc10_cuda).
- DeepSpeed: importing its CPU communication backend compiles `deepspeed_shm_comm` for two minutes. It is a shortcut for
  all-reduce; marked incompatible, gloo does the same.
"""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

_TORCHVISION_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_kept: list[Any] = []  # a torch.library.Library takes its schemas with it when it is collected


def _declare_torchvision_operators() -> None:
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _TORCHVISION_SCHEMAS:
        try:
            library.define(schema)
        except RuntimeError:  # already declared: the library could be loaded after all
            pass
    _kept.append(library)


def _tolerate_unlinkable_libraries(module: ModuleType) -> None:
    load = module._load_lib

    def load_or_report(name: str) -> bool:
        try:
            return bool(load(name))
        except OSError:
            return False

    module._load_lib = load_or_report  # type: ignore[attr-defined]


def _skip_shared_memory_backend(module: ModuleType) -> None:
    module.__compatible_ops__["deepspeed_shm_comm"] = False


BEFORE: dict[str, Callable[[], None]] = {"torchvision": _declare_torchvision_operators}
AFTER: dict[str, Callable[[ModuleType], None]] = {
    "torchaudio._extension.utils": _tolerate_unlinkable_libraries,
    "deepspeed.ops": _skip_shared_memory_backend,
}


class _Loader(importlib.abc.Loader):
    """The module's own loader with a repair around it."""

    def __init__(self, inner: importlib.abc.Loader, name: str) -> None:
        self.inner, self.name = inner, name

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        import torch

        repair = torch.version.cuda is None
        if repair and self.name in BEFORE:
            BEFORE[self.name]()
        self.inner.exec_module(module)
        if repair and self.name in AFTER:
            AFTER[self.name](module)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name not in BEFORE and name not in AFTER:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, name)
        return spec


if not any(type(finder).__name__ == "_Finder" and type(finder).__module__ == __name__ for finder in sys.meta_path):
    sys.meta_path.insert(0, _Finder())
