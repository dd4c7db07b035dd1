"""The trace of a training step: lifetimes, categories, kernels as CUDA runs them, autocast, and what it refuses."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import families
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from autofit.config.model import resolve_model  # noqa: E402
from autofit.config.trial import TrialSpec  # noqa: E402
from autofit.worker import trace_session  # noqa: E402
from autofit.worker.trace import main, trace  # noqa: E402
from autofit.worker.trace_inputs import Shape, TraceError, image_grid  # noqa: E402
from autofit.worker.trace_kernels import device_kernels  # noqa: E402
from autofit.worker.trace_tracer import StorageTracer  # noqa: E402

ROOT = Path(__file__).parents[2]
WORKER = ROOT / "autofit" / "worker" / "__main__.py"


@pytest.fixture(autouse=True)
def _no_value_checks(monkeypatch):
    monkeypatch.setenv("TRANSFORMERS_DISABLE_TORCH_CHECK", "1")


def order(trace_options=None, preset="tiny-llama", config=None, **knobs):
    spec = TrialSpec(model={"config": config} if config else {"preset": preset}, **{"cutoff_len": 256, **knobs})
    return {
        "trial": spec.model_dump(mode="json"),
        "model": resolve_model(spec.model).model_dump(mode="json"),
        "trace": trace_options or {},
    }


def use(document, group=0, shape=0, block=512):
    """Bytes in use after every event."""
    part = document["groups"][group]
    sizes = np.asarray(part["storages"]["bytes"][shape])
    sizes = -(-sizes // block) * block
    return np.cumsum(sizes[part["events"]["storage"]] * np.asarray(part["events"]["kind"]))


def bytes_of(document, category):
    part = document["groups"][0]
    wanted = np.asarray(part["storages"]["category"]) == document["categories"].index(category)
    return int(np.asarray(part["storages"]["bytes"][0])[wanted].sum())


def test_every_storage_is_freed_at_most_once_and_after_its_allocation():
    events = trace(order())["groups"][0]["events"]
    alive = set()
    for kind, storage in zip(events["kind"], events["storage"], strict=True):
        if kind > 0:
            assert storage not in alive
            alive.add(storage)
        else:
            alive.remove(storage)


def test_the_steady_step_gives_back_what_it_takes():
    document = trace(order())
    in_use, step = use(document), np.asarray(document["groups"][0]["events"]["step"])
    first_end = in_use[step == 0][-1]
    assert in_use[-1] == first_end


def test_weights_gradients_and_moments_have_the_size_of_the_parameters():
    document = trace(order(pure_bf16=True))
    trained = document["metadata"]["parameters"]["trainable"]
    assert bytes_of(document, "optimizer_state") == 2 * 2 * trained
    assert bytes_of(document, "gradients") == 2 * 2 * trained  # two steps
    assert bytes_of(document, "weights") - 2 * trained < 4096  # and the rotary buffers


def test_fp32_masters_have_a_category_and_half_copies_while_forward_runs():
    document = trace(order())
    parameters = document["metadata"]["parameters"]["trainable"]
    assert bytes_of(document, "master_weights") == 4 * parameters
    # both steps copy every matrix once in forward and once more where the checkpoint recomputes it
    assert bytes_of(document, "autocast_copies") > 2 * 2 * 0.8 * parameters
    assert bytes_of(trace(order(precision="fp32")), "autocast_copies") == 0


@pytest.mark.parametrize(
    ("knobs", "options", "per_parameter"),
    [({"optimizer": "adamw_torch"}, {}, 10), ({"optimizer": "adamw_torch_fused"}, {}, 8), ({"optimizer": "adamw_8bit"}, {}, 6)],
)
def test_bytes_a_parameter_at_the_optimizer(knobs, options, per_parameter):
    """Pure bf16: foreach adds a temporary of the size of the parameters, fused does not, 8 bit halves the moments."""
    document = trace(order(options | {"max_grad_norm": None}, pure_bf16=True, **knobs))
    part = document["groups"][0]
    phase, step = np.asarray(part["events"]["phase"]), np.asarray(part["events"]["step"])
    in_optimizer = (phase == document["phases"].index("optimizer")) & (step == 1)
    workspaces = 2 * document["metadata"]["cublas_workspace_bytes"]
    before = use(document)[np.flatnonzero(step == 1)[0]]
    top = max(before, *use(document)[in_optimizer]) if in_optimizer.any() else before
    gradients = 2 if not in_optimizer.any() else 0
    assert (top - workspaces) / document["metadata"]["parameters"]["total"] + gradients == pytest.approx(
        per_parameter, rel=0.03
    )


def test_attention_takes_no_quadratic_buffer_on_cuda_and_eager_does():
    def largest(attention):
        part = trace(order(attention=attention, cutoff_len=2048, pure_bf16=True))["groups"][0]
        return max(part["storages"]["bytes"][0])

    scores = 8 * 2048 * 2048 * 2
    assert largest("sdpa") < scores
    assert largest("flash_attention_2") < scores
    assert largest("eager") >= scores


def test_composite_backwards_are_one_operation():
    """On a device `silu_backward` and `mish_backward` are one kernel each; torch has no third of the kind."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    found = {
        name
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("aten::")
        and has(name, "CompositeImplicitAutograd")
        and has(name, "CPU")
        and not name.endswith("out")
    }
    assert found == {"aten::silu_backward", "aten::mish_backward", "aten::native_channel_shuffle"}
    part = trace(order(pure_bf16=True, gradient_checkpointing=False))["groups"][0]
    names = [part["operations"]["name"]["names"][index] for index in part["operations"]["name"]["index"]]
    assert names.count("silu_backward") == 6
    assert "sigmoid" not in names


