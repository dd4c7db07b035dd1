"""A shallow trace written deep is the deep trace: every event, size, category, operation, moment and parameter."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from autofit.config.model import resolve_model  # noqa: E402
from autofit.config.trial import TrialSpec  # noqa: E402
from autofit.worker import trace_document, trace_memo  # noqa: E402
from autofit.worker.trace import trace  # noqa: E402
from autofit.worker.trace_blocks import reduced_row  # noqa: E402
from autofit.worker.trace_expand import Layout, Names, NotExpandable, Row, require_lifetimes  # noqa: E402

ONE = [{"micro_batch_size": 1, "cutoff_len": 256}]
TWO = [*ONE, {"micro_batch_size": 2, "cutoff_len": 256}]
IMAGES = [
    {"micro_batch_size": 1, "cutoff_len": 256, "grids": [[1, 16, 16]]},
    {"micro_batch_size": 1, "cutoff_len": 512, "grids": [[1, 24, 16]]},
]


@pytest.fixture(autouse=True)
def _no_value_checks(monkeypatch):
    monkeypatch.setenv("TRANSFORMERS_DISABLE_TORCH_CHECK", "1")


def preset(name):
    return json.loads(json.dumps(resolve_model(TrialSpec(model={"preset": name}).model).config))


def text(family, layers=7, **more):
    return {
        "model_type": family,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 128,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "max_position_embeddings": 4096,
        **more,
    }


def qwen2_5_vl():
    config = preset("tiny-qwen2.5-vl")
    config["text_config"]["num_hidden_layers"] = 7
    config["vision_config"] |= {"depth": 8, "fullatt_block_indexes": [2, 5, 7]}
    return config


def few_blocks():
    config = qwen2_5_vl()
    config["text_config"]["num_hidden_layers"] = 2
    config["vision_config"] |= {"depth": 2, "fullatt_block_indexes": [1]}
    return config


def qwen2_vl():
    config = preset("qwen2-vl-7b")
    config |= {"image_token_id": 1020, "video_token_id": 1021, "vision_start_token_id": 1018, "vision_end_token_id": 1019}
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]}
    config["text_config"] |= text("qwen2_vl_text", hidden_size=256, vocab_size=1024, head_dim=32, num_attention_heads=8) | {
        "rope_parameters": rope
    }
    config["vision_config"] |= {"depth": 7, "embed_dim": 128, "hidden_size": 256, "num_heads": 4}
    return config


def order(config, depth, shapes=(), **knobs):
    spec = TrialSpec(model={"config": config}, **{"cutoff_len": 256, **knobs})
    return {
        "trial": spec.model_dump(mode="json"),
        "model": resolve_model(spec.model).model_dump(mode="json"),
        "trace": {"depth": depth, "shapes": list(shapes)},
    }


def plain(group):
    """A group with every reference resolved: storages numbered as they are made, operations as totals by name and phase."""
    events, storages, operations = group["events"], group["storages"], group["operations"]
    template = np.asarray(storages.get("template") or range(len(storages["category"])))
    kind, storage = np.asarray(events["kind"]), np.asarray(events["storage"])
    born = storage[kind > 0]
    number = np.argsort(born)
    totals = {}
    count = operations.get("count") or [1] * len(operations["phase"])
    for at, (name, phase) in enumerate(zip(operations["name"]["index"], operations["phase"], strict=True)):
        key = (operations["name"]["names"][name], phase)
        figures = [row[at] for figure in ("flops", "bytes_read", "bytes_written") for row in operations[figure]]
        totals[key] = totals.get(key, 0) + count[at] * np.asarray([1, *figures])
    moments = group["moments"]
    return {
        "kind": kind.tolist(),
        "phase": events["phase"],
        "step": events["step"],
        "storage": number[storage].tolist(),
        "sizes": np.asarray(storages["bytes"])[:, template[born]].tolist(),
        "category": np.asarray(storages["category"])[template[born]].tolist(),
        "moments": [moments["event"], moments["kind"], moments["index"]],
        "ready": [int(number[at]) if at >= 0 else -1 for at in moments["storage"]],
    }, totals


def assert_same(config, shapes, may_be_deep=False, **knobs):
    deep, shallow = (trace(order(config, depth, shapes, **knobs)) for depth in ("full", "shallow"))
    assert may_be_deep or "traced" in shallow["metadata"]["depth"], shallow["metadata"]["depth"]
    assert shallow["parameters"] == deep["parameters"]
    assert shallow["metadata"]["parameters"] == deep["metadata"]["parameters"]
    for one, other in zip(deep["groups"], shallow["groups"], strict=True):
        (records, totals), (there, totals_there) = plain(one), plain(other)
        for name, column in records.items():
            assert there[name] == column, name
        assert totals_there.keys() == totals.keys()
        for key, figures in totals.items():
            assert totals_there[key] == pytest.approx(figures, rel=1e-9), key
    return shallow


@pytest.mark.parametrize(
    "knobs",
    [
        {"pure_bf16": True},
        {"gradient_checkpointing": False, "gradient_accumulation_steps": 2},
        {"method": "lora", "gradient_accumulation_steps": 2},
        {"method": "lora", "gradient_checkpointing": False},
        {"method": "freeze"},
        {"method": "freeze", "gradient_checkpointing": False, "gradient_accumulation_steps": 2},
        {"precision": "fp32"},
        {"precision": "fp16"},
        {"zero_stage": 2, "gradient_accumulation_steps": 2},
        {"zero_stage": 3, "method": "lora", "gradient_checkpointing": False},
        {"zero_stage": 1, "method": "freeze"},
    ],
    ids=str,
)
def test_methods_precisions_and_zero(knobs):
    shallow = assert_same(text("llama", layers=9), TWO, **knobs)
    (traced,) = shallow["metadata"]["depth"]["traced"]
    assert traced <= 6


@pytest.mark.parametrize(
    "optimizer", ["adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adamw_8bit", "paged_adamw_8bit"]
)
@pytest.mark.parametrize("pure", [False, True])
def test_optimizers(optimizer, pure):
    config = text("llama", hidden_size=128)  # large enough for state in 8 bits
    own_way = optimizer == "adafactor"  # frees one parameter's temporaries at the next: its trace is not cut into passes
    assert_same(config, ONE, own_way, optimizer=optimizer, pure_bf16=pure, gradient_accumulation_steps=1 + pure)


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("qwen2", {}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 128, "max_window_layers": 3}),
        ("qwen3", {}),
        ("mistral", {"sliding_window": 128}),
        ("gemma", {}),
        ("gemma2", {"sliding_window": 128}),
        ("phi3", {}),
    ],
)
def test_text_families(family, more):
    assert_same(text(family, layers=9, **more), ONE, pure_bf16=True)
    assert_same(text(family, layers=9, **more), ONE, method="lora", gradient_checkpointing=False)


@pytest.mark.parametrize("config", [qwen2_5_vl, qwen2_vl])
@pytest.mark.parametrize(
    "knobs",
    [
        {"freeze_vision_tower": False, "freeze_multi_modal_projector": False, "gradient_checkpointing": False},
        {"freeze_vision_tower": False, "gradient_accumulation_steps": 2},
        {"method": "lora"},
        {"method": "lora", "freeze_vision_tower": False, "gradient_checkpointing": False},
        {"method": "freeze"},
        {"freeze_language_model": True, "freeze_multi_modal_projector": False},
        {"zero_stage": 2, "freeze_vision_tower": False},
    ],
    ids=str,
)
def test_vision_language_models(config, knobs):
    assert_same(config(), IMAGES, images={"per_sample": 1}, **knobs)


def test_what_cannot_be_stood_in_for_is_traced_deep_and_says_so():
    config = text("llama") | {"layers_that_are_special": [5]}
    document = trace(order(config, "shallow", ONE))
    assert "layers_that_are_special" in document["metadata"]["depth"]["full"]
    assert "template" not in document["groups"][0]["storages"]


@pytest.fixture
def unlike(monkeypatch):
    """Every fourth call of a layer's MLP makes a larger temporary: layers that look alike are not."""
    from transformers.models.llama.modeling_llama import LlamaMLP

    real = LlamaMLP.forward
    calls = []

    def forward(self, x):
        calls.append(None)
        torch.empty(7, 1000 if len(calls) % 4 == 3 else 10, device=x.device)
        return real(self, x)

    monkeypatch.setattr(LlamaMLP, "forward", forward)
    return order(text("llama", layers=8), "shallow", ONE, gradient_checkpointing=False)


