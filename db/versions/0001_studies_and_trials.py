"""The first tables: studies, trials, their indexes and views.

Revision ID: 0001
Revises: nothing
"""
# ruff: noqa: S608 - the only text put into the views is _FITS

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_FITS = "outcome = 'COMPLETED' AND purpose = 'search' AND margin_bytes >= 0"

# What `autofit trials` lists and filters: the scalars of a trial, with sizes in GiB beside the bytes. CROSS JOIN keeps SQLite
# from going study by study, which reads the trials in the order of an index and not of the disk.
_TRIAL_LIST = """
CREATE VIEW trial_list AS
SELECT s.name AS study, t.trial_number,
    t.purpose, t.config_key, t.state, t.attempt, t.outcome, t.phase, t.failed_rank, t.model, t.method, t.lora_rank,
    t.lora_target, t.precision, t.pure_bf16, t.optimizer, t.micro_batch_size, t.gradient_accumulation_steps,
    t.global_batch_size, t.cutoff_len, t.zero_stage, t.offload_optimizer, t.offload_param, t.num_gpus,
    t.gradient_checkpointing, t.freeze_vision_tower, t.freeze_multi_modal_projector, t.freeze_language_model,
    t.attention, t.fused_cross_entropy, t.images_per_sample, t.image_max_pixels, t.predicted_peak_bytes,
    t.predicted_step_time_seconds, t.memory_budget_bytes, t.peak_allocated_bytes, t.peak_reserved_bytes,
    t.peak_device_bytes, t.margin_bytes, t.requested_bytes, t.allocated_bytes, t.step_time_seconds,
    t.samples_per_second, t.tokens_per_second, t.effective_tokens_per_second, t.objective_value, t.timed_steps,
    t.trainable_parameters, t.total_parameters, t.precision_mode, t.memory_limit, t.error_type, t.message,
    t.reason, t.started_at, t.finished_at, t.wall_seconds, t.run_dir,
    t.predicted_peak_bytes / 1073741824.0 AS predicted_peak_gib,
    t.memory_budget_bytes / 1073741824.0 AS memory_budget_gib,
    t.peak_allocated_bytes / 1073741824.0 AS peak_allocated_gib,
    t.peak_reserved_bytes / 1073741824.0 AS peak_reserved_gib,
    t.peak_device_bytes / 1073741824.0 AS peak_device_gib,
    t.margin_bytes / 1073741824.0 AS margin_gib,
    t.requested_bytes / 1073741824.0 AS requested_gib,
    t.allocated_bytes / 1073741824.0 AS allocated_gib,
    CAST(t.predicted_peak_bytes - t.peak_device_bytes AS REAL) / t.peak_device_bytes AS prediction_error,
    t.study_id, t.id
FROM trials AS t CROSS JOIN studies AS s ON s.id = t.study_id
"""

# One index lookup a study; the lower number wins a tie.
_BEST_TRIALS = f"""
CREATE VIEW best_trials AS
SELECT s.name AS study, s.objective, t.*
FROM studies AS s JOIN trials AS t ON t.id = (
    SELECT id FROM trials WHERE study_id = s.id AND {_FITS} ORDER BY objective_value DESC, trial_number LIMIT 1
)
"""

# A point is on the front when every faster one takes more memory. Points are made distinct first, so that trials that tie in
# both stay both.
_PARETO_FRONT = f"""
CREATE VIEW pareto_front AS
WITH points AS (
    SELECT DISTINCT study_id, samples_per_second, peak_device_bytes FROM trials WHERE {_FITS}
), compared AS (
    SELECT *, min(peak_device_bytes) OVER (
        PARTITION BY study_id ORDER BY samples_per_second DESC, peak_device_bytes
        ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ) AS least_of_faster
    FROM points
)
SELECT s.name AS study, t.*
FROM compared AS c
JOIN trials AS t ON t.study_id = c.study_id AND t.samples_per_second = c.samples_per_second
    AND t.peak_device_bytes = c.peak_device_bytes AND {_FITS}
JOIN studies AS s ON s.id = t.study_id
WHERE c.least_of_faster IS NULL OR c.peak_device_bytes < c.least_of_faster
"""

