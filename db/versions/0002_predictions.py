"""What was predicted of a trial: columns, the whole of it as JSON, and how such predictions turned out.

Revision ID: 0002
Revises: 0001
"""
# ruff: noqa: S608 - the only text put into the views is fixed here

import sqlalchemy as sa
from alembic import op
from alembic.util import CommandError

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# As in 0001, with the columns and their GiB that this revision adds.
_TRIAL_LIST = """
CREATE VIEW trial_list AS
SELECT s.name AS study, t.trial_number,
    t.purpose, t.config_key, t.state, t.attempt, t.outcome, t.phase, t.failed_rank, t.model, t.method, t.lora_rank,
    t.lora_target, t.precision, t.pure_bf16, t.optimizer, t.micro_batch_size, t.gradient_accumulation_steps,
    t.global_batch_size, t.cutoff_len, t.zero_stage, t.offload_optimizer, t.offload_param, t.num_gpus,
    t.gradient_checkpointing, t.freeze_vision_tower, t.freeze_multi_modal_projector, t.freeze_language_model,
    t.attention, t.fused_cross_entropy, t.images_per_sample, t.image_max_pixels, t.predicted_peak_bytes,
    t.predicted_peak_high_bytes, t.predicted_allocated_bytes, t.predicted_reserved_bytes,
    t.predicted_step_time_seconds, t.predicted_samples_per_second, t.memory_budget_bytes, t.peak_allocated_bytes,
    t.peak_reserved_bytes, t.peak_device_bytes, t.margin_bytes, t.requested_bytes, t.allocated_bytes,
    t.step_time_seconds, t.samples_per_second, t.tokens_per_second, t.effective_tokens_per_second, t.objective_value,
    t.timed_steps, t.trainable_parameters, t.total_parameters, t.precision_mode, t.memory_limit, t.error_type,
    t.message, t.reason, t.started_at, t.finished_at, t.wall_seconds, t.run_dir,
    t.predicted_peak_bytes / 1073741824.0 AS predicted_peak_gib,
    t.predicted_peak_high_bytes / 1073741824.0 AS predicted_peak_high_gib,
    t.predicted_allocated_bytes / 1073741824.0 AS predicted_allocated_gib,
    t.predicted_reserved_bytes / 1073741824.0 AS predicted_reserved_gib,
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

# Errors are (predicted - measured) / measured; a negative one is an under-prediction. avg() of a condition is the share of the
# rows in which it holds, rows where it is NULL left out.
_PREDICTION_ACCURACY = """
CREATE VIEW prediction_accuracy AS
WITH errors AS (
    SELECT study_id, CAST(predicted_peak_bytes - peak_device_bytes AS REAL) / peak_device_bytes AS error,
        (predicted_step_time_seconds - step_time_seconds) / step_time_seconds AS step_time_error,
        peak_device_bytes > predicted_peak_high_bytes AS exceeded,
        CASE WHEN margin_bytes >= 0 THEN predicted_peak_high_bytes > memory_budget_bytes END AS refused
    FROM trials WHERE outcome = 'COMPLETED' AND predicted_peak_bytes IS NOT NULL
), ranked AS (
    SELECT *, row_number() OVER (PARTITION BY study_id ORDER BY abs(error)) AS place,
        count(*) OVER (PARTITION BY study_id) AS total
    FROM errors
)
SELECT s.name AS study, count(*) AS trials,
    avg(CASE WHEN place IN ((total + 1) / 2, (total + 2) / 2) THEN abs(error) END) AS median_absolute_error,
    avg(abs(error)) AS mean_absolute_error, avg(error) AS mean_error,
    sum(error < 0) AS under_predictions, avg(error < 0) AS under_prediction_rate,
    CASE WHEN min(error) < 0 THEN min(error) END AS worst_under_prediction,
    avg(exceeded) AS exceeded_rate, avg(refused) AS false_refusal_rate,
    (SELECT count(*) FROM trials AS t WHERE t.study_id = ranked.study_id AND t.outcome = 'OOM'
        AND t.predicted_peak_high_bytes <= t.memory_budget_bytes) AS unforeseen_out_of_memory,
    avg(abs(step_time_error)) AS step_time_mean_absolute_error
FROM ranked JOIN studies AS s ON s.id = ranked.study_id
GROUP BY study_id
"""

_PREDICTED = (
    "(outcome IS NULL OR outcome != 'PREDICTED' OR predicted_peak_bytes IS NOT NULL) AND (predicted_peak_high_bytes IS NULL"
    " OR (predicted_peak_bytes IS NOT NULL AND predicted_peak_high_bytes >= predicted_peak_bytes))"
)

# What changes in the text of `CREATE TABLE trials`; each left side occurs in it once.
_CHANGES = (
    (
        "predicted_peak_bytes INTEGER",
        "predicted_peak_bytes INTEGER, \n\tpredicted_peak_high_bytes INTEGER, \n\tpredicted_allocated_bytes INTEGER, \n\t"
        "predicted_reserved_bytes INTEGER",
    ),
    ("predicted_step_time_seconds FLOAT", "predicted_step_time_seconds FLOAT, \n\tpredicted_samples_per_second FLOAT"),
    ("CONSTRAINT ck_trials_margin", f"CONSTRAINT ck_trials_predicted CHECK ({_PREDICTED}), \n\tCONSTRAINT ck_trials_margin"),
    (
        "(predicted_step_time_seconds IS NULL OR predicted_step_time_seconds > 0)",
        "(predicted_peak_high_bytes IS NULL OR predicted_peak_high_bytes > 0) AND (predicted_allocated_bytes IS NULL OR"
        " predicted_allocated_bytes > 0) AND (predicted_reserved_bytes IS NULL OR predicted_reserved_bytes > 0) AND"
        " (predicted_step_time_seconds IS NULL OR predicted_step_time_seconds > 0) AND (predicted_samples_per_second IS NULL"
        " OR predicted_samples_per_second > 0)",
    ),
)


def upgrade() -> None:
    for view in ("trial_list", "prediction_accuracy"):
        op.execute(f"DROP VIEW {view}")
    _trials()
    op.add_column("trial_documents", sa.Column("prediction", sa.Text))
    for view in (_TRIAL_LIST, _PREDICTION_ACCURACY):
        op.execute(view.strip())


def downgrade() -> None:
    raise NotImplementedError("databases are only upgraded; restore a copy instead")


def _trials() -> None:
    """Makes the table anew, because SQLite cannot change a CHECK, and copies its rows.

    The old table is what is renamed: SQLite would quote the name of a new one, and the text would no longer be the models'.
    """
    connection = op.get_bind()
    stored = "SELECT sql FROM sqlite_master WHERE tbl_name = 'trials' AND sql IS NOT NULL AND type = "
    table = connection.exec_driver_sql(stored + "'table'").scalar_one()
    indexes = list(connection.exec_driver_sql(stored + "'index'").scalars())
    columns = ", ".join(row[1] for row in connection.exec_driver_sql("PRAGMA table_info(trials)"))
    for old, new in _CHANGES:
        if table.count(old) != 1:
            raise CommandError(f"table trials is not that of revision 0001: {old!r} occurs {table.count(old)} times")
        table = table.replace(old, new)
    for statement in (
        "ALTER TABLE trials RENAME TO trials_0001",
        table,
        f"INSERT INTO trials ({columns}) SELECT {columns} FROM trials_0001",
        "DROP TABLE trials_0001",
        *indexes,
    ):
        connection.exec_driver_sql(statement)
