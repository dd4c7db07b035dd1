"""An exception's type and message decide the outcome."""

import errno

import pytest

from autofit.worker.outcomes import DataError, Failure, Terminated, acquit, classify, is_consequence

CUDA_MESSAGE = (
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.15 GiB of which 3.00 MiB is free."
    " Of the allocated memory 70.10 GiB is allocated by PyTorch, and 1.20 GiB is reserved by PyTorch but unallocated."
)


class OutOfMemoryError(RuntimeError):
    """By its name as torch's."""


@pytest.mark.parametrize(
    ("error", "device", "outcome"),
    [
        (OutOfMemoryError("whatever it says"), "cuda", "OOM"),
        (RuntimeError("CUDA error: out of memory"), "cuda", "OOM"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"), "cuda", "OOM"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 5 bytes."), "cpu", "OOM"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 5 bytes."), "cpu", "OOM"),
        (RuntimeError("can't start new thread"), "cpu", "OOM"),
        (MemoryError(), "cpu", "OOM"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "cpu", "OOM"),
        (MemoryError(), "cuda", "HOST_OOM"),
        (DataError("too long"), "cuda", "DATA_ERROR"),
        (ValueError("Image features and image tokens do not match: tokens: 1, features 2"), "cpu", "DATA_ERROR"),
        (RuntimeError("shape mismatch"), "cpu", "CRASHED"),
        (OSError(errno.ENOENT, "No such file"), "cpu", "CRASHED"),
        (Terminated(), "cpu", "CRASHED"),
        (SystemExit(3), "cpu", "CRASHED"),
    ],
)
def test_outcome(error: BaseException, device: str, outcome: str) -> None:
    assert classify(error, device).outcome == outcome


def test_bytes_are_read_from_the_message() -> None:
    failure = classify(OutOfMemoryError(CUDA_MESSAGE), "cuda")
    assert failure.requested_bytes == 20 * 2**20
    assert failure.allocated_bytes == round(70.10 * 2**30)


def test_an_oom_behind_another_exception_still_decides() -> None:
    try:
        try:
            raise MemoryError("std::bad_alloc")
        except MemoryError:
            raise RuntimeError("cleaning up failed")  # noqa: B904 - as libraries do
    except RuntimeError as error:
        assert classify(error, "cpu").outcome == "OOM"


def test_termination_and_lost_peers_are_consequences() -> None:
    assert is_consequence(classify(Terminated(), "cpu").message)
    assert is_consequence("[..] Connection closed by peer [127.0.0.1]:30")
    assert not is_consequence("shape mismatch")
    assert not is_consequence(None)


GIB = 2**30


def own_oom(message: str = CUDA_MESSAGE) -> Failure:
    return classify(OutOfMemoryError(message), "cuda")


def test_an_allocation_that_the_budget_would_have_granted_is_no_oom_of_the_configuration() -> None:
    failure = acquit(own_oom(), room_bytes=10 * GIB, unclaimed_bytes=30 * GIB)
    assert (failure.outcome, failure.error_type) == ("CRASHED", "DeviceTaken")
    assert str(30 * GIB) in failure.message and "CUDA out of memory" in failure.message


@pytest.mark.parametrize(
    ("room", "unclaimed"),
    [
        (10 * 2**20, 30 * GIB),  # it asked for more than its budget had left, whoever else is there
        (10 * GIB, 100 * 2**20),  # libraries take as much between two looks
        (None, None),  # not known
    ],
)
def test_any_other_oom_stays_one(room: int | None, unclaimed: int | None) -> None:
    assert acquit(own_oom(), room, unclaimed) == own_oom()


def test_a_message_without_a_size_acquits_only_where_much_was_taken() -> None:
    failure = own_oom("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")
    assert acquit(failure, GIB, GIB) == failure
    assert acquit(failure, GIB, 3 * GIB).outcome == "CRASHED"


def test_a_crash_stays_a_crash() -> None:
    crash = classify(RuntimeError("shape mismatch"), "cuda")
    assert acquit(crash, 10 * GIB, 30 * GIB) == crash
