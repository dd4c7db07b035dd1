"""Sizes and durations."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autofit.errors import UsageError
from autofit.units import format_bytes, format_seconds, parse_bytes, parse_seconds


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("80GB", 80 * 1024**3),
        ("80 gib", 80 * 1024**3),
        ("24G", 24 * 1024**3),
        ("1.5GB", 1610612736),
        ("512MB", 2**29),
        ("77", 77),
    ],
)
def test_sizes(text: str, value: int) -> None:
    assert parse_bytes(text) == value


@pytest.mark.parametrize("text", ["", "GB", "-3GB", "0GB", "80XB", "80GB/s", "nan", "1e3GB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="memory size"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "value"), [("90", 90.0), ("90s", 90.0), ("30m", 1800.0), ("1h30m", 5400.0), ("1H 5 s", 3605.0)]
)
def test_durations(text: str, value: float) -> None:
    assert parse_seconds(text) == value


@pytest.mark.parametrize("text", ["", "m", "0s", "-1m", "3d", "inf", "nan", "10m later"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError, match="duration"):
        parse_seconds(text)


@given(st.integers(min_value=1, max_value=2**50))
def test_whole_bytes_survive(value: int) -> None:
    assert parse_bytes(str(value)) == value


def test_print() -> None:
    assert [format_bytes(value) for value in (None, 2**29, 2**31)] == ["-", "512.0 MiB", "2.00 GiB"]
    assert [format_seconds(value) for value in (None, 0.25, 12.34, 200, 3720)] == ["-", "250 ms", "12.3 s", "3m 20s", "1h 02m"]