# Errors are (predicted - measured) / measured; a negative one is an under-prediction.
_PREDICTION_ACCURACY = """
CREATE VIEW prediction_accuracy AS
WITH errors AS (
    SELECT study_id, CAST(predicted_peak_bytes - peak_device_bytes AS REAL) / peak_device_bytes AS error,
        (predicted_step_time_seconds - step_time_seconds) / step_time_seconds AS step_time_error
    FROM trials WHERE outcome = 'COMPLETED' AND predicted_peak_bytes IS NOT NULL
), ranked AS (
    SELECT *, row_number() OVER (PARTITION BY study_id ORDER BY abs(error)) AS place,
        count(*) OVER (PARTITION BY study_id) AS total
    FROM errors
)
SELECT s.name AS study, count(*) AS trials,
    avg(CASE WHEN place IN ((total + 1) / 2, (total + 2) / 2) THEN abs(error) END) AS median_absolute_error,
    avg(abs(error)) AS mean_absolute_error, avg(error) AS mean_error,
    sum(error < 0) AS under_predictions, CASE WHEN min(error) < 0 THEN min(error) END AS worst_under_prediction,
    avg(abs(step_time_error)) AS step_time_mean_absolute_error
FROM ranked JOIN studies AS s ON s.id = ranked.study_id
GROUP BY study_id
"""


def upgrade() -> None:
    _studies()
    _trials()
    _trial_documents()
    for view in (_TRIAL_LIST, _BEST_TRIALS, _PARETO_FRONT, _PREDICTION_ACCURACY):
        op.execute(view.strip())


def downgrade() -> None:
    raise NotImplementedError("databases are only upgraded; restore a copy instead")


def _studies() -> None:
    op.create_table(
        "studies",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("engine", sa.Text, nullable=False),
        sa.Column("python", sa.Text, nullable=False),
        sa.Column("executor", sa.Text, nullable=False),
        sa.Column("sampler", sa.Text, nullable=False),
        sa.Column("seed", sa.Integer, nullable=False),
        sa.Column("objective", sa.Text, nullable=False),
        sa.Column("device", sa.Text, nullable=False),
        sa.Column("gpu_mem_bytes", sa.Integer, nullable=False),
        sa.Column("memory_budget_bytes", sa.Integer, nullable=False),
        sa.Column("winner_trial_number", sa.Integer),
        sa.Column("autofit_version", sa.Text, nullable=False),
        sa.Column("hardware", sa.Text, nullable=False),
        sa.Column("record", sa.Text, nullable=False),
        sa.UniqueConstraint("name", name="uq_studies_name"),
        sa.CheckConstraint("status IN ('RUNNING', 'INTERRUPTED', 'FINISHED')", name="ck_studies_status"),
        sa.CheckConstraint("objective IN ('samples_per_second', 'tokens_per_second')", name="ck_studies_objective"),
        sa.CheckConstraint("gpu_mem_bytes > 0 AND memory_budget_bytes > 0", name="ck_studies_positive"),
        sa.CheckConstraint("winner_trial_number IS NULL OR winner_trial_number >= 0", name="ck_studies_winner"),
    )


