"""The machine's devices, seen without torch: NVML for GPUs, the operating system for processor and memory.

Device leases keep two autofit processes off one device. A lease is an operating-system file lock, so the kernel drops it
when its holder dies, however it dies.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

import psutil
import pynvml
from filelock import FileLock, Timeout

from autofit.config.hardware import Device, Hardware
from autofit.errors import LaunchError, UsageError


def cuda_devices() -> list[Device]:
    """The NVIDIA GPUs this process may use (`CUDA_VISIBLE_DEVICES` obeyed); empty without a driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            found.append(
                Device(
                    index=index,
                    uuid=pynvml.nvmlDeviceGetUUID(handle),
                    name=pynvml.nvmlDeviceGetName(handle),
                    memory_bytes=pynvml.nvmlDeviceGetMemoryInfo(handle).total,
                )
            )
        return _visible(found, os.environ.get("CUDA_VISIBLE_DEVICES"))
    finally:
        pynvml.nvmlShutdown()


def detect(device: Literal["cuda", "cpu"], num_devices: int | None) -> Hardware:
    """The hardware that a study will use: `num_devices` of what is there, or all of it (one rank for a CPU).

    Raises:
        UsageError: fewer GPUs are visible than asked for.
    """
    host = psutil.virtual_memory().total
    cores = os.cpu_count() or 1
    if device == "cpu":
        one = Device(index=0, uuid="cpu", name=_cpu_name(), memory_bytes=host)
        ranks = num_devices or 1
        return Hardware(device="cpu", devices=(one,) * ranks, cpu_count=cores, host_memory_bytes=host)
    gpus = cuda_devices()
    wanted = num_devices or len(gpus)
    if wanted > len(gpus) or not gpus:
        raise UsageError(f"{wanted or 1} GPU(s) wanted, {len(gpus)} visible; see `autofit doctor`")
    return Hardware(
        device="cuda",
        devices=tuple(gpus[:wanted]),
        cpu_count=cores,
        host_memory_bytes=host,
        driver_version=_driver_version(),
    )


def planned(device: Device, count: int) -> Hardware:
    """`count` devices like `device` that are not here: what is planned for, on this host's figures."""
    host = psutil.virtual_memory().total
    return Hardware(device="none", devices=(device,) * count, cpu_count=os.cpu_count() or 1, host_memory_bytes=host)


def used_bytes(device: Device) -> int:
    """Memory in use on a GPU, by anyone."""
    pynvml.nvmlInit()
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(device.uuid)
        return int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)
    finally:
        pynvml.nvmlShutdown()


def pids_on(device: Device) -> list[int]:
    """Processes that compute on a GPU; empty where the driver does not tell (some containers)."""
    pynvml.nvmlInit()
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(device.uuid)
        return [int(process.pid) for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)]
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()


@contextmanager
def lease(hardware: Hardware, holder: str) -> Iterator[None]:
    """Holds every device of `hardware` for the length of the block.

    Raises:
        LaunchError: another autofit process holds one of them; says which process and what it does.
    """
    folder = Path(os.environ.get("AUTOFIT_LEASE_DIR") or Path(tempfile.gettempdir()) / "autofit-leases")
    folder.mkdir(mode=0o1777, parents=True, exist_ok=True)
    with ExitStack() as stack:
        for uuid in sorted({device.uuid for device in hardware.devices}):
            lock = FileLock(folder / f"{uuid}.lock", timeout=0, mode=0o666)
            note = folder / f"{uuid}.holder"
            try:
                stack.enter_context(lock)
            except Timeout:
                who = note.read_text(encoding="utf-8").strip() if note.exists() else "another autofit process"
                raise LaunchError(f"device {uuid} is taken by {who}; wait for it, or choose other devices") from None
            note.write_text(f"process {os.getpid()} ({holder})\n", encoding="utf-8")
        yield


def _visible(devices: list[Device], visible: str | None) -> list[Device]:
    """The devices that a `CUDA_VISIBLE_DEVICES` value leaves, in its order; CUDA stops at the first name it does not know."""
    if visible is None:
        return devices
    chosen: list[Device] = []
    for name in (part.strip() for part in visible.split(",")):
        match = [device for device in devices if name and (str(device.index) == name or device.uuid.startswith(name))]
        if len(match) != 1:
            break
        chosen.append(match[0])
    return chosen


def _driver_version() -> str:
    pynvml.nvmlInit()
    try:
        return str(pynvml.nvmlSystemGetDriverVersion())
    finally:
        pynvml.nvmlShutdown()


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "cpu"