def test_mish_backward_does_not_decompose():
    config = resolve_model(TrialSpec(model={"preset": "tiny-llama"}).model).config | {"hidden_act": "mish"}
    part = trace(order(config=config, pure_bf16=True, gradient_checkpointing=False))["groups"][0]
    names = [part["operations"]["name"]["names"][index] for index in part["operations"]["name"]["index"]]
    assert names.count("mish_backward") == 6
    assert "softplus" not in names


def test_dropout_keeps_one_byte_an_element_on_cuda():
    """CUDA's `native_dropout` keeps a mask of bytes; the fallback on `meta` keeps a mask of the input's type and a product."""
    from torch.nn import functional

    value = torch.empty(64, 512, device="meta", dtype=torch.float32, requires_grad=True)
    real = functional.dropout
    tracer = StorageTracer("meta")
    with device_kernels("cuda"), tracer:
        kept = functional.dropout(value, 0.1, True)
        assert functional.dropout(value, 0.0, True) is value
        assert functional.dropout(value, 0.1, False) is value
    assert sorted(tracer.storage_bytes) == [64 * 512, 4 * 64 * 512]
    assert kept.shape == value.shape
    assert functional.dropout is real


def test_accumulation_keeps_all_micro_batches_and_the_gradients():
    once, twice = trace(order(pure_bf16=True)), trace(order(pure_bf16=True, gradient_accumulation_steps=2))
    assert bytes_of(twice, "inputs") == 2 * bytes_of(once, "inputs")
    assert bytes_of(twice, "gradients") == bytes_of(once, "gradients")
    assert use(twice).max() > use(once).max()


def test_parts_of_a_vision_language_model_and_frozen_ones_keep_nothing():
    shapes = [{"micro_batch_size": 1, "cutoff_len": 256, "grids": [[1, 16, 16]]}]
    trained = trace(order({"shapes": shapes}, "tiny-qwen2.5-vl", freeze_vision_tower=False, freeze_multi_modal_projector=False))
    frozen = trace(order({"shapes": shapes}, "tiny-qwen2.5-vl"))
    groups = trained["metadata"]["parameters"]["groups"]
    assert set(groups) == {"vision", "projector", "language", "logits"}
    assert frozen["metadata"]["parameters"]["groups"]["vision"]["trainable"] == 0
    assert bytes_of(trained, "activations_vision") > 2 * bytes_of(frozen, "activations_vision")


