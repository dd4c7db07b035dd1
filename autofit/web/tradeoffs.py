"""A study's Pareto front and what its compromises buy, of however many trials.

Choosing is tuning's (`front.py`, `compromise.py`), as it is for the command line and the report. SQL only leaves out what
cannot be chosen, trial against trial of the same training, so that of 100,000 trials a few are read whole.
"""

from typing import Any

from autofit.config.quality import breaches
from autofit.config.record import StudyRecord, TrialRecord
from autofit.config.space import reference_spec
from autofit.config.trial import TrialSpec
from autofit.store.reader import Reader
from autofit.store.rows import study_record, trial_record
from autofit.tuning.compromise import RUNNING, Compromise, compromise_table
from autofit.tuning.figures import Figures, figures
from autofit.tuning.front import pareto_front
from autofit.web.questions import study as study_view

CLOUD = 1000
"""Points that a picture shows beside the front; of more, every n-th."""

# Everything that `training_changes` and `quality.at_least` look at, as columns: trials that agree in these train alike.
_TRAINING = (
    "cutoff_len, images_per_sample, image_max_pixels, method, lora_rank, lora_target, freeze_vision_tower,"
    " freeze_multi_modal_projector, freeze_language_model, precision, pure_bf16, optimizer"
)
_RUNNING = ", ".join(RUNNING)
# The trials of which `figures.of_trial` has figures. A trial that was only predicted is PREDICTED exactly when it fits, and
# within one training its samples a second rank like any other speed.
_KNOWN = f"""
    SELECT t.id, t.trial_number, t.outcome IN ('PREDICTED', 'SKIPPED') AS told,
        CASE WHEN t.outcome = 'COMPLETED' AND t.margin_bytes >= 0 THEN t.objective_value
            WHEN t.outcome = 'PREDICTED' THEN t.predicted_samples_per_second END AS rate,
        CASE WHEN t.outcome IN ('PREDICTED', 'SKIPPED') THEN t.predicted_peak_bytes ELSE t.peak_device_bytes END AS peak,
        {_TRAINING}, {_RUNNING}
    FROM trials t JOIN studies s ON s.id = t.study_id
    WHERE s.name = ? AND t.purpose = 'search' AND (t.outcome IN ('COMPLETED', 'OOM', 'HOST_OOM', 'GROWTH', 'THRASH')
        OR t.outcome IN ('PREDICTED', 'SKIPPED') AND t.predicted_peak_bytes IS NOT NULL)
"""  # noqa: S608 - only constants, here and below
# Of each training and way to run it: the fastest that fits, else the one with the lowest known peak; the earlier of equal ones.
_CANDIDATES = f"""
    WITH known AS ({_KNOWN}), ranked AS (
        SELECT id, row_number() OVER (
            PARTITION BY told, {_TRAINING}, {_RUNNING}
            ORDER BY rate IS NULL, rate DESC, CASE WHEN rate IS NULL THEN peak IS NULL END,
                CASE WHEN rate IS NULL THEN peak END, trial_number
        ) AS place FROM known
    ) SELECT id FROM ranked WHERE place = 1
"""  # noqa: S608
# Of each training: those that fit and than which none is both faster and smaller. Equal ones are one point with all their ids.
_FRONTS = f"""
    WITH known AS ({_KNOWN}), points AS (
        SELECT group_concat(id) AS ids, told, rate, peak, {_TRAINING} FROM known WHERE rate IS NOT NULL
        GROUP BY told, {_TRAINING}, rate, peak
    ), compared AS (
        SELECT ids, peak, min(peak) OVER (
            PARTITION BY told, {_TRAINING} ORDER BY rate DESC, peak ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ) AS least_of_faster FROM points
    ) SELECT ids FROM compared WHERE least_of_faster IS NULL OR peak < least_of_faster
"""  # noqa: S608
_RECORDS = """SELECT t.trial_number, t.purpose, t.reason, t.attempt, t.run_dir, t.started_at, t.finished_at, d.spec,
    d.prediction, d.result FROM trials t JOIN trial_documents d ON d.trial_id = t.id"""
_POINT = """trial_number, purpose, outcome, state, phase, objective_value, samples_per_second, peak_device_bytes, margin_bytes,
    predicted_samples_per_second, predicted_peak_bytes, method, micro_batch_size, gradient_accumulation_steps, cutoff_len,
    zero_stage, gradient_checkpointing, freeze_vision_tower, freeze_multi_modal_projector, freeze_language_model, lora_rank"""


