"""Whether the last words of a launcher tell of a failed allocation.

The phrases are those by which the worker classifies (`worker/outcomes.py`), which nobody may import; a test compares them.
"""

import re

DEVICE = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "Cuda failure 'out of memory'",
    "Failed to CUDA calloc",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "HIP out of memory",
)
HOST = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "std::bad_alloc",
    "Cannot allocate memory",
    "can't start new thread",
)
_TYPES = re.compile(r"^(?:\[rank\d+\]: ?)?(?:[\w.]*\.)?(?:OutOfMemoryError|_ArrayMemoryError|MemoryError)\b")
_MAX_LINE = 500


def memory_error(text: str) -> tuple[bool, str] | None:
    """(whether it was the host's memory, the line that says so), the last such line of `text`; None if there is none."""
    for line in (each.strip() for each in reversed(text.splitlines())):
        if any(phrase in line for phrase in DEVICE):
            return False, line[:_MAX_LINE]
        if any(phrase in line for phrase in HOST):
            return True, line[:_MAX_LINE]
        if _TYPES.match(line):
            return "OutOfMemoryError" not in line, line[:_MAX_LINE]
    return None