def test_window_attention_is_counted_by_windows_not_by_the_whole_square():
    def flops(side):
        shapes = [{"micro_batch_size": 1, "cutoff_len": 2048, "grids": [[1, side, side]]}]
        config = json.loads(json.dumps(resolve_model(TrialSpec(model={"preset": "tiny-qwen2.5-vl"}).model).config))
        config["vision_config"]["fullatt_block_indexes"] = []
        part = trace(order({"shapes": shapes}, config=config, pure_bf16=True))["groups"][0]["operations"]
        attention = part["name"]["names"].index("_scaled_dot_product_flash_attention")
        rows = [index for index, name in enumerate(part["name"]["index"]) if name == attention]
        return sum(part["flops"][0][row] for row in rows[:4])  # the four vision blocks come first

    assert flops(32) == pytest.approx(4 * flops(16), rel=1e-6)  # four times the windows; the square would be 16 times
    assert flops(16) == pytest.approx(4 * 4 * 64 * 256 * 128, rel=1e-6)  # blocks x products x window x patches x width


def test_a_batch_of_one_is_a_regime_of_its_own():
    shapes = [{"micro_batch_size": n, "cutoff_len": 256} for n in (2, 1, 3)]
    document = trace(order({"shapes": shapes}))
    assert [(group["regime"], len(group["shapes"])) for group in document["groups"]] == [("many", 2), ("one", 1)]
    assert use(document, 0, 1).max() > use(document, 0, 0).max()


def test_shapes_of_one_regime_must_share_their_events():
    shapes = [{"micro_batch_size": n, "cutoff_len": 256, "regime": "same"} for n in (2, 1)]
    with pytest.raises(TraceError, match="event"):
        trace(order({"shapes": shapes}))


def test_zero_traces_moments_and_leaves_the_optimizer_to_deepspeed():
    document = trace(order(zero_stage=2))
    part = document["groups"][0]
    assert bytes_of(document, "optimizer_state") == 0
    assert document["metadata"]["optimizer_traced"] is False
    kinds = part["moments"]["kind"]
    trained = sum(parameter["trainable"] for parameter in document["parameters"])
    assert kinds.count("grad") == 2 * trained
    assert kinds.count("backward") == kinds.count("backward_end") > 0


def test_a_giant_is_traced_without_its_memory():
    config = resolve_model(TrialSpec(model={"preset": "tiny-llama"}).model).config
    config = config | {"hidden_size": 16384, "intermediate_size": 53248, "num_attention_heads": 128, "vocab_size": 128256}
    document = trace(order(config=config | {"num_hidden_layers": 2}, optimizer="adamw_torch_fused", pure_bf16=True))
    assert document["metadata"]["parameters"]["total"] > 9e9
    assert use(document).max() > 64 * 2**30


@pytest.fixture(scope="module")
def in_llamafactory(tmp_path_factory):
    """What `families.py` traced in LLaMA-Factory's environment, whose transformers is another one."""
    python = Path(os.environ.get("AUTOFIT_LLAMAFACTORY_PYTHON") or ROOT / ".venv-llamafactory" / "bin" / "python")
    if not python.exists():
        pytest.skip("no LLaMA-Factory environment; `make llamafactory-env` builds it")
    out = tmp_path_factory.mktemp("families") / "out.json"
    done = subprocess.run([python, families.__file__, out], capture_output=True, text=True, timeout=600, check=False)
    assert out.exists(), done.stderr[-3000:]
    return json.loads(out.read_text())


@pytest.mark.parametrize("family", families.CONFIGS)
def test_families(family):
    document = trace(families.order(family, method="lora"))
    assert document["metadata"]["model_type"] == family
    assert document["groups"][0]["events"]["kind"]
    assert {"vision", "projector"} <= set(document["metadata"]["parameters"]["groups"]) or "_vl" not in family


@pytest.mark.llamafactory
@pytest.mark.parametrize("family", families.CONFIGS)
def test_families_in_llamafactorys_environment(in_llamafactory, family):
    assert isinstance(in_llamafactory[family], list), in_llamafactory[family]
    assert min(in_llamafactory[family]) > 1e7


def test_gemma_2_is_eager_without_flash_attention():
    part = trace(families.order("gemma2"))["groups"][0]
    assert "_softmax" in part["operations"]["name"]["names"]


def test_models_that_turn_autocast_off_by_device_are_traced_without_autocast(monkeypatch):
    """transformers 4.48's rotary embeddings; torch itself refuses autocast on `meta`."""
    from transformers.models.llama import modeling_llama

    real = modeling_llama.LlamaRotaryEmbedding.forward

    def forward(self, x, position_ids):
        with torch.autocast(device_type=x.device.type, enabled=False):
            return real(self, x, position_ids)

    monkeypatch.setattr(modeling_llama.LlamaRotaryEmbedding, "forward", forward)
    for knobs in ({"pure_bf16": True}, {"precision": "fp32"}, {}):
        assert use(trace(order(**knobs))).max() == use(trace(order(**knobs))).max() > 0
    with pytest.raises(RuntimeError, match=r"meta|unsupported scalarType"):  # the words of different torch releases
        torch.autocast(device_type="meta", enabled=False)


