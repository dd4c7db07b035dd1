"""What an exception means: out of memory, bad data, or a crash; by type, and by message where libraries raise RuntimeError."""

import errno
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

MAX_MESSAGE = 2000
_FOREIGN_BYTES = 256 * 2**20
"""Half of what a CUDA context takes: nobody computes on a device with less."""

_OOM_TYPES = frozenset({"OutOfMemoryError", "MemoryError", "_ArrayMemoryError"})
"""torch.OutOfMemoryError (torch.cuda.OutOfMemoryError), MemoryError, numpy's; by name, so that torch need not be imported."""

_DEVICE_OOM = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "Cuda failure 'out of memory'",
    "Failed to CUDA calloc",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "HIP out of memory",
)
_HOST_OOM = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "std::bad_alloc",
    "Cannot allocate memory",
    "can't start new thread",  # a thread's stack counts against RLIMIT_DATA
)
_DATA = (
    "Image features and image tokens do not match",
    "Videos features and video tokens do not match",
    "Video features and video tokens do not match",
)
_CONSEQUENCE = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Connection refused",
    "remote process exited or there was a network error",
    "NCCL communicator was aborted",
    "Timed out waiting",
)
_UNITS = {"bytes": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_REQUESTED = re.compile(r"[Tt]ried to allocate (\d+(?:\.\d+)?) (bytes|B|KiB|MiB|GiB|TiB)")
_ALLOCATED = re.compile(r"Of the allocated memory (\d+(?:\.\d+)?) (bytes|B|KiB|MiB|GiB|TiB) is allocated by PyTorch")


class DataError(Exception):
    """The sample cannot be made into a batch for this model."""


class Terminated(BaseException):
    """SIGTERM or Ctrl-C arrived. Not an Exception, so that no library swallows it."""


@dataclass(frozen=True)
class Failure:
    """What a rank reports of the exception that ended it."""

    outcome: str
    error_type: str
    message: str
    requested_bytes: int | None = None
    allocated_bytes: int | None = None


def classify(error: BaseException, device: str) -> Failure:
    """The outcome that `error` means for a trial on `device` (`cuda` or `cpu`).

    An OOM anywhere in the chain of causes decides: cleaning up after one often raises something else. On CUDA a failing host
    allocation is HOST_OOM; on the CPU the host's memory is the device's, so it is OOM.
    """
    for link in _chain(error):
        kind = _memory_kind(link)
        if kind:
            message = _message(link)
            outcome = "HOST_OOM" if kind == "host" and device == "cuda" else "OOM"
            return Failure(outcome, _type_name(link), message, _bytes(_REQUESTED, message), _bytes(_ALLOCATED, message))
    if isinstance(error, Terminated | KeyboardInterrupt):
        return Failure("CRASHED", type(error).__name__, "terminated")
    is_data = any(isinstance(link, DataError) or _says(_message(link), _DATA) for link in _chain(error))
    return Failure("DATA_ERROR" if is_data else "CRASHED", _type_name(error), _message(error))


def acquit(failure: Failure, room_bytes: int | None, unclaimed_bytes: int | None) -> Failure:
    """`failure`, or, where a device OOM is not the configuration's, the crash that it is.

    An allocation that the budget would have granted (`room_bytes`) failed because another process has come and taken memory
    (`unclaimed_bytes`, at least what a CUDA context takes). Where the message does not tell what was asked for, only as much as
    no library of ours takes decides.
    """
    if failure.outcome != "OOM" or room_bytes is None or unclaimed_bytes is None:
        return failure
    known = failure.requested_bytes is not None
    if (failure.requested_bytes or 0) > room_bytes or unclaimed_bytes < (_FOREIGN_BYTES if known else 8 * _FOREIGN_BYTES):
        return failure
    message = (
        f"another process has taken {unclaimed_bytes} bytes of the device since the run began; {room_bytes} bytes of the budget"
        f" were left: {failure.message}"
    )
    return replace(failure, outcome="CRASHED", error_type="DeviceTaken", message=message[:MAX_MESSAGE])


def is_consequence(message: str | None) -> bool:
    """Whether a message only tells that another rank has gone (or that this one was told to go)."""
    return _says(message or "", _CONSEQUENCE) or message == "terminated"


def says_out_of_memory(text: str) -> bool:
    """Whether the last words of a process that died in C++ tell of a failed allocation."""
    return _says(text, _DEVICE_OOM) or _says(text, _HOST_OOM)


def _memory_kind(error: BaseException) -> str | None:
    """`device`, `host`, or None when memory is not what failed."""
    message = str(error)
    if _says(message, _DEVICE_OOM):
        return "device"
    if _says(message, _HOST_OOM) or isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return "host"
    if type(error).__name__ in _OOM_TYPES:
        return "device"
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _says(message: str, phrases: tuple[str, ...]) -> bool:
    return any(phrase in message for phrase in phrases)


def _type_name(error: BaseException) -> str:
    module = type(error).__module__
    return type(error).__qualname__ if module == "builtins" else f"{module}.{type(error).__qualname__}"


def _message(error: BaseException) -> str:
    return str(error)[:MAX_MESSAGE] or type(error).__name__


def _bytes(pattern: re.Pattern[str], message: str) -> int | None:
    match = pattern.search(message)
    return round(float(match[1]) * _UNITS[match[2]]) if match else None