def _trials() -> None:
    op.create_table(
        "trials",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("study_id", sa.Integer, sa.ForeignKey("studies.id", name="fk_trials_study"), nullable=False),
        sa.Column("trial_number", sa.Integer, nullable=False),
        sa.Column("purpose", sa.Text, nullable=False),
        sa.Column("config_key", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("outcome", sa.Text),
        sa.Column("phase", sa.Text),
        sa.Column("failed_rank", sa.Integer),
        # knobs
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("method", sa.Text, nullable=False),
        sa.Column("lora_rank", sa.Integer),
        sa.Column("lora_target", sa.Text),
        sa.Column("precision", sa.Text, nullable=False),
        sa.Column("pure_bf16", sa.Integer, nullable=False),
        sa.Column("optimizer", sa.Text, nullable=False),
        sa.Column("micro_batch_size", sa.Integer, nullable=False),
        sa.Column("gradient_accumulation_steps", sa.Integer, nullable=False),
        sa.Column("global_batch_size", sa.Integer, nullable=False),
        sa.Column("cutoff_len", sa.Integer, nullable=False),
        sa.Column("zero_stage", sa.Integer, nullable=False),
        sa.Column("offload_optimizer", sa.Integer, nullable=False),
        sa.Column("offload_param", sa.Integer, nullable=False),
        sa.Column("num_gpus", sa.Integer, nullable=False),
        sa.Column("gradient_checkpointing", sa.Integer, nullable=False),
        sa.Column("freeze_vision_tower", sa.Integer, nullable=False),
        sa.Column("freeze_multi_modal_projector", sa.Integer, nullable=False),
        sa.Column("freeze_language_model", sa.Integer, nullable=False),
        sa.Column("attention", sa.Text, nullable=False),
        sa.Column("fused_cross_entropy", sa.Integer, nullable=False),
        sa.Column("images_per_sample", sa.Integer, nullable=False),
        sa.Column("image_max_pixels", sa.Integer),
        # predictions
        sa.Column("predicted_peak_bytes", sa.Integer),
        sa.Column("predicted_step_time_seconds", sa.Float),
        # measurements
        sa.Column("memory_budget_bytes", sa.Integer, nullable=False),
        sa.Column("peak_allocated_bytes", sa.Integer),
        sa.Column("peak_reserved_bytes", sa.Integer),
        sa.Column("peak_device_bytes", sa.Integer),
        sa.Column("margin_bytes", sa.Integer),
        sa.Column("requested_bytes", sa.Integer),
        sa.Column("allocated_bytes", sa.Integer),
        sa.Column("step_time_seconds", sa.Float),
        sa.Column("samples_per_second", sa.Float),
        sa.Column("tokens_per_second", sa.Float),
        sa.Column("effective_tokens_per_second", sa.Float),
        sa.Column("objective_value", sa.Float),
        sa.Column("timed_steps", sa.Integer),
        sa.Column("trainable_parameters", sa.Integer),
        sa.Column("total_parameters", sa.Integer),
        sa.Column("precision_mode", sa.Text),
        sa.Column("memory_limit", sa.Text),
        # story
        sa.Column("error_type", sa.Text),
        sa.Column("message", sa.Text),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("started_at", sa.Text, nullable=False),
        sa.Column("finished_at", sa.Text),
        sa.Column("wall_seconds", sa.Float),
        sa.Column("run_dir", sa.Text, nullable=False),
        # JSON, short
        sa.Column("versions", sa.Text),
        sa.Column("hardware", sa.Text),
        sa.Column("timings", sa.Text),
        sa.UniqueConstraint("study_id", "trial_number", name="uq_trials_number"),
        sa.UniqueConstraint("study_id", "config_key", "purpose", name="uq_trials_configuration"),
        sa.CheckConstraint("trial_number >= 0 AND attempt >= 1", name="ck_trials_counts"),
        sa.CheckConstraint("purpose IN ('search', 'confirm')", name="ck_trials_purpose"),
        sa.CheckConstraint("state IN ('RUNNING', 'FINISHED')", name="ck_trials_state"),
        sa.CheckConstraint(
            "outcome IN ('COMPLETED', 'OOM', 'HOST_OOM', 'GROWTH', 'THRASH', 'TIMEOUT', 'HANG', 'DATA_ERROR', 'CRASHED',"
            " 'SKIPPED', 'PREDICTED')",
            name="ck_trials_outcome",
        ),
        sa.CheckConstraint(
            "(state = 'RUNNING') = (outcome IS NULL) AND (outcome IS NULL) = (finished_at IS NULL) AND (outcome IS NOT"
            " NULL OR (phase IS NULL AND failed_rank IS NULL AND peak_allocated_bytes IS NULL AND peak_reserved_bytes IS"
            " NULL AND peak_device_bytes IS NULL AND requested_bytes IS NULL AND allocated_bytes IS NULL AND wall_seconds"
            " IS NULL AND error_type IS NULL AND message IS NULL))",
            name="ck_trials_finished",
        ),
        sa.CheckConstraint(
            "outcome NOT IN ('COMPLETED', 'GROWTH', 'THRASH') OR (peak_device_bytes IS NOT NULL AND step_time_seconds IS"
            " NOT NULL AND samples_per_second IS NOT NULL AND tokens_per_second IS NOT NULL AND objective_value IS NOT"
            " NULL)",
            name="ck_trials_measured",
        ),
        sa.CheckConstraint(
            "(outcome IS NOT NULL AND outcome IN ('COMPLETED', 'GROWTH', 'THRASH')) OR (step_time_seconds IS NULL AND"
            " samples_per_second IS NULL AND tokens_per_second IS NULL AND effective_tokens_per_second IS NULL AND"
            " objective_value IS NULL)",
            name="ck_trials_unmeasured",
        ),
        sa.CheckConstraint(
            "outcome NOT IN ('SKIPPED', 'PREDICTED') OR (peak_allocated_bytes IS NULL AND peak_reserved_bytes IS NULL AND"
            " peak_device_bytes IS NULL AND requested_bytes IS NULL AND allocated_bytes IS NULL)",
            name="ck_trials_not_run",
        ),
        sa.CheckConstraint(
            "(margin_bytes IS NULL) = (peak_device_bytes IS NULL) AND (margin_bytes IS NULL OR margin_bytes ="
            " memory_budget_bytes - peak_device_bytes)",
            name="ck_trials_margin",
        ),
        sa.CheckConstraint(
            "(predicted_peak_bytes IS NULL OR predicted_peak_bytes > 0) AND (predicted_step_time_seconds IS NULL OR"
            " predicted_step_time_seconds > 0) AND (memory_budget_bytes IS NULL OR memory_budget_bytes > 0) AND"
            " (peak_allocated_bytes IS NULL OR peak_allocated_bytes > 0) AND (peak_reserved_bytes IS NULL OR"
            " peak_reserved_bytes > 0) AND (peak_device_bytes IS NULL OR peak_device_bytes > 0) AND (requested_bytes IS"
            " NULL OR requested_bytes > 0) AND (step_time_seconds IS NULL OR step_time_seconds > 0) AND"
            " (samples_per_second IS NULL OR samples_per_second > 0) AND (tokens_per_second IS NULL OR tokens_per_second >"
            " 0) AND (effective_tokens_per_second IS NULL OR effective_tokens_per_second > 0) AND (objective_value IS NULL"
            " OR objective_value > 0) AND (timed_steps IS NULL OR timed_steps > 0) AND (trainable_parameters IS NULL OR"
            " trainable_parameters > 0) AND (total_parameters IS NULL OR total_parameters > 0) AND (allocated_bytes IS"
            " NULL OR allocated_bytes >= 0) AND (wall_seconds IS NULL OR wall_seconds >= 0) AND (failed_rank IS NULL OR"
            " failed_rank >= 0)",
            name="ck_trials_positive",
        ),
        sa.CheckConstraint(
            "micro_batch_size > 0 AND gradient_accumulation_steps > 0 AND num_gpus > 0 AND cutoff_len > 0 AND"
            " global_batch_size = micro_batch_size * gradient_accumulation_steps * num_gpus AND zero_stage IN (0, 1, 2, 3)"
            " AND (method = 'lora') = (lora_rank IS NOT NULL) AND images_per_sample >= 0 AND (images_per_sample = 0) ="
            " (image_max_pixels IS NULL)",
            name="ck_trials_knobs",
        ),
        sa.CheckConstraint(
            "pure_bf16 IN (0, 1) AND offload_optimizer IN (0, 1) AND offload_param IN (0, 1) AND gradient_checkpointing"
            " IN (0, 1) AND freeze_vision_tower IN (0, 1) AND freeze_multi_modal_projector IN (0, 1) AND"
            " freeze_language_model IN (0, 1) AND fused_cross_entropy IN (0, 1)",
            name="ck_trials_booleans",
        ),
    )
    op.create_index("ix_trials_best", "trials", ["study_id", "objective_value"], sqlite_where=sa.text(_FITS))
    op.create_index(
        "ix_trials_pareto", "trials", ["study_id", "samples_per_second", "peak_device_bytes"], sqlite_where=sa.text(_FITS)
    )
    op.create_index("ix_trials_state", "trials", ["study_id", "state"])


def _trial_documents() -> None:
    op.create_table(
        "trial_documents",
        sa.Column("trial_id", sa.Integer, sa.ForeignKey("trials.id", name="fk_trial_documents_trial"), primary_key=True),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("result", sa.Text),
    )