def test_flash_attention_of_class_based_models_is_refused(monkeypatch):
    from transformers import modeling_utils

    def build_as_before_4_48(*args):
        built = build(*args)  # a later transformers asks its table of functions here
        monkeypatch.delattr(modeling_utils, "ALL_ATTENTION_FUNCTIONS")
        return built

    build = trace_session.build
    monkeypatch.setattr(trace_session, "build", build_as_before_4_48)
    with pytest.raises(TraceError, match=r"only from 4\.48 on; set it to sdpa"):
        trace(order(attention="flash_attention_2"))


def test_the_cpu_copies_operands_of_another_type_and_cuda_does_not():
    from autofit.worker.trace_kernels import scratch_of

    half, full = torch.empty(8, 4, dtype=torch.bfloat16, device="meta"), torch.empty(8, 4, device="meta")
    assert scratch_of("cpu")["add"]((half, full), half + full) == [4 * 32 + 4 * 32]
    assert scratch_of("cpu")["add"]((full, full), full) == scratch_of("cpu")["mul"]((half, 2.0), half) == []
    assert "add" not in scratch_of("cuda")


def test_masks_select_the_image_tokens_and_lists_of_numbers_keep_their_values():
    """transformers before 5.2x counts image tokens by indexing, and reads the bounds of its windows back."""
    from autofit.worker.trace_kernels import device_kernels

    embeddings = torch.empty(2, 8, 4, device="meta")
    mask = torch.empty(2, 8, 1, dtype=torch.bool, device="meta").expand(2, 8, 4)
    with device_kernels("cuda", masked=0.25):
        assert embeddings[mask].shape == (16,)
        bounds = torch.tensor([0, 4, 4, 8], dtype=torch.int32, device="meta")
        assert torch.unique_consecutive(bounds).tolist() == [0, 4, 8]
        assert torch.tensor([[1, 2]], device="meta").is_meta and torch.tensor(3, device="meta").is_meta
    assert torch.tensor([1, 2], device="meta").is_meta


def test_images_are_held_in_what_is_computed_in():
    """LLaMA-Factory's collator casts them."""

    def largest_input(**knobs):
        document = trace(order(preset="tiny-qwen2.5-vl", images={"per_sample": 1, "max_pixels": 50176}, **knobs))
        part = document["groups"][0]
        wanted = np.asarray(part["storages"]["category"]) == document["categories"].index("inputs")
        return np.asarray(part["storages"]["bytes"][0])[wanted].max()

    assert largest_input(precision="fp32") == 2 * largest_input() == 2 * largest_input(pure_bf16=True)


@pytest.mark.parametrize("knobs", [{"pure_bf16": True}, {}, {"method": "lora"}])
def test_the_fused_cross_entropy_never_holds_the_logits(knobs):
    """With the same arithmetic, gradients included; what Liger does beside it is said not to be modelled."""
    config = resolve_model(TrialSpec(model={"preset": "tiny-llama"}).model).config | {"vocab_size": 32000}
    plain, fused = (trace(order(config=config, cutoff_len=1024, fused_cross_entropy=on, **knobs)) for on in (False, True))
    logits = 1024 * 32000 * 2
    flops = [sum(document["groups"][0]["operations"]["flops"][0]) for document in (plain, fused)]
    assert flops[1] == pytest.approx(flops[0], rel=1e-3)
    assert use(plain).max() - use(fused).max() > logits
    parts = (fused["groups"][0]["storages"], fused["categories"].index("logits_loss"))
    loss = [size for size, kind in zip(parts[0]["bytes"][0], parts[0]["category"], strict=True) if kind == parts[1]]
    assert max(loss) < logits
    assert any("Liger" in text for text in fused["metadata"]["not_modelled"])
    assert bytes_of(fused, "gradients") == bytes_of(plain, "gradients")


