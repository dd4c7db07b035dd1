"""Whether a trial trains what its study's user asked for, and best trials that do.

Revision ID: 0006
Revises: 0005
"""
# ruff: noqa: S608 - the only text put into the statements is fixed here

from alembic import op
from alembic.util import CommandError

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# As in 0002, with the column that this revision adds.
_TRIAL_LIST = """
CREATE VIEW trial_list AS
SELECT s.name AS study, t.trial_number,
    t.purpose, t.as_asked, t.config_key, t.state, t.attempt, t.outcome, t.phase, t.failed_rank, t.model, t.method, t.lora_rank,
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

# One walk down an index a study; the lower number wins a tie.
_BEST_TRIALS = """
CREATE VIEW best_trials AS
SELECT s.name AS study, s.objective, t.*
FROM studies AS s JOIN trials AS t ON t.id = (
    SELECT id FROM trials
    WHERE study_id = s.id AND outcome = 'COMPLETED' AND purpose = 'search' AND margin_bytes >= 0 AND coalesce(as_asked, 1)
    ORDER BY objective_value DESC, trial_number LIMIT 1
)
"""

# What changes in the text of `CREATE TABLE trials`; each left side occurs in it once.
_CHANGES = (
    ("purpose TEXT NOT NULL, \n\t", "purpose TEXT NOT NULL, \n\tas_asked INTEGER, \n\t"),
    ("CHECK (pure_bf16 IN (0, 1)", "CHECK (as_asked IN (0, 1) AND pure_bf16 IN (0, 1)"),
)


def upgrade() -> None:
    """Adds the column, empty: `schema.upgrade` fills it from the records, which takes more than SQL."""
    for view in ("trial_list", "best_trials"):
        op.execute(f"DROP VIEW {view}")
    _trials()
    for view in (_TRIAL_LIST, _BEST_TRIALS):
        op.execute(view.strip())


def downgrade() -> None:
    raise NotImplementedError("databases are only upgraded; restore a copy instead")


def _trials() -> None:
    """Makes the table anew, because SQLite cannot change a CHECK, and copies its rows (as 0002 does)."""
    connection = op.get_bind()
    stored = "SELECT sql FROM sqlite_master WHERE tbl_name = 'trials' AND sql IS NOT NULL AND type = "
    table = connection.exec_driver_sql(stored + "'table'").scalar_one()
    indexes = list(connection.exec_driver_sql(stored + "'index'").scalars())
    columns = ", ".join(row[1] for row in connection.exec_driver_sql("PRAGMA table_info(trials)"))
    for old, new in _CHANGES:
        if table.count(old) != 1:
            raise CommandError(f"table trials is not that of revision 0005: {old!r} occurs {table.count(old)} times")
        table = table.replace(old, new)
    for statement in (
        "ALTER TABLE trials RENAME TO trials_0005",
        table,
        f"INSERT INTO trials ({columns}) SELECT {columns} FROM trials_0005",
        "DROP TABLE trials_0005",
        *indexes,
    ):
        connection.exec_driver_sql(statement)
