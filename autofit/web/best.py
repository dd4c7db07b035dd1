"""The best of a study: its winner, and as long as there is none the fastest that fits and trains what was asked for."""

from typing import Any

from autofit.config.quality import breaches
from autofit.config.space import reference_spec
from autofit.config.trial import TrialSpec
from autofit.store.reader import Reader
from autofit.store.rows import study_record
from autofit.store.tables import FITS

# Everything that `training_changes` and `quality.at_least` look at, as columns: trials that agree in these train alike.
TRAINING = (
    "cutoff_len, images_per_sample, image_max_pixels, method, lora_rank, lora_target, freeze_vision_tower,"
    " freeze_multi_modal_projector, freeze_language_model, precision, pure_bf16, optimizer"
)
_STUDIES = "SELECT id, name, status, winner_trial_number, record FROM studies"
_FIGURES = """SELECT trial_number, samples_per_second, tokens_per_second, step_time_seconds, peak_device_bytes, margin_bytes
    FROM trials WHERE study_id = ? AND trial_number = ? AND samples_per_second IS NOT NULL"""
# The fastest of each training; SQLite takes the other columns from the row of the maximum.
_FASTEST = f"""
    SELECT t.trial_number, max(t.objective_value) AS rate, d.spec FROM trials t JOIN trial_documents d ON d.trial_id = t.id
    WHERE t.study_id = ? AND {FITS} GROUP BY {TRAINING} ORDER BY rate DESC
"""  # noqa: S608 - only constants


def best_of(reader: Reader, study: str | None = None) -> dict[str, dict[str, Any]]:
    """The measured figures of the best trial, by study; of one study or of all. One that has none yet is missing."""
    named = reader.ask(_STUDIES + " WHERE name = ?", (study,)) if study is not None else reader.ask(_STUDIES)
    found = {}
    for row in named.as_dicts():
        number = row["winner_trial_number"]
        if number is None:
            number = _best_so_far(reader, row)
        rows = reader.ask(_FIGURES, (row["id"], number)).as_dicts()
        if rows:
            found[row["name"]] = rows[0]
    return found


def _best_so_far(reader: Reader, row: dict[str, Any]) -> int | None:
    candidates = reader.ask(_FASTEST, (row["id"],)).rows
    if not candidates:
        return None
    study = study_record(row)
    wanted = reference_spec(study.space, study.model, len(study.hardware.devices), study.floor)
    for number, _, spec in candidates:
        if not breaches(TrialSpec.model_validate_json(spec), wanted, study.space.quality, study.floor):
            return int(number)
    return None