def test_the_fused_cross_entropys_events_do_not_depend_on_the_shape():
    shapes = [{"micro_batch_size": n, "cutoff_len": length} for n, length in ((2, 100), (3, 333), (5, 512))]
    document = trace(order({"shapes": shapes}, fused_cross_entropy=True))
    assert len(document["groups"][0]["shapes"]) == 3


def test_a_405b_is_traced_in_little_memory(tmp_path):
    config = resolve_model(TrialSpec(model={"preset": "llama-3.1-8b"}).model).config
    config |= {"hidden_size": 16384, "intermediate_size": 53248, "num_attention_heads": 128, "num_hidden_layers": 4}
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(order(config=config, optimizer="adamw_torch_fused", cutoff_len=8192)))
    done = subprocess.run([sys.executable, WORKER, "trace", spec], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    metadata = json.loads(done.stdout)["metadata"]
    assert metadata["parameters"]["total"] > 1.6e10  # four of its 126 layers, embedding and head
    assert metadata["rss_bytes"] < 1.5e9


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"config": {"model_type": "no_such_model"}}, "no_such_model"),
        ({"config": {"model_type": "llama", "num_attention_heads": 0}}, "cannot be built"),
        ({"config": families.TEXT | {"model_type": "llama", "hidden_size": 0}}, "hidden_size"),
        ({"config": families.TEXT | {"model_type": "llama", "vocab_size": 0}}, "vocab_size"),
        ({"config": families.TEXT | {"model_type": "llama", "num_hidden_layers": 0}}, "num_hidden_layers"),
        ({"config": families.TEXT | {"model_type": "llama", "num_hidden_layers": 10**9}}, "num_hidden_layers"),
        ({"config": families.TEXT | {"model_type": "llama", "num_attention_heads": 3, "head_dim": None}}, "attention heads"),
        ({"config": families.TEXT | {"model_type": "llama", "num_key_value_heads": 3}}, "heads"),
        ({"config": families.TEXT | {"model_type": "llama", "hidden_size": "many"}}, "hidden_size"),
        ({"config": {"model_type": "phi", **families.TEXT}, "fused_cross_entropy": True}, "'phi' cannot be traced with Liger"),
        ({"fused_cross_entropy": True, "trace_options": {"target": "cpu"}}, "Liger's kernels need a GPU"),
        ({"trace_options": {"target": "tpu"}}, "cuda, cpu"),
        ({"trace_options": {"shapes": [{"micro_batch_size": 0, "cutoff_len": 8}]}}, "at least 1"),
        ({"trace_options": {"shapes": [{"micro_batch_size": 1, "cutoff_len": 8, "grids": [[1, 4, 4]]}]}}, "with images"),
    ],
)
def test_what_cannot_be_traced_is_refused_with_its_reason(broken, said):
    with pytest.raises(TraceError, match=said):
        trace(order(**broken))


def test_image_tokens_must_fit_the_sequences():
    shapes = [{"micro_batch_size": 1, "cutoff_len": 32, "grids": [[1, 16, 16]]}]
    with pytest.raises(TraceError, match="66 image tokens do not fit"):
        trace(order({"shapes": shapes}, "tiny-qwen2.5-vl"))


def test_shape_round_trip_and_image_grid():
    written = {"micro_batch_size": 2, "cutoff_len": 64, "grids": [[1, 4, 4]], "regime": "many"}
    assert Shape.read(written).written() == written
    frames, rows, columns = image_grid(589_824, 14, 2)
    assert frames * rows * columns * 14 * 14 <= 589_824
    assert rows * columns // 4 >= 0.97 * 589_824 // 784


def test_the_command_writes_a_file_and_says_one_line_when_it_cannot(tmp_path: Path, capsys):
    spec, answer = tmp_path / "spec.json", tmp_path / "trace.json.gz"
    spec.write_text(json.dumps(order()))
    worker = Path(__file__).parents[2] / "autofit" / "worker" / "__main__.py"
    done = subprocess.run(
        [sys.executable, str(worker), "trace", str(spec), "-o", str(answer)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(gzip.decompress(answer.read_bytes()))
    assert document["format"] == 6 and document["metadata"]["versions"]["torch"]
    spec.write_text(json.dumps(order({"target": "tpu"})))
    assert main([str(spec), "-o", str(tmp_path / "no.json")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "no.json").exists()
    assert main([]) == 2
