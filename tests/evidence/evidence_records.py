"""Records as a GPU would leave them; every figure is made up."""

from typing import Any

GIB = 2**30
STAMP: dict[str, Any] = {
    "device": "cuda",
    "device_name": "NVIDIA H100 80GB HBM3",
    "memory_bytes": 80 * GIB,
    "driver": "1.0",
    "versions": {"torch": "2.11.0", "transformers": "5.17.0"},
    "commit": "a" * 40,
}


def configuration(number: int, error: float, family: str = "vision_lora", **measured: Any) -> dict[str, Any]:
    """A configuration whose memory was predicted `error` too high (a share), its time at twice the rates."""
    seen = (20 + number) * GIB
    operations = {"flops": [1e14 * (1 + number)], "bytes": [1e9], "count": [1.0], "matrix": None}
    nothing = {"flops": [0.0], "bytes": [1e6], "count": [1.0], "matrix": None}
    said = round(seen * (1 + error))
    return {
        "part": "accuracy",
        "key": f"key{number}",
        "at": f"2026-01-01T00:00:{number:02d}+00:00",
        **STAMP,
        "family": family,
        "spec": {},
        "predicted": {
            "allocated": said,
            "reserved": round(1.05 * said),
            "device": round(1.05 * said) + GIB // 2,
            "step_seconds": 1e14 * (1 + number) / (989.4e12 * 0.6),
            "phases": {"forward": said - GIB, "backward": said},
            "overhead": GIB // 2,
            "timing": {"micro_step": operations, "optimizer": nothing, "job": {"micro_steps": 1, "ranks": 1}},
            "error": None,
        },
        "measured": {
            "outcome": "COMPLETED",
            "message": None,
            "allocated": seen,
            "reserved": round(1.05 * seen),
            "device": round(1.05 * seen) + GIB // 2,
            "outside": GIB // 2,
            "step_seconds": 1e14 * (1 + number) / (989.4e12 * 0.3),
            "phase_allocated": {"forward": seen - GIB, "backward": seen},
            "retries": 0,
            **measured,
        },
    }
