"""Sizes and durations, read from what people write and printed for people. Stored values are bytes and seconds."""

import re

from autofit.errors import UsageError

GIB = 1024**3

_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?b)?\s*$", re.IGNORECASE)
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(h|m|s)", re.IGNORECASE)
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0}


def parse_bytes(text: str) -> int:
    """Bytes of `80GB`, `80GiB`, `80G`, `512MB` or a plain number of bytes.

    GB is read as the label on a graphics card, 1024^3 bytes, as is GiB.

    Raises:
        UsageError: `text` is not a positive size.
    """
    match = _SIZE.match(text)
    value = int(float(match[1]) * 1024 ** _POWER[match[2].lower()]) if match else 0
    if value <= 0:
        raise UsageError(f"{text!r} is not a memory size; write for example 80GB, 24GiB or 512MB")
    return value


def parse_seconds(text: str) -> float:
    """Seconds of `90`, `90s`, `30m`, `1h30m`.

    Raises:
        UsageError: `text` is not a positive duration.
    """
    compact = text.strip().replace(" ", "")
    try:
        value = float(compact)
    except ValueError:
        parts = _DURATION.findall(compact)
        whole = "".join(number + unit for number, unit in parts)
        value = sum(float(number) * _SECONDS[unit.lower()] for number, unit in parts) if whole == compact else 0.0
    if not 0 < value < float("inf"):
        raise UsageError(f"{text!r} is not a duration; write for example 90s, 30m or 1h30m")
    return value


def format_bytes(value: float | None) -> str:
    """`71.32 GiB`, `512.0 MiB`, or `-` for no value."""
    if value is None:
        return "-"
    if abs(value) >= GIB:
        return f"{value / GIB:.2f} GiB"
    return f"{value / 1024**2:.1f} MiB"


def format_seconds(value: float | None) -> str:
    """`1h 02m`, `3m 20s`, `12.3 s`, or `-` for no value."""
    if value is None:
        return "-"
    if value < 60:
        return f"{value:.1f} s" if value >= 1 else f"{value * 1000:.0f} ms"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02d}m" if hours else f"{minutes}m {seconds:02d}s"
