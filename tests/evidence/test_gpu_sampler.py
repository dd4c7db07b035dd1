"""The configurations that are measured: enough of them, of every kind, and decided by the seed alone."""

import sys
from itertools import islice
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
from autofit.config.legality import refusal
from autofit.config.model import resolve_model
from autofit.config.trial import TrialSpec
from benchmarks.gpu.sampler import FAMILIES, candidates
from benchmarks.gpu.workload import cut, workload


def drawn(device: str, seed: int = 0) -> list[TrialSpec]:
    load = workload(device)
    return [spec for name in FAMILIES for spec in islice(candidates(name, load, seed), load.draws * load.counts[name])]


def test_at_least_forty_configurations_of_every_kind_the_issue_names() -> None:
    specs = drawn("cuda")
    assert sum(workload("cuda").counts.values()) >= 40
    assert {spec.zero_stage for spec in specs} == {0, 1, 2, 3}
    assert {"flash_attention_2", "sdpa"} <= {spec.attention for spec in specs}
    assert {spec.pure_bf16 for spec in specs if spec.method == "full"} == {True, False}
    assert {spec.method for spec in specs} == {"full", "lora"}
    lora = [spec for spec in specs if spec.model.preset == "qwen2.5-vl-7b"]
    for knob in ("micro_batch_size", "cutoff_len", "gradient_checkpointing", "freeze_vision_tower"):
        assert len({getattr(spec, knob) for spec in lora}) > 1, knob
    assert len({spec.images.max_pixels for spec in lora}) > 1
    assert {resolve_model(spec.model).config["model_type"] for spec in specs} == {"qwen2_5_vl", "qwen2", "llama"}


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_every_configuration_is_legal_and_different(device: str) -> None:
    specs = drawn(device)
    assert all(refusal(spec, resolve_model(spec.model)) is None for spec in specs)
    keys = [spec.config_key() for spec in islice(candidates("vision_lora", workload(device), 0), 12)]
    assert len(set(keys)) == len(keys)


def test_the_seed_decides_and_nothing_else() -> None:
    assert drawn("cuda", 3) == drawn("cuda", 3) != drawn("cuda", 4)


def test_a_cut_model_is_shallow_and_otherwise_the_same() -> None:
    deep = resolve_model(cut("qwen2.5-vl-7b", 28, 32)).config
    shallow = resolve_model(cut("qwen2.5-vl-7b", 4, 8)).config
    assert shallow["text_config"] == deep["text_config"] | {"num_hidden_layers": 4}
    assert shallow["vision_config"] == deep["vision_config"] | {"depth": 8, "fullatt_block_indexes": [7]}
