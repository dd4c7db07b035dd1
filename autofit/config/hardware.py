"""The machine that the trials run on, as far as the driver can see it without torch."""

from typing import Literal

from pydantic import PositiveInt

from autofit.config.base import Frozen


class Device(Frozen):
    """One GPU, or the machine's processor and memory as one device."""

    index: int
    uuid: str
    """Stable name; device leases are taken on it."""
    name: str
    memory_bytes: PositiveInt
    """What the driver reports; a framework can use a little less."""


class Hardware(Frozen):
    """Where a study's trials run."""

    device: Literal["cuda", "cpu", "none"]
    """`none`: nothing is run, and `devices` are those that are planned for."""
    devices: tuple[Device, ...]
    cpu_count: PositiveInt
    host_memory_bytes: PositiveInt
    driver_version: str | None = None
