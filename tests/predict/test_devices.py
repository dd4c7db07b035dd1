"""The table of devices: complete, plausible, and recognisable by the names that drivers give."""

import pytest
from store_records import study_record, trial_record

from autofit.config.hardware import Device, Hardware
from autofit.errors import UsageError
from autofit.predict.devices import CPU, DEVICES, device_model, for_memory, of_hardware, recognise
from autofit.tuning.forecast import question_of

WANTED = [
    "v100-16gb",
    "v100-32gb",
    "a10",
    "l4",
    "l40s",
    "rtx-3090",
    "rtx-4090",
    "a100-40gb",
    "a100-80gb",
    "h100-80gb",
    "h200",
    "mi300x",
]


def test_every_promised_device_is_there_with_a_source():
    assert list(DEVICES) == WANTED
    for row in DEVICES.values():
        assert len(row.source) > 30
        assert 10e12 < row.half_flops < 3e15
        assert row.fp32_flops < row.half_flops
        assert row.link_bandwidth < row.memory_bandwidth
        # a memory-bound and a compute-bound operation exist on each: 50 to 700 FLOP a byte
        assert 50 < row.half_flops / row.memory_bandwidth < 700


def test_memory_is_below_the_label():
    for name, label in {"v100-16gb": 16, "a10": 24, "rtx-4090": 24, "a100-80gb": 80, "h100-80gb": 80}.items():
        assert 0.9 * label * 2**30 < DEVICES[name].memory_bytes < label * 2**30


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A100-PCIE-40GB", "a100-40gb"),
        ("Tesla V100-SXM2-32GB", "v100-32gb"),
        ("NVIDIA H100 80GB HBM3", "h100-80gb"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("AMD Instinct MI300X", "mi300x"),
    ],
)
def test_driver_names_are_recognised(driver, name):
    found = recognise(driver)
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize("driver", ["NVIDIA L40", "NVIDIA A100X-like thing", "NVIDIA GB200", ""])
def test_an_unknown_device_is_unknown(driver):
    assert recognise(driver) is None


def test_unknown_row():
    with pytest.raises(UsageError, match="no device model 'b300'"):
        device_model("b300")
    assert device_model("h200").bf16


def test_a_budget_stands_for_a_card():
    assert for_memory(24 * 2**30).name == "rtx-4090"
    assert for_memory(80 * 2**30).name == "h100-80gb"
    assert for_memory(10**15).name == "mi300x"


@pytest.mark.parametrize(
    ("device", "name", "row"),
    [("cpu", "AMD EPYC", "cpu"), ("cuda", "NVIDIA L40S", "l40s"), ("none", "l40s", "l40s"), ("cuda", "Made Up 9000", None)],
)
def test_a_study_is_predicted_on_its_own_devices(device, name, row):
    card = Device(index=0, uuid="0", name=name, memory_bytes=2**34)
    found = of_hardware(Hardware(device=device, devices=(card,), cpu_count=2, host_memory_bytes=2**34))
    assert (found.name if found else None) == row


def test_a_trial_of_the_cpu_is_explained_on_the_cpu():
    hardware = Hardware(
        device="cpu", devices=(Device(index=0, uuid="0", name="x", memory_bytes=1),), cpu_count=2, host_memory_bytes=1
    )
    asked = question_of(study_record(hardware=hardware), [trial_record(0)], 0, None)
    assert asked.card is not None and device_model(asked.card) is CPU