def test_a_block_unlike_its_copies_is_noticed(unlike):
    document = trace(unlike)
    assert "alike" in document["metadata"]["depth"]["full"]
    assert "template" not in document["groups"][0]["storages"]


def test_without_the_check_on_itself_a_shallow_trace_would_be_wrong(unlike, monkeypatch):
    def temporaries(document):
        return sum(size == 28_000 for size in plain(document["groups"][0])[0]["sizes"][0])

    noticed = trace(unlike)
    monkeypatch.setattr(trace_document, "require_itself", lambda *given: None)
    believed = trace(unlike)
    assert believed["metadata"]["depth"] == {"traced": [4], "of": [8]}
    assert temporaries(noticed) == 4  # two steps, two of eight layers
    assert temporaries(believed) != 4


def test_a_wrong_number_of_parameters_is_noticed(monkeypatch):
    real = trace_document.shallow

    def wrong(model, trial):
        from dataclasses import replace

        found = real(model, trial)
        return replace(found, parameters=[*found.parameters, 8])

    monkeypatch.setattr(trace_document, "shallow", wrong)
    document = trace(order(text("llama"), "shallow", ONE))
    assert "parameters" in document["metadata"]["depth"]["full"]


def test_rows_keep_every_context_and_repeated_ones_twice():
    assert len(reduced_row("aaaaaaaa", "aaaaaaaa")) == 4
    assert len(reduced_row("a" * 32, "wwwwwwwf" * 4)) == 4
    freeze = reduced_row("aaaaaaaatt", "aaaaaaaatt")
    assert ["aaaaaaaatt"[at] for at in freeze] == ["a", "a", "a", "a", "t", "t"]
    assert len(reduced_row("abababab", "abababab")) == 6


