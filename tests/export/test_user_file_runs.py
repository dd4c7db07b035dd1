"""LLaMA-Factory's own parser on the users' files: our defaults are its defaults, and it reads what the export changed."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from export_cases import completed
from llamafactory_files import NAMES, lay_out
from test_llamafactory_runs import environment, python  # noqa: F401 - the fixture

from autofit.config.launcher_keys import DEFAULTS, INERT
from autofit.config.record import TrialRecord
from autofit.config.trial import TrialSpec
from autofit.export import export
from autofit.tuning.plan import SearchRequest, plan_study

pytestmark = pytest.mark.llamafactory


@pytest.fixture(scope="module")
def judged(python: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, TrialSpec]]:  # noqa: F811
    """Every example's file as an export with another micro-batch and checkpointing, and its spec; parsed in one process."""
    with pytest.MonkeyPatch.context() as patch:
        here = lay_out(tmp_path_factory.mktemp("parsed") / "here")
        patch.chdir(here)
        (here / "parse").mkdir()
        specs: dict[str, TrialSpec] = {}
        for name in NAMES:
            # ALLOW_EXTRA_ARGS below: text_lora_ray holds keys of LLaMA-Factory's ray path, unknown without ray
            request = SearchRequest(gpu_mem_bytes=2**29, device="cpu", python=str(python), from_file=f"{name}.yaml", study="s")
            plan = plan_study(request)
            spec = specs[name] = plan.legal.points[-1]
            trial = TrialRecord(
                study="s", trial_number=0, spec=spec, reason="t", run_dir="r", started_at=plan.study.created_at,
                finished_at=plan.study.created_at, result=completed(),
            )  # fmt: skip
            export(plan.study, trial, None, "llamafactory", here / "out")
            (here / "out" / "train.yaml").rename(here / "parse" / f"{name}.yaml")
        (here / "parse" / "nothing.yaml").write_text(
            "model_name_or_path: m\ndataset: d\ntemplate: qwen\noutput_dir: o\ndo_train: true\n"
        )
        script, out = Path(__file__).with_name("llamafactory_parse.py"), here / "out.json"
        done = subprocess.run(
            [python, script, here / "parse", out], env={**environment(python), "ALLOW_EXTRA_ARGS": "1"}, cwd=here,
            capture_output=True, text=True, timeout=400, check=False,
        )  # fmt: skip
        assert out.exists(), done.stderr[-3000:]
        return json.loads(out.read_text())["files"], specs


def plain(key: str, value: Any) -> Any:
    if key in {"optim", "flash_attn"}:
        return str(value).split(".")[-1].lower()
    return ",".join(value) if key == "lora_target" and isinstance(value, list) else value


def test_our_defaults_are_its_defaults(judged: tuple[dict[str, Any], dict[str, TrialSpec]]) -> None:
    values = judged[0]["nothing.yaml"]["values"]
    assert {key: plain(key, values[key]) for key in DEFAULTS} == DEFAULTS
    absent = {key for key in INERT if key not in values}
    assert absent <= {"use_kt", "fsdp_config"}, "keys that it does not know would guard nothing"
    filled = {"fsdp_config", "freeze_trainable_modules"}  # by its parser, after reading: a dict of nothing, a list
    loud = {key: values[key] for key in INERT if key not in filled and values.get(key) and values[key] not in INERT[key]}
    assert loud == {}, "a file that says nothing must not be refused"


@pytest.mark.parametrize("name", NAMES)
def test_it_reads_what_the_trial_ran(judged: tuple[dict[str, Any], dict[str, TrialSpec]], name: str) -> None:
    found, spec = judged[0][f"{name}.yaml"], judged[1][name]
    assert "error" not in found, found
    values = found["values"]
    assert values["per_device_train_batch_size"] == spec.micro_batch_size
    assert values["gradient_accumulation_steps"] == spec.gradient_accumulation_steps
    assert values["disable_gradient_checkpointing"] is not spec.gradient_checkpointing
    assert values["cutoff_len"] == spec.cutoff_len
    assert values["finetuning_type"] == spec.method
    file = f"deepspeed/z{spec.zero_stage}{'_offload' if spec.offload_optimizer else ''}.json"
    deepspeed = values["deepspeed"]
    assert deepspeed == file or ((deepspeed or {}).get("zero_optimization") or {}).get("stage", 0) == spec.zero_stage
