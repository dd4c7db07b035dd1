"""Both kinds of accumulation from one session are what two traces of their own say: every record, size, figure and moment."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from autofit.config.model import resolve_model  # noqa: E402
from autofit.config.trial import TrialSpec  # noqa: E402
from autofit.predict.symbolic import SymbolicTrace  # noqa: E402
from autofit.worker import trace_accumulation  # noqa: E402
from autofit.worker.trace import trace  # noqa: E402
from autofit.worker.trace_loop import Loop  # noqa: E402
from autofit.worker.trace_session import Session  # noqa: E402

TEXT = [
    {"micro_batch_size": batch, "cutoff_len": length}
    for batch, length in ((2, 128), (3, 64), (2, 192), (5, 256), (1, 128), (1, 256), (1, 320))
]
IMAGES = [
    {"micro_batch_size": 2, "cutoff_len": 640, "grids": [[1, 16, 16]] * 2},
    {"micro_batch_size": 3, "cutoff_len": 512, "grids": [[1, 16, 16], [1, 32, 32], [1, 16, 16]]},
    {"micro_batch_size": 1, "cutoff_len": 512, "grids": [[1, 24, 24]]},
    {"micro_batch_size": 1, "cutoff_len": 768, "grids": [[1, 16, 16]]},
]


@pytest.fixture(autouse=True)
def _no_value_checks(monkeypatch):
    monkeypatch.setenv("TRANSFORMERS_DISABLE_TORCH_CHECK", "1")


def document(preset, accumulation, single, **knobs):
    spec = TrialSpec(model={"preset": preset}, cutoff_len=256, gradient_accumulation_steps=accumulation, **knobs)
    shapes = IMAGES if "vl" in preset else TEXT
    return trace(
        {
            "trial": spec.model_dump(mode="json"),
            "model": resolve_model(spec.model).model_dump(mode="json"),
            "trace": {"depth": "shallow", "shapes": shapes, "single": single},
        }
    )


@pytest.fixture
def probed(monkeypatch):
    """Micro-batches of every probe."""
    asked = []
    real = Session.probe

    def probe(self, shape, micro_steps):
        asked.append(micro_steps)
        return real(self, shape, micro_steps)

    monkeypatch.setattr(Session, "probe", probe)
    return asked


def figures(found):
    """What is asked of a trace."""
    for batch, length in ((1, 192), (4, 512)):
        first, steady = found.events(batch, length, 256)
        yield found.peak(batch, length, 256)
        yield from (column.tolist() for events in (first, steady) for column in events)
        for operations in found.operations(batch, length, 256):
            yield [column.tolist() for column in (operations.flops, operations.bytes, operations.count)]


CASES = [
    ("tiny-llama", {"pure_bf16": True}),
    ("tiny-llama", {"gradient_checkpointing": False}),
    ("tiny-llama", {"method": "lora"}),
    ("tiny-llama", {"method": "lora", "gradient_checkpointing": False}),
    ("tiny-llama", {"precision": "fp16", "optimizer": "adamw_torch_fused"}),
    ("tiny-llama", {"precision": "fp32", "optimizer": "adafactor", "gradient_checkpointing": False}),
    ("tiny-llama", {"zero_stage": 2}),
    ("tiny-llama", {"zero_stage": 3, "method": "lora", "gradient_checkpointing": False}),
    ("tiny-qwen2.5-vl", {"images": {"per_sample": 1}, "freeze_vision_tower": False, "pure_bf16": True}),
    ("tiny-qwen2.5-vl", {"images": {"per_sample": 1}, "method": "lora", "gradient_checkpointing": False, "zero_stage": 2}),
    ("tiny-qwen2.5-vl", {"images": {"per_sample": 1}, "freeze_language_model": True, "freeze_multi_modal_projector": False}),
]


@pytest.mark.parametrize(("preset", "knobs"), CASES, ids=str)
def test_together_is_what_each_says_alone(preset, knobs, probed):
    together = document(preset, 4, True, **knobs)
    assert set(probed) == {1}  # two micro-batches are traced at the first shape only
    alone, several = document(preset, 1, True, **knobs), document(preset, 4, False, **knobs)
    groups = together["groups"]
    assert [group for group in groups if group["micro_steps"] == 1] == alone["groups"]
    assert [group for group in groups if group["micro_steps"] == 2] == several["groups"]
    assert together["parameters"] == alone["parameters"] == several["parameters"]
    one = SymbolicTrace.from_document(together, micro_steps=1)
    expected = SymbolicTrace.from_document(alone)
    assert one.metadata["micro_steps_traced"] == expected.metadata["micro_steps_traced"] == 1
    assert list(figures(one)) == list(figures(expected))
    if knobs.get("zero_stage"):
        assert one.moments(2, 192) == expected.moments(2, 192)


def test_a_step_that_cannot_be_paired_is_probed_with_all_its_micro_batches(monkeypatch, probed):
    """The second micro-batch keeps something that the first does not: only a probe of two shows it."""
    from transformers.models.llama.modeling_llama import LlamaMLP

    real = LlamaMLP.forward
    second = []

    def forward(self, x):
        if second[0]:
            torch.empty_like(x)
        return real(self, x)

    step = Loop.micro_step

    def micro_step(self, batch, at, accumulation=1, number=0):
        second[:] = [number == 1]
        step(self, batch, at, accumulation, number)

    monkeypatch.setattr(LlamaMLP, "forward", forward)
    monkeypatch.setattr(Loop, "micro_step", micro_step)
    together = document("tiny-llama", 2, True)
    assert 2 in probed
    assert together["groups"][0] == document("tiny-llama", 2, False)["groups"][0]


def test_a_wrong_pairing_is_noticed(monkeypatch, probed):
    """Sizes that the pairing gets wrong at the first shape are not used."""
    real = trace_accumulation._pair

    def pair(here, there, sizes, known):
        real(here, there, sizes, known)
        if here and here[0][0] != 1:
            sizes[here[-1][2]] += 512

    monkeypatch.setattr(trace_accumulation, "_pair", pair)
    together = document("tiny-llama", 2, True)
    assert 2 in probed
    assert together["groups"][0] == document("tiny-llama", 2, False)["groups"][0]
