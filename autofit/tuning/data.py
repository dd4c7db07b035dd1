"""What the user's data say to a search, before anything is run: which cutoffs they forbid, and which batches they can make.

The profile that this rests on is made in the training environment once and cached (`data/collect.py`), so that a second search
over the same data starts at once. Where there is none, or where LLaMA-Factory would not train on its samples in its order, the
notes say so and the trials take what the worker finds by itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autofit.config.floor import Cut, DataFloor
from autofit.config.launcher_keys import DEFAULTS
from autofit.config.launcher_yaml import launcher_values
from autofit.config.legality import MIN_TEXT_TOKENS
from autofit.config.model import Model
from autofit.config.space import DatasetRef, LegalSpace, SearchSpace
from autofit.config.trial import Images
from autofit.data.collect import ProfileOptions, ProfileRequest, Progress, collect, default_cache
from autofit.data.profile import DataProfile
from autofit.data.sources import find_sources
from autofit.errors import AutofitError
from autofit.export.source import dataset_for
from autofit.export.templates import template_for
from autofit.launch.environment import TrainingEnvironment
from autofit.tuning.profiling import tokenizer_folder

Keys = Mapping[str, Any]
"""LLaMA-Factory's keys and their values."""


@dataclass(frozen=True)
class StudyData:
    """The profile of a study's data, and how far LLaMA-Factory's training set is that of the profile."""

    profile: DataProfile
    unlike: str | None = None
    """Why places in the training set are not numbers in the profile; None: they are."""
    not_shuffled: str | None = None
    """Why the sampler draws batches otherwise than at random; None: it does."""

    def floor(self, synthetic: Images | None, model: Model) -> DataFloor:
        """What the data forbid; with `synthetic`, also what trials on synthetic samples with such images cannot run."""
        floor = self.profile.floor
        if synthetic is None or not model.is_vision_language or not synthetic.per_sample:
            return floor
        needed = synthetic.per_sample * model.image_tokens(synthetic.max_pixels) + MIN_TEXT_TOKENS
        what = f"the synthetic sample of the trials ({synthetic.per_sample} image(s) of {synthetic.max_pixels} pixels)"
        above = [cut.model_copy(update={"low": max(cut.low, needed)}) for cut in floor.cuts if cut.high >= needed]
        return floor.model_copy(update={"cuts": (Cut(low=1, high=needed - 1, sample=what), *above)})

    def notes(self) -> list[str]:
        """What the user should know of them."""
        profile, floor = self.profile, self.profile.floor
        names = ", ".join(dataset.name for dataset in profile.facts.datasets)
        said = f"data: {len(profile)} samples of {names}, the longest of {int(profile.tokens.max())} tokens"
        if floor.cuts:
            said += f"; a cutoff_len below {floor.cutoff_len} would cut image tokens of {floor.cuts[-1].sample}"
        lines = [said]
        if self.unlike and profile.facts.engine == "llamafactory":
            lines.append(f"the worst batch is the longest sample filled up, not one of your data: {self.unlike}")
        elif self.not_shuffled:
            lines.append(f"speed is that of the timed steps, not of an epoch of your data: {self.not_shuffled}")
        return lines + list(profile.facts.cannot)


def read_data(  # noqa: PLR0917 - the last three have defaults
    space: SearchSpace,
    model: Model,
    environment: TrainingEnvironment,
    source: tuple[str, str] | None = None,
    progress: Progress | None = None,
    cache: Path | None = None,
) -> tuple[StudyData | None, str | None]:
    """The data of a space, or of the user's file `source` (path, text); or None and why there is none, to be said.

    Raises:
        AutofitError: the data hold rows that end every training on them; names the first.
    """
    if space.dataset is None:
        return None, None
    keys = launcher_values(source[1], source[0]) if source else {}
    try:
        request = _request(space, space.dataset, model, keys)
        profile = collect(request, environment, cache or default_cache(), progress=progress)
    except AutofitError as error:
        return None, f"the data are not profiled, so no cutoff_len is refused for them: {error}"
    if profile.facts.engine == "llamafactory" and profile.complaint is not None:
        raise AutofitError(f"data set {space.dataset.name}: {profile.complaint}")
    if keys.get("max_samples"):
        profile = profile.head(int(keys["max_samples"]))
    if not len(profile):
        raise AutofitError(f"data set {space.dataset.name}: no row is left that LLaMA-Factory would train on")
    return StudyData(profile, _unlike(keys, request, profile), _not_shuffled(keys)), None


def _request(space: SearchSpace, dataset: DatasetRef, model: Model, keys: Keys) -> ProfileRequest:
    named = dataset_for(model, dataset)
    options = {name: keys[name] for name in ProfileOptions.model_fields if keys.get(name) is not None}
    images = Images.model_validate(space.fixed.get("images", {}))
    media = keys.get("media_dir")
    return ProfileRequest(
        model=tokenizer_folder(model),
        sources=find_sources(named.name, named.dir),
        template=named.template or template_for(model),
        media_dir=str(Path(media).resolve()) if media else None,
        image_max_pixels=images.max_pixels if images.per_sample else DEFAULTS["image_max_pixels"],
        **({"image_min_pixels": keys["image_min_pixels"]} if keys.get("image_min_pixels") else {}),
        options=ProfileOptions(**options),
    )


def _unlike(keys: Keys, request: ProfileRequest, profile: DataProfile) -> str | None:
    """Why LLaMA-Factory's tokenised training set is not the profile's samples in their order."""
    if profile.facts.engine != "llamafactory":
        return "the training environment has no LLaMA-Factory whose own code could make the profile"
    off: dict[str, tuple[Any, ...]] = {
        "packing": (False,),
        "neat_packing": (False,),
        "val_size": (0, 0.0),
        "mix_strategy": ("concat",),
        "streaming": (False,),
        "tokenized_path": ("",),
        "stage": ("sft",),
    }
    for key, inert in off.items():
        if keys.get(key) is not None and keys[key] not in inert:
            return f"{key} {keys[key]} makes other samples, or another order, of them"
    drawn = next((name for name, entry in request.sources.entries.items() if entry.get("num_samples")), None)
    return f"num_samples of {drawn} draws its rows anew in every run" if drawn else None


def _not_shuffled(keys: Keys) -> str | None:
    for key in ("disable_shuffling", "group_by_length"):
        if keys.get(key):
            return f"{key} draws them in an order of its own"
    if keys.get("train_sampling_strategy") not in {None, "random"}:
        return f"train_sampling_strategy {keys['train_sampling_strategy']} draws them in an order of its own"
    return None


def data_notes(data: StudyData | None, why_not: str | None, legal: LegalSpace, engine: str, device: str) -> list[str]:
    """What to say of the data before a search: what they are, what they forbid, and what is not known of them."""
    if data is None:
        return [why_not] if why_not else []
    cut = [
        f"{count} configuration(s) refused: {reason}" for reason, count in legal.refused.items() if "cut image tokens" in reason
    ]
    lines = [*data.notes(), *cut]
    if engine != "llamafactory" and device != "none":
        lines.append("the trials run on synthetic samples, not on your data: engine transformers")
    if device == "cpu":
        lines.append(
            "fragmentation is not foretold: a CPU has no caching allocator; growth is measured when the winner is confirmed"
        )
    return lines
