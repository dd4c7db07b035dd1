"""The model that is built, trained and predicted here is the one that LLaMA-Factory prepares: its parameters and its peak."""

import copy
import json
import os
import subprocess
from collections import Counter
from pathlib import Path

import families
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from autofit.worker.models import build  # noqa: E402

pytestmark = pytest.mark.llamafactory

ROOT = Path(__file__).parents[2]
CASES = {
    "lora_pure_bf16": ("llama", "bfloat16", {"method": "lora", "pure_bf16": True}),
    "lora_stored_in_fp32": ("llama", "float32", {"method": "lora"}),
    "full": ("qwen2_5_vl", "bfloat16", {"freeze_vision_tower": True}),
    "freeze_and_projector": ("qwen2_5_vl", "bfloat16", {"method": "freeze", "freeze_vision_tower": True}),
}


def order(case: str) -> dict:
    family, stored, knobs = CASES[case]
    spec = copy.deepcopy(families.order(family, **knobs))
    config = spec["model"]["config"] | {"dtype": stored}
    config |= (
        {"vocab_size": 1024} if "text_config" not in config else {"text_config": config["text_config"] | {"vocab_size": 1024}}
    )
    ids = {"image_token_id": 1022, "video_token_id": 1023, "vision_start_token_id": 1019, "vision_end_token_id": 1020}
    return {**spec, "model": {"config": config | ids}, "trace": {"target": "cpu", "lookahead": 1}}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """`benchmarks/llamafactory_bytes.py` over the cases, in one process."""
    python = Path(os.environ.get("AUTOFIT_LLAMAFACTORY_PYTHON") or ROOT / ".venv-llamafactory" / "bin" / "python")
    if not python.exists():
        if os.environ.get("CI"):
            pytest.fail(f"no LLaMA-Factory environment at {python}")
        pytest.skip("no LLaMA-Factory environment; `make llamafactory-env` builds it")
    folder = tmp_path_factory.mktemp("prepared")
    orders, out = folder / "orders.json", folder / "out.json"
    orders.write_text(json.dumps([order(case) for case in CASES]))
    script = ROOT / "benchmarks" / "llamafactory_bytes.py"
    done = subprocess.run([python, script, orders, out], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(CASES, json.loads(out.read_text()), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_the_same_parameters_in_the_same_types_are_trained(prepared, case):
    spec, counts = order(case), Counter()
    for parameter in build(spec["model"], spec["trial"], 0, "meta").parameters():
        kind = "trained" if parameter.requires_grad else "frozen"
        counts[f"{str(parameter.dtype).removeprefix('torch.')} {kind}"] += parameter.numel()
    assert dict(counts) == prepared[case]["prepared"]


@pytest.mark.parametrize("case", CASES)
def test_the_peak_is_what_its_trainer_allocates(prepared, case):
    """Models this small leave the profiler's stray kilobytes as per mille; `benchmarks/cpu_accuracy.py` has the figures."""
    assert prepared[case]["predicted"] == pytest.approx(prepared[case]["measured"], rel=0.02)
