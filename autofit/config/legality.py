"""Which configurations may be tried: no-ops are made canonical so that nothing runs twice, fatal ones are refused, with reason.

The rules are those that LLaMA-Factory 0.9.5 and DeepSpeed 0.19 follow, seen by running them:
LoRA over `all` never adapts the projector; a text model has no tower to freeze; offloading needs a ZeRO stage; with everything
frozen there is no gradient; `pure_bf16` excludes ZeRO-3; cutting an image's tokens crashes when such a sample is drawn.
"""

from autofit.config.floor import DataFloor
from autofit.config.model import Model
from autofit.config.trial import Images, Lora, TrialSpec

MIN_TEXT_TOKENS = 16
"""Room that a sample needs beside its images: role markers and a first word on either side."""


def canonical(spec: TrialSpec, model: Model) -> TrialSpec:
    """`spec` with every knob that does nothing set to one fixed value; two specs that run alike become equal."""
    changes: dict[str, object] = {}
    if spec.method != "lora":
        changes["lora"] = Lora()
    if spec.method == "lora" and spec.lora.target == "all":
        changes["freeze_multi_modal_projector"] = True
    if not model.is_vision_language:
        changes |= {"freeze_vision_tower": True, "freeze_multi_modal_projector": True, "images": Images(per_sample=0)}
    if spec.zero_stage == 0:
        changes |= {"offload_optimizer": False, "offload_param": False}
    elif spec.zero_stage != 3:
        changes["offload_param"] = False
    if spec.precision != "bf16":
        changes["pure_bf16"] = False
    return spec.model_copy(update=changes)


def refusal(spec: TrialSpec, model: Model, floor: DataFloor | None = None) -> str | None:
    """Why a canonical `spec` cannot train, or None.

    Args:
        floor: what the dataset's profile forbids, exact for its images; without it, or for another `max_pixels`, every
            sample is taken to carry the images that `spec` names at their largest.
    """
    if spec.pure_bf16 and spec.zero_stage == 3:
        return "pure_bf16 with zero_stage 3: LLaMA-Factory refuses it; ZeRO-3 with bf16 keeps bf16 weights already"
    if spec.method == "lora" and spec.freeze_language_model and spec.freeze_vision_tower:
        return "lora with language model and vision tower frozen: no module is left to adapt"
    if spec.method != "lora" and _all_frozen(spec, model):
        return "everything is frozen: nothing would be trained"
    if spec.method == "freeze" and spec.freeze_language_model:
        return "method freeze trains the last layers of the language model, which freeze_language_model freezes"
    return _cut_images(spec, model, floor)


def _cut_images(spec: TrialSpec, model: Model, floor: DataFloor | None) -> str | None:
    """Why `cutoff_len` would cut image tokens, or None."""
    if floor is not None and floor.image_max_pixels == spec.images.max_pixels:
        if (cut := floor.at(spec.cutoff_len)) is not None:
            return f"cutoff_len {spec.cutoff_len} would cut image tokens of {cut.sample}; {floor.cutoff_len} and more cut none"
        return None
    if model.is_vision_language and spec.images.per_sample:
        needed = spec.images.per_sample * model.image_tokens(spec.images.max_pixels) + MIN_TEXT_TOKENS
        if needed > spec.cutoff_len:
            return (
                f"cutoff_len {spec.cutoff_len} would cut image tokens: {spec.images.per_sample} image(s) of"
                f" {spec.images.max_pixels} pixels need {needed}"
            )
    return None


def training_changes(spec: TrialSpec, wanted: TrialSpec) -> list[str]:
    """How the training itself would differ from `wanted`: less of the data, other trained parts, less precision.

    Empty for a spec that only runs the same training in another way. A longer cutoff_len or a larger image is no change:
    nothing is lost.
    """
    changes = []
    if spec.cutoff_len < wanted.cutoff_len:
        changes.append(f"cutoff_len {spec.cutoff_len} instead of {wanted.cutoff_len}")
    if spec.images.max_pixels < wanted.images.max_pixels:
        changes.append(f"images of at most {spec.images.max_pixels} pixels instead of {wanted.images.max_pixels}")
    if spec.method != wanted.method:
        changes.append(f"{spec.method} instead of {wanted.method}")
    else:
        for part in ("vision_tower", "multi_modal_projector", "language_model"):
            frozen = getattr(spec, f"freeze_{part}")
            if frozen != getattr(wanted, f"freeze_{part}"):
                changes.append(f"{part.replace('_', ' ')} {'frozen' if frozen else 'trained'}")
        if spec.lora != wanted.lora:
            changes.append(f"lora rank {spec.lora.rank} on {spec.lora.target}")
    if (spec.precision, spec.pure_bf16) != (wanted.precision, wanted.pure_bf16):
        changes.append("pure bf16" if spec.pure_bf16 else spec.precision)
    if spec.optimizer.removesuffix("_fused") != wanted.optimizer.removesuffix("_fused"):
        changes.append(f"optimizer {spec.optimizer}")
    return changes


def _all_frozen(spec: TrialSpec, model: Model) -> bool:
    vision_frozen = not model.is_vision_language or (spec.freeze_vision_tower and spec.freeze_multi_modal_projector)
    return spec.freeze_language_model and vision_frozen
