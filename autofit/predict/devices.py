"""The devices that a prediction can be asked for, with what their makers publish.

Peaks are dense (without sparsity) with fp32 accumulation, the mode in which PyTorch trains. Where a datasheet prints only the
figure with sparsity, half of it is taken, and the source says so. `memory_bytes` is what the driver reports to a framework
(`cudaDeviceProp.totalGlobalMem`, the "total capacity" of PyTorch's out-of-memory messages): less than the label where ECC,
firmware or reserved pages take a share. It differs between drivers by up to 1 % and is a default: where a device is present,
its own figure is used.
"""

from dataclasses import dataclass
from typing import Literal

from autofit.config.hardware import Hardware
from autofit.errors import UsageError

_GB, _MIB = 10**9, 2**20


@dataclass(frozen=True)
class DeviceModel:
    """One kind of accelerator. Rates per second; a figure that its maker does not publish is None."""

    name: str
    memory_bytes: int
    half_flops: float
    """Dense FP16 tensor peak, and BF16 where the device has it."""
    bf16: bool
    """Whether the tensor cores know BF16."""
    fp32_flops: float
    """Dense FP32 peak outside the tensor cores."""
    memory_bandwidth: float
    """Bytes per second of the device's own memory."""
    link_bandwidth: float
    """Bytes per second that one device can send to its peers while it receives as much: half of the bidirectional figure."""
    source: str
    host_bandwidth: float = 32 * _GB
    """Bytes per second to or from host memory, one way: PCIe 4.0 x16 unless the row says otherwise (3.0: 16, 5.0: 64 GB/s)."""
    kind: Literal["cuda", "cpu"] = "cuda"
    """Whose kernels and allocator it has."""


def _row(
    name: str, figures: tuple[float, float, float, float, float], source: str, *, bf16: bool = True, host: float = 32
) -> DeviceModel:
    """A row in the units of the datasheets: MiB, TFLOPS in half precision and fp32, GB/s of memory, link and host (one way)."""
    mib, half, fp32, memory, link = figures
    return DeviceModel(name, int(mib) * _MIB, half * 1e12, bf16, fp32 * 1e12, memory * _GB, link * _GB, source, host * _GB)


_V100 = "NVIDIA V100 datasheet (Jan 2020): SXM2 125 TFLOPS tensor, 15.7 FP32, 900 GB/s, NVLink 300 GB/s both ways, PCIe 3.0 x16"
_A100 = "NVIDIA A100 datasheet (Jun 2021): SXM4 312 TFLOPS BF16 dense, 19.5 FP32, NVLink 600 GB/s both ways, PCIe 4.0 x16"

_PCIE = "; PCIe 4.0 x16, 64 GB/s both ways"
_ROWS = (
    _row("v100-16gb", (16_150, 125, 15.7, 900, 150), _V100, bf16=False, host=16),
    _row("v100-32gb", (32_502, 125, 15.7, 900, 150), _V100, bf16=False, host=16),
    _row("a10", (22_731, 125, 31.2, 600, 32), "NVIDIA A10 datasheet: 125 TFLOPS BF16 dense, 31.2 FP32, 600 GB/s" + _PCIE),
    _row(
        "l4",
        (22_563, 121, 30.3, 300, 32),
        "NVIDIA L4 datasheet: 242 TFLOPS BF16 with sparsity (half dense), 30.3 FP32, 300 GB/s" + _PCIE,
    ),
    _row(
        "l40s", (45_458, 362.05, 91.6, 864, 32), "NVIDIA L40S datasheet: 362.05 TFLOPS BF16 dense, 91.6 FP32, 864 GB/s" + _PCIE
    ),
    _row(
        "rtx-3090",
        (24_248, 71, 35.6, 936, 32),
        "NVIDIA Ampere GA102 whitepaper: 71 TFLOPS BF16 with FP32 accumulation, 35.6 FP32, 936 GB/s" + _PCIE,
    ),
    _row(
        "rtx-4090",
        (24_207, 165.2, 82.6, 1008, 32),
        "NVIDIA Ada architecture whitepaper: 165.2 TFLOPS BF16 with FP32 accumulation, 82.6 FP32, 1008 GB/s" + _PCIE,
    ),
    _row("a100-40gb", (40_339, 312, 19.5, 1555, 300), _A100 + ", 1555 GB/s"),
    _row("a100-80gb", (81_050, 312, 19.5, 2039, 300), _A100 + ", 2039 GB/s"),
    _row(
        "h100-80gb",
        (81_008, 989.4, 66.9, 3352, 450),
        "NVIDIA H100 architecture whitepaper: SXM5 989.4 TFLOPS BF16 dense, 66.9 FP32, 3352 GB/s, NVLink 900 GB/s both ways,"
        " PCIe 5.0 x16",
        host=64,
    ),
    _row(
        "h200",
        (143_156, 989.5, 67, 4800, 450),
        "NVIDIA H200 datasheet: SXM 1979 TFLOPS BF16 with sparsity (half dense), 67 FP32, 4.8 TB/s, NVLink 900 GB/s both ways,"
        " PCIe 5.0 x16",
        host=64,
    ),
    _row(
        "mi300x",
        (196_592, 1307.4, 163.4, 5325, 448),
        "AMD Instinct MI300X data sheet: 1307.4 TFLOPS BF16 dense, 163.4 FP32, 5.325 TB/s, 7 links of 128 GB/s both ways,"
        " PCIe 5.0 x16",
        host=64,
    ),
)

