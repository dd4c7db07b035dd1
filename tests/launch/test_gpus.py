"""Leases, visible devices and the worker's environment."""

import os
import signal
import subprocess
import sys
import time

import pytest

from autofit.config.hardware import Device, Hardware
from autofit.config.model import ModelRef
from autofit.config.trial import TrialSpec
from autofit.errors import LaunchError, UsageError
from autofit.launch import environment, gpus

HOLD = """
import sys, time
from autofit.config.hardware import Hardware
from autofit.launch import gpus
with gpus.lease(Hardware.model_validate_json(sys.argv[1]), "study other"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_two_processes_never_share_a_device_and_a_dead_one_lets_go(cpu: Hardware) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, cpu.model_dump_json()], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        try:
            with pytest.raises(LaunchError, match=rf"process {holder.pid} \(study other\)"), gpus.lease(cpu, "mine"):
                pass
        finally:
            holder.send_signal(signal.SIGKILL)
    with gpus.lease(cpu, "mine"):
        pass


def test_cuda_visible_devices_chooses_and_orders() -> None:
    devices = [Device(index=i, uuid=f"GPU-{c * 4}", name="x", memory_bytes=1) for i, c in enumerate("abc")]
    assert gpus._visible(devices, None) == devices
    assert [device.index for device in gpus._visible(devices, "2,0")] == [2, 0]
    assert [device.index for device in gpus._visible(devices, "GPU-bb")] == [1]
    assert gpus._visible(devices, "") == []
    assert [device.index for device in gpus._visible(devices, "1,9,0")] == [1]


def test_more_gpus_than_there_are_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "cuda_devices", list)
    with pytest.raises(UsageError, match=r"2 GPU\(s\) wanted, 0 visible"):
        gpus.detect("cuda", 2)


def test_the_allocator_is_that_of_the_real_launch() -> None:
    """LLaMA-Factory sets expandable segments on its torchrun path only."""
    trial = TrialSpec(model=ModelRef(preset="tiny-llama"))
    alone = environment.worker_variables("/x/bin/python", trial, "cuda", ["GPU-a"], {"PYTHONPATH": "/driver", "PATH": "/bin"})
    assert "PYTORCH_CUDA_ALLOC_CONF" not in alone
    assert alone["CUDA_VISIBLE_DEVICES"] == "GPU-a"
    assert "PYTHONPATH" not in alone
    assert alone["PATH"] == f"/x/bin{os.pathsep}/bin"
    several = environment.worker_variables("/x/bin/python", trial.model_copy(update={"num_gpus": 2}), "cuda", ["a", "b"], {})
    assert several["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    assert several["CUDA_VISIBLE_DEVICES"] == "a,b"


def test_probe_refuses_what_is_no_interpreter() -> None:
    started = time.monotonic()
    for python in ("/no/such/python", "/bin/true"):
        with pytest.raises(LaunchError, match=python):
            environment.probe(python)
    assert time.monotonic() - started < environment.PROBE_SECONDS
