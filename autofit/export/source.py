"""What an export is made from, and what every launcher needs of it."""

import re
from dataclasses import dataclass
from pathlib import Path

from autofit.config.model import Model
from autofit.config.record import StudyRecord, TrialRecord
from autofit.config.result import TrialResult
from autofit.config.space import DatasetRef
from autofit.config.trial import TrialSpec
from autofit.errors import AutofitError, UsageError

_WEIGHTS = ("*.safetensors", "*.bin")


@dataclass(frozen=True)
class Source:
    """A finished trial of a study, and the reference's trial if it ran."""

    study: StudyRecord
    trial: TrialRecord
    reference: TrialRecord | None
    confirm: TrialRecord | None = None
    """The longer run of the same configuration in a fresh process, if there was one."""

    @property
    def spec(self) -> TrialSpec:
        return self.trial.spec

    @property
    def model(self) -> Model:
        return self.study.model

    @property
    def result(self) -> TrialResult:
        """The trial's result.

        Raises:
            AutofitError: it has none yet.
        """
        if self.trial.result is None:
            raise AutofitError(
                f"trial {self.trial.trial_number} of study {self.study.name} has not finished; "
                f"`autofit search --resume --study {self.study.name}` finishes it"
            )
        return self.trial.result

    @property
    def dataset(self) -> DatasetRef:
        """What the launcher reads."""
        return dataset_for(self.model, self.study.space.dataset)

    @property
    def uses_images(self) -> bool:
        return self.model.is_vision_language and self.spec.images.per_sample > 0

    @property
    def output_dir(self) -> str:
        """A folder of its own, relative to where the training is started: another run's checkpoints would be resumed."""
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", self.study.name).strip("-.") or "study"
        return f"saves/{name}-trial-{self.trial.trial_number}"

    def model_name_or_path(self) -> str:
        """Where the launcher loads weights from.

        Raises:
            UsageError: the model is a bare config.
        """
        return weights_of(self.model)


def dataset_for(model: Model, dataset: DatasetRef | None) -> DatasetRef:
    """The space's dataset, or LLaMA-Factory's own demo for that kind of model.

    A folder with a `dataset_info.json` is made absolute, so that the files run from anywhere.
    """
    chosen = dataset or DatasetRef(name="mllm_demo" if model.is_vision_language else "alpaca_en_demo")
    if (Path(chosen.dir) / "dataset_info.json").is_file():
        return chosen.model_copy(update={"dir": str(Path(chosen.dir).resolve())})
    return chosen


def weights_of(model: Model) -> str:
    """Where a launcher loads a model's weights from: a folder or a hub id.

    Raises:
        UsageError: the model is a bare config.
    """
    if model.path:
        folder = Path(model.path)
        if folder.is_dir() and not any(next(folder.glob(pattern), None) for pattern in _WEIGHTS):
            raise UsageError(
                f"model folder {folder} has no weights (*.safetensors or *.bin); put them there, or search with --model DIR"
            )
        return model.path
    if model.id:
        return model.id
    raise UsageError(
        f"model {model.label} is a bare config without weights, which no launcher can load; "
        "search with --model DIR, a Hugging Face folder that has them"
    )
