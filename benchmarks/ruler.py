"""How CPU memory is measured in benchmarks that compare peaks: freed memory goes back to the kernel at once.

A trial usually keeps up to 8 MiB of free heap and everything below 1 MiB in it (`worker/supervisor.py`): faster, but a heap of
changing shapes then moves the peak of the same run by up to 8 % from one time to the next, and `RLIMIT_DATA` ends a run whose
tensors would have fitted. A GPU's allocator has neither trait. The price is a third of the speed, for all that is compared
alike.
"""

import os

MALLOC = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "262144",
    "MALLOC_TRIM_THRESHOLD_": "262144",
    "MALLOC_TOP_PAD_": "0",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "0",
}
"""glibc's environment variables, and oneDNN's: it keeps scratch for each shape that it has seen."""


def apply() -> None:
    """For every process that this one starts."""
    os.environ.update(MALLOC)
