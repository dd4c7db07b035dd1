"""A configuration in a few words, as lists and tooltips show it."""

from autofit.config.trial import TrialSpec


def describe(spec: TrialSpec) -> str:
    """The knobs that a search varies most, in a fixed order."""
    parts = [
        spec.method,
        f"zero{spec.zero_stage}" + ("+offload" if spec.offload_optimizer else ""),
        f"micro {spec.micro_batch_size} x acc {spec.gradient_accumulation_steps}",
        f"cutoff {spec.cutoff_len}",
        "ckpt" if spec.gradient_checkpointing else "no ckpt",
    ]
    frozen = [
        name
        for name, flag in (
            ("tower", spec.freeze_vision_tower),
            ("projector", spec.freeze_multi_modal_projector),
            ("llm", spec.freeze_language_model),
        )
        if flag
    ]
    if frozen and spec.images.per_sample:
        parts.append(f"frozen {'+'.join(frozen)}")
    return ", ".join(parts)
