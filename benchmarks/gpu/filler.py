"""Another process that takes a GPU's memory, as a colleague's job would."""

import subprocess
import sys
from types import TracebackType
from typing import Self

_SPARE_BYTES = 48 * 2**20


class Filler:
    """Starts with a CUDA context and nothing else; `fill` takes what is free. Ended at the end of the block."""

    def __init__(self, python: str) -> None:
        self.filled = False
        self._process = subprocess.Popen(
            [python, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self._answer("ready")

    def fill(self) -> None:
        """Returns when the device is full."""
        assert self._process.stdin is not None
        self._process.stdin.write("fill\n")
        self._process.stdin.flush()
        self._answer("filled")
        self.filled = True

    def _answer(self, wanted: str) -> None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if line != wanted:
            self._process.kill()
            raise RuntimeError(f"the process that is to fill the device said {line!r} instead of {wanted!r}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()


def main() -> None:
    """What the other process does."""
    import torch

    held = [torch.zeros(1, device="cuda")]
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    for part in (2**30, 2**27, 2**24):
        while torch.cuda.mem_get_info()[0] > part + _SPARE_BYTES:
            held.append(torch.empty(part, dtype=torch.uint8, device="cuda"))
    sys.stdout.write("filled\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
