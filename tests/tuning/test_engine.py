"""Which engine a study gets, and what the user is told of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from autofit.config.model import Model, ModelRef, resolve_model
from autofit.config.space import DatasetRef
from autofit.config.trial import Images, TrialSpec
from autofit.errors import UsageError
from autofit.launch import environment
from autofit.launch.environment import TrainingEnvironment
from autofit.tuning import health
from autofit.tuning.engine import Choice, choose, untested


@pytest.fixture
def model(tmp_path: Path) -> Model:
    folder = tmp_path / "model"
    folder.mkdir()
    config = resolve_model(ModelRef(preset="tiny-qwen2.5-vl")).config
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("model.safetensors", "tokenizer.json"):
        (folder / name).touch()
    return resolve_model(ModelRef(path=str(folder)))


@pytest.fixture
def dataset(tmp_path: Path) -> DatasetRef:
    (tmp_path / "dataset_info.json").write_text('{"mine": {"file_name": "mine.json"}}')
    return DatasetRef(name="mine", dir=str(tmp_path))


def chosen(
    model: Model, dataset: DatasetRef | None, wanted: Any = "auto", version: str | None = "0.9.5", **knobs: Any
) -> Choice:
    found = TrainingEnvironment(python="py", versions={"llamafactory": version} if version else {})
    ref = ModelRef(path=model.path) if model.path else ModelRef(preset="tiny-llama")
    return choose(wanted, found, model, dataset, TrialSpec(model=ref, images=Images(), **knobs), knobs.pop("device", "cpu"))


def test_llamafactory_where_it_can(model: Model, dataset: DatasetRef) -> None:
    assert chosen(model, dataset) == Choice("llamafactory", "py has it")
    assert chosen(model, dataset, "transformers").engine == "transformers"


def test_transformers_where_it_cannot_and_why(model: Model, dataset: DatasetRef) -> None:
    elsewhere = dataset.model_copy(update={"name": "yours"})
    nowhere = dataset.model_copy(update={"dir": "/nowhere"})
    bare = resolve_model(ModelRef(preset="tiny-llama"))
    for choice, words in (
        (chosen(model, dataset, version=None), "not installed"),
        (chosen(model, elsewhere), "lists no dataset yours"),
        (chosen(model, nowhere), "dataset_info.json cannot be read"),
        (chosen(bare, DatasetRef(name="mine", dir=dataset.dir, template="qwen")), "without weights"),
    ):
        assert choice.engine == "transformers"
        assert words in choice.why
    (Path(str(model.path)) / "tokenizer.json").unlink()
    assert "no tokenizer" in chosen(model, dataset).why


def test_an_engine_that_is_asked_for_and_cannot_be_is_an_error(model: Model, dataset: DatasetRef) -> None:
    with pytest.raises(UsageError, match="not installed"):
        chosen(model, dataset, "llamafactory", version=None)


@pytest.mark.parametrize(
    ("version", "words"), [("0.9.3", "older than 0.9.4"), ("0.9.6.dev0", "newer than 0.9.5"), ("1.0", "newer")]
)
def test_an_untested_version_warns_with_the_difference(model: Model, dataset: DatasetRef, version: str, words: str) -> None:
    choice = chosen(model, dataset, version=version)
    assert choice.engine == "llamafactory"
    assert version in str(choice.warning) and words in str(choice.warning)


def test_tested_versions_do_not_warn() -> None:
    assert untested("0.9.4") is untested("0.9.5") is None


def test_doctor_says_which_engine_and_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def engine_with(versions: dict[str, str]) -> health.Finding:
        monkeypatch.setattr(health, "probe", lambda python: environment.TrainingEnvironment(python=python, versions=versions))
        return next(finding for finding in health.examine("py", tmp_path) if finding.what == "engine")

    assert engine_with({}).detail.startswith("transformers: this interpreter has no LLaMA-Factory")
    assert engine_with({"llamafactory": "0.9.5"}).detail.startswith("llamafactory:")
    assert "newer than 0.9.5" in engine_with({"llamafactory": "0.9.7"}).detail


def test_a_relative_interpreter_is_the_same_one_everywhere(
    tmp_path: Path, stub_python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(stub_python).parent)
    assert environment.probe("./python").python == stub_python