def test_rows_of_tags_are_written_deep():
    layout = Layout((3,), ((0, 1, 1, 1, 2, 3),))
    row = Row([-1, 0, -1, 1, 2, -1, 2, 1, 0, -1], layout)
    items = row.deep(np.arange(10)).tolist()
    assert items == [0, 1, 2, 3, 3, 3, 4, 5, 6, 7, 7, 7, 8, 9]
    with pytest.raises(NotExpandable, match="several times"):
        Row([-1, 1, -1], layout)


def test_references_go_to_the_neighbour_of_each_copy():
    layout = Layout((4,), ((0, 2, 2, 2, 3, 4),))
    row = Row([0, 1, 2, 3, 3, 2, 1, 0], layout)  # each makes one thing on the way up; frees that of the one below going down
    names = Names(row, np.arange(4))
    assert names.template.tolist() == [0, 2, 2, 2, 3]
    things = np.array([0, 1, 2, 3, 3, 2, 1, 0])
    assert names.deep(row, things).tolist() == [0, 1, 2, 3, 4, 4, 3, 2, 1, 0]
    with pytest.raises(NotExpandable, match="several"):
        names.deep(Row([-1], layout), np.array([2]))


def test_lifetimes_are_required():
    ok = np.array([1, 1, -1, -1]), np.array([0, 1, 0, 1])
    require_lifetimes(*ok, np.array([True, True]))
    with pytest.raises(NotExpandable, match="twice"):
        require_lifetimes(np.array([1, 1, -1, -1]), np.array([0, 1, 0, 0]), np.array([True, True]))
    with pytest.raises(NotExpandable, match="another does not"):
        require_lifetimes(np.array([1, 1, -1]), np.array([0, 1, 0]), np.array([True, True]))
    with pytest.raises(NotExpandable, match="before"):
        require_lifetimes(np.array([-1, 1]), np.array([0, 0]), np.array([True]))


@pytest.mark.parametrize(
    "knobs", [{}, {"method": "lora", "gradient_accumulation_steps": 2}, {"optimizer": "adafactor"}], ids=str
)
def test_remembered_results_are_the_real_ones(monkeypatch, knobs):
    remembered = [trace(order(few_blocks(), "full", IMAGES, images={"per_sample": 1}, **knobs)) for _ in range(2)][-1]
    monkeypatch.setattr(
        trace_memo.Memo,
        "run",
        lambda self, operation, func, args, kwargs: (func(*args, **kwargs), trace_memo.Call(None, False)),
    )
    real = trace(order(few_blocks(), "full", IMAGES, images={"per_sample": 1}, **knobs))
    assert real["groups"] == remembered["groups"]
