"""The CPU's meter against memory whose size is known, in processes of their own."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from autofit.worker.supervisor import CPU_MALLOC

MIB = 2**20
PROLOGUE = """
import json, sys
from autofit.worker.meter import Meter
from autofit.worker.meter_cpu import CpuBackend
from autofit.worker.report import RankReport
meter = Meter(CpuBackend())
report = RankReport(rank=0)
def take(mib): return bytearray(b"x") * (mib * 2**20)
"""


def measure(body: str) -> dict[str, Any]:
    code = PROLOGUE + body + "\nprint(json.dumps(report.__dict__))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **CPU_MALLOC}, check=True)
    read: dict[str, Any] = json.loads(done.stdout)
    return read


def test_peaks_belong_to_their_phase_and_step() -> None:
    report = measure(
        "before = take(64)\n"
        "meter.start(None)\n"
        "kept = take(16)\n"
        "meter.step_begins(); meter.enter('forward'); big = take(96); del big\n"
        "meter.enter('backward'); small = take(8); del small\n"
        "meter.step_ends()\n"
        "meter.enter('forward'); small = take(32); del small\n"
        "meter.step_ends(); meter.finish(report)\n"
    )
    assert report["phase_peak_bytes"]["load"] == pytest.approx(16 * MIB, abs=3 * MIB)
    assert report["phase_peak_bytes"]["forward"] == pytest.approx((16 + 96) * MIB, abs=3 * MIB)
    assert report["phase_peak_bytes"]["backward"] == pytest.approx((16 + 8) * MIB, abs=3 * MIB)
    assert report["step_peak_bytes"] == [
        pytest.approx((16 + 96) * MIB, abs=3 * MIB),
        pytest.approx((16 + 32) * MIB, abs=3 * MIB),
    ]
    assert report["peak_device_bytes"] == report["phase_peak_bytes"]["forward"]
    assert len(report["step_seconds"]) == 2
    assert report["peak_allocated_bytes"] is None
    assert report["memory_limit"] is None


def test_the_budget_is_real_and_is_lifted_for_the_report() -> None:
    report = measure(
        "meter.start(100 * 2**20)\n"
        "kept = take(80)\n"
        "meter.enter('forward')\n"
        "try: take(30); report.message = 'fitted'\n"
        "except MemoryError: report.message = 'refused'\n"
        "meter.finish(report); take(200)\n"
    )
    assert report["message"] == "refused"
    assert report["memory_limit"] == "RLIMIT_DATA"
    assert report["peak_device_bytes"] == pytest.approx(80 * MIB, abs=3 * MIB)


def test_what_fits_the_budget_is_not_refused() -> None:
    report = measure(
        "before = take(64)\nmeter.start(120 * 2**20)\nkept = take(110)\nmeter.enter('forward')\nmeter.finish(report)\n"
    )
    assert report["peak_device_bytes"] == pytest.approx(110 * MIB, abs=3 * MIB)


def test_a_failure_before_the_baseline_leaves_no_figures() -> None:
    report = measure("meter.finish(report)\n")
    assert report["peak_device_bytes"] is None
    assert report["phase_peak_bytes"] == {}
