"""The optimizers of the trace are made as Trainer makes them."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from autofit.config.model import resolve_model  # noqa: E402
from autofit.config.trial import TrialSpec  # noqa: E402
from autofit.worker import models  # noqa: E402
from autofit.worker.trace_optim import decays  # noqa: E402


@pytest.mark.parametrize("preset", ["tiny-llama", "tiny-qwen2.5-vl"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_weight_decay_works_on_what_trainer_says(preset, method):
    from transformers import Trainer

    spec = TrialSpec(model={"preset": preset}, method=method)
    resolved = resolve_model(spec.model).model_dump(mode="json")
    model = models.build(resolved, spec.model_dump(mode="json"), 0, "meta")
    expected = set(Trainer.get_decay_parameter_names(None, model))
    names = [name for name, _ in model.named_parameters()]
    assert {name for name, flag in zip(names, decays(model), strict=True) if flag} == expected & set(names)
    if preset == "tiny-qwen2.5-vl":
        vectors = {name for name, parameter in model.named_parameters() if parameter.dim() < 2}
        assert vectors & expected  # dimension does not decide