DEVICES = {row.name: row for row in _ROWS}

CPU = DeviceModel(
    name="cpu",
    memory_bytes=2**63 - 1,
    half_flops=20e9,
    bf16=True,
    fp32_flops=140e9,
    memory_bandwidth=7 * _GB,
    link_bandwidth=0.25 * _GB,
    source="from no maker: about what trials of tiny models reached on an EPYC with AVX2, one thread a rank, gloo between two:"
    " those of `make demo`, and 395 slower ones (benchmarks/replay/tables), whose malloc keeps no free memory",
    kind="cpu",
)
"""A rank of one thread, on which small models really train (`--device cpu`). It has no caching allocator and no context."""

# What drivers call them: every word must occur in the name; the first row that matches counts, so the narrow ones come first.
_DRIVER_NAMES = (
    ("h200", ("h200",)),
    ("h100-80gb", ("h100",)),
    ("a100-80gb", ("a100", "80gb")),
    ("a100-40gb", ("a100",)),
    ("v100-32gb", ("v100", "32gb")),
    ("v100-16gb", ("v100",)),
    ("l40s", ("l40s",)),
    ("l4", ("l4",)),
    ("a10", ("a10",)),
    ("rtx-4090", ("4090",)),
    ("rtx-3090", ("3090",)),
    ("mi300x", ("mi300x",)),
)


def device_model(name: str) -> DeviceModel:
    """The row of that name; `cpu` is one too.

    Raises:
        UsageError: no such row.
    """
    if name == CPU.name:
        return CPU
    if name not in DEVICES:
        raise UsageError(f"no device model '{name}'; known: {', '.join(DEVICES)}")
    return DEVICES[name]


def recognise(driver_name: str) -> DeviceModel | None:
    """The row that a driver's device name (`NVIDIA A100-SXM4-80GB`) stands for, or None: its rates are then unknown."""
    words = set(driver_name.lower().replace("-", " ").replace("_", " ").split())
    for name, wanted in _DRIVER_NAMES:
        if words.issuperset(wanted):
            return DEVICES[name]
    return None


def of_hardware(hardware: Hardware) -> DeviceModel | None:
    """The row of a study's devices, planned ones included; None: a card whose rates are unknown."""
    if hardware.device == "cpu":
        return CPU
    name = hardware.devices[0].name
    return recognise(name) if hardware.device == "cuda" else device_model(name)


def for_memory(gpu_mem_bytes: int) -> DeviceModel:
    """The row to assume for a budget when no device was named: the fastest training card whose label is at least the budget.

    It is an assumption to be printed with every time that rests on it. Labels are GB read as 1024^3, as `--gpu-mem` reads them.
    """
    labels = (("rtx-4090", 24), ("l40s", 48), ("h100-80gb", 80), ("h200", 141), ("mi300x", 192))
    for name, label in labels:
        if gpu_mem_bytes <= label * 2**30:
            return DEVICES[name]
    return DEVICES["mi300x"]