def pareto(reader: Reader, name: str) -> dict[str, Any]:
    """The front of a study by speed, memory and quality, fastest first, and the trials around it (of many, an even share).

    Raises:
        NotFound: no such study.
    """
    found, study = study_view(reader, name), _study(reader, name)
    front = front_of(reader, study) if study else []
    step = max(1, -(-int(found["trials"]) // CLOUD))
    return {
        "study": name,
        "evidence": "predicted" if found["device"] == "none" else "measured",
        "rate": study.space.rate if study else None,
        "memory_budget_bytes": found["memory_budget_bytes"],
        "winner_trial_number": found["winner_trial_number"],
        "front": _front_rows(reader, study, front) if study else [],
        "others": _points(reader, name, f"trial_number % {step} = 0", {one.trial_number for one in front}),
        "shown_every": step,
    }


def compromises(reader: Reader, name: str) -> dict[str, Any]:
    """What each change of the training, and each other way to run the same, buys against the winner.

    As long as there is no winner, the best so far stands for it.

    Raises:
        NotFound: no such study.
    """
    found, study = study_view(reader, name), _study(reader, name)
    against = found["winner_trial_number"]
    if against is None and found["best"]:
        against = found["best"]["trial_number"]
    table = compromises_of(reader, study, against) if study and against is not None else []
    return {"study": name, "against_trial_number": against, "compromises": [_row(one) for one in table]}


def front_of(reader: Reader, study: StudyRecord) -> list[Figures]:
    """What `tuning.findings` would find, of the trials that can be on it."""
    ids = [int(one) for (text,) in reader.ask(_FRONTS, (study.name,)).rows for one in text.split(",")]
    return pareto_front(figures(study, _records(reader, study.name, ids)), study.floor)


def compromises_of(reader: Reader, study: StudyRecord, against: int) -> list[Compromise]:
    """What `tuning.findings` would find against a trial, of the trials that can be in the table."""
    ids = [number for (number,) in reader.ask(_CANDIDATES, (study.name,)).rows]
    sql = "SELECT t.id FROM trials t JOIN studies s ON s.id = t.study_id WHERE s.name = ? AND t.trial_number = ?"
    ids += [number for (number,) in reader.ask(sql, (study.name, against)).rows]
    trials = _records(reader, study.name, ids)
    winner = next(trial for trial in trials if trial.trial_number == against)
    return compromise_table(study, trials, winner)


def _study(reader: Reader, name: str) -> StudyRecord | None:
    """None: a search that waits."""
    rows = reader.ask("SELECT name, status, winner_trial_number, record FROM studies WHERE name = ?", (name,)).as_dicts()
    return study_record(rows[0]) if rows else None


def _records(reader: Reader, study: str, ids: list[int]) -> list[TrialRecord]:
    """Trials whole, by number."""
    found = []
    for start in range(0, len(ids), 500):
        marks = ", ".join(map(str, ids[start : start + 500]))
        found += [trial_record(row, study) for row in reader.ask(f"{_RECORDS} WHERE t.id IN ({marks})").as_dicts()]
    return sorted(found, key=lambda trial: trial.trial_number)


def _points(reader: Reader, study: str, condition: str, without: set[int | None]) -> list[dict[str, Any]]:
    sql = f"SELECT {_POINT} FROM trial_list WHERE study = ? AND purpose = 'search' AND {condition} ORDER BY trial_number"  # noqa: S608
    return [row for row in reader.ask(sql, (study,)).as_dicts() if row["trial_number"] not in without]


def _front_rows(reader: Reader, study: StudyRecord, front: list[Figures]) -> list[dict[str, Any]]:
    """The front's rows in its order, each with what it gives up of the training that was asked for."""
    numbers = ", ".join(str(one.trial_number) for one in front)
    rows = {row["trial_number"]: row for row in _points(reader, study.name, f"trial_number IN ({numbers})", set())}
    wanted = reference_spec(study.space, study.model, len(study.hardware.devices), study.floor)
    return [{**rows[one.trial_number], "gives_up": _given_up(study, one.spec, wanted)} for one in front]


def _given_up(study: StudyRecord, spec: TrialSpec, wanted: TrialSpec) -> list[str]:
    return breaches(spec, wanted, study.space.quality, study.floor)


def _row(one: Compromise) -> dict[str, Any]:
    return {
        "kind": one.kind,
        "changes": list(one.changes),
        "along": list(one.along),
        "trial_number": one.best.trial_number,
        "fits": one.best.fits,
        "outcome": one.best.outcome,
        "speedup": one.speedup,
        "samples_per_second": one.best.samples_per_second,
        "peak_bytes": one.best.peak_device_bytes,
        "more_bytes": one.more_bytes,
        "truncated_share": one.truncated_share,
        "evidence": one.evidence,
    }
