"""Pages of files that a process has mapped: a fork has none of them, a process that imported for itself has.

The kernel copies a parent's own memory into the fork's page tables, but not the pages of its libraries: those come when they
are touched. On the CPU, where the resident set is what is measured, they would come in the middle of a step and count as the
training's memory (measured: 3 to 8 MiB of 150 to 190). So the fork maps at its start exactly what its parent had.
Linux 5.14 or newer; standard library only.
"""

import ctypes
import mmap
import os
import re
from collections.abc import Iterator
from pathlib import Path

_MADV_POPULATE_READ = 22
_ENTRY = 8
"""Bytes a page in pagemap; the highest bit of the (little-endian) entry tells whether the page is present."""
_PRESENT = re.compile(rb"[\x80-\xff]+")
_PAGES_AT_ONCE = 4096
Range = tuple[int, int]
"""Address and bytes."""


def file_pages() -> list[Range]:
    """Where this process has pages of files in memory, ascending."""
    found: list[Range] = []
    descriptor = os.open("/proc/self/pagemap", os.O_RDONLY)
    try:
        for start, end in _file_mappings():
            found += _present(descriptor, start, end)
    finally:
        os.close(descriptor)
    return found


def map_again(ranges: list[Range]) -> None:
    """Maps them in a fork of the process that asked `file_pages`.

    Raises:
        OSError: the kernel is too old for it.
    """
    library = ctypes.CDLL(None, use_errno=True)
    library.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for start, length in ranges:
        if library.madvise(start, length, _MADV_POPULATE_READ):
            number = ctypes.get_errno()
            raise OSError(number, f"pages of files cannot be mapped: {os.strerror(number)}")


def _file_mappings() -> Iterator[tuple[int, int]]:
    """Start and end of the readable mappings of files."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        span, rights, _, _, inode, *_ = line.split(maxsplit=5)
        if rights[0] == "r" and inode != "0":
            start, _, end = span.partition("-")
            yield int(start, 16), int(end, 16)


def _present(descriptor: int, start: int, end: int) -> Iterator[Range]:
    """Runs of present pages. By bytes rather than numbers: what is allocated here stays in the heap of all forks."""
    page, first = mmap.PAGESIZE, start
    while first < end:
        count = min(_PAGES_AT_ONCE, (end - first) // page)
        highest_bytes = os.pread(descriptor, count * _ENTRY, first // page * _ENTRY)[_ENTRY - 1 :: _ENTRY]
        for run in _PRESENT.finditer(highest_bytes):
            yield first + run.start() * page, (run.end() - run.start()) * page
        first += count * page
