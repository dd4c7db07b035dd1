"""The tables at the newest revision, as SQLAlchemy sees them.

They are made by the migrations in `db/versions/` alone; a test compares the two to the letter. `db/README.md` explains them.
Only what SQLite 3.26 understands is used, so that an older system's SQLite reads the file too.
"""

from sqlalchemy import CheckConstraint, Column, Float, ForeignKey, Index, Integer, MetaData, Table, Text, UniqueConstraint, text

OUTCOMES = (
    "COMPLETED", "OOM", "HOST_OOM", "GROWTH", "THRASH", "TIMEOUT", "HANG", "DATA_ERROR", "CRASHED", "SKIPPED", "PREDICTED",
)  # fmt: skip
MEASURED_OUTCOMES = ("COMPLETED", "GROWTH", "THRASH")
"""Outcomes of a run that reached its last step: its speed is known."""

OBJECTIVES = ("samples_per_second", "tokens_per_second", "effective_tokens_per_second", "epoch_seconds", "cost_per_epoch")

SPEED_COLUMNS = (
    "step_time_seconds",
    "samples_per_second",
    "tokens_per_second",
    "effective_tokens_per_second",
    "objective_value",
)
POSITIVE_COLUMNS = (
    "predicted_peak_bytes", "predicted_peak_high_bytes", "predicted_allocated_bytes", "predicted_reserved_bytes",
    "predicted_step_time_seconds", "predicted_samples_per_second", "memory_budget_bytes",
    "peak_allocated_bytes", "peak_reserved_bytes", "peak_device_bytes", "requested_bytes",
    *SPEED_COLUMNS, "timed_steps", "trainable_parameters", "total_parameters",
)  # fmt: skip
"""Never zero or negative: what was not measured is NULL."""
BOOLEAN_COLUMNS = (
    "as_asked", "pure_bf16", "offload_optimizer", "offload_param", "gradient_checkpointing",
    "freeze_vision_tower", "freeze_multi_modal_projector", "freeze_language_model", "fused_cross_entropy",
)  # fmt: skip

metadata = MetaData()


def _listed(values: tuple[str, ...]) -> str:
    return ", ".join(f"'{value}'" for value in values)


studies = Table(
    "studies",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", Text, nullable=False),
    Column("created_at", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("engine", Text, nullable=False),
    Column("python", Text, nullable=False),
    Column("executor", Text, nullable=False),
    Column("sampler", Text, nullable=False),
    Column("seed", Integer, nullable=False),
    Column("objective", Text, nullable=False),
    Column("device", Text, nullable=False),
    Column("gpu_mem_bytes", Integer, nullable=False),
    Column("memory_budget_bytes", Integer, nullable=False),
    Column("winner_trial_number", Integer),
    Column("autofit_version", Text, nullable=False),
    Column("hardware", Text, nullable=False),
    Column("record", Text, nullable=False),
    UniqueConstraint("name", name="uq_studies_name"),
    CheckConstraint("status IN ('RUNNING', 'INTERRUPTED', 'FINISHED')", name="ck_studies_status"),
    CheckConstraint(f"objective IN ({_listed(OBJECTIVES)})", name="ck_studies_objective"),
    CheckConstraint("gpu_mem_bytes > 0 AND memory_budget_bytes > 0", name="ck_studies_positive"),
    CheckConstraint("winner_trial_number IS NULL OR winner_trial_number >= 0", name="ck_studies_winner"),
)

trials = Table(
    "trials",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("study_id", Integer, ForeignKey("studies.id", name="fk_trials_study"), nullable=False),
    Column("trial_number", Integer, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("as_asked", Integer),
    Column("config_key", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("outcome", Text),
    Column("phase", Text),
    Column("failed_rank", Integer),
    # knobs
    Column("model", Text, nullable=False),
    Column("method", Text, nullable=False),
    Column("lora_rank", Integer),
    Column("lora_target", Text),
    Column("precision", Text, nullable=False),
    Column("pure_bf16", Integer, nullable=False),
    Column("optimizer", Text, nullable=False),
    Column("micro_batch_size", Integer, nullable=False),
    Column("gradient_accumulation_steps", Integer, nullable=False),
    Column("global_batch_size", Integer, nullable=False),
    Column("cutoff_len", Integer, nullable=False),
    Column("zero_stage", Integer, nullable=False),
    Column("offload_optimizer", Integer, nullable=False),
    Column("offload_param", Integer, nullable=False),
    Column("num_gpus", Integer, nullable=False),
    Column("gradient_checkpointing", Integer, nullable=False),
    Column("freeze_vision_tower", Integer, nullable=False),
    Column("freeze_multi_modal_projector", Integer, nullable=False),
    Column("freeze_language_model", Integer, nullable=False),
    Column("attention", Text, nullable=False),
    Column("fused_cross_entropy", Integer, nullable=False),
    Column("images_per_sample", Integer, nullable=False),
    Column("image_max_pixels", Integer),
    # predictions
    Column("predicted_peak_bytes", Integer),
    Column("predicted_peak_high_bytes", Integer),
    Column("predicted_allocated_bytes", Integer),
    Column("predicted_reserved_bytes", Integer),
    Column("predicted_step_time_seconds", Float),
    Column("predicted_samples_per_second", Float),
    # measurements
    Column("memory_budget_bytes", Integer, nullable=False),
    Column("peak_allocated_bytes", Integer),
    Column("peak_reserved_bytes", Integer),
    Column("peak_device_bytes", Integer),
    Column("margin_bytes", Integer),
    Column("requested_bytes", Integer),
    Column("allocated_bytes", Integer),
    Column("step_time_seconds", Float),
    Column("samples_per_second", Float),
    Column("tokens_per_second", Float),
    Column("effective_tokens_per_second", Float),
    Column("objective_value", Float),
    Column("timed_steps", Integer),
    Column("trainable_parameters", Integer),
    Column("total_parameters", Integer),
    Column("precision_mode", Text),
    Column("memory_limit", Text),
    # story
    Column("error_type", Text),
    Column("message", Text),
    Column("reason", Text, nullable=False),
    Column("started_at", Text, nullable=False),
    Column("finished_at", Text),
    Column("wall_seconds", Float),
    Column("run_dir", Text, nullable=False),
    # JSON, short
    Column("versions", Text),
    Column("hardware", Text),
    Column("timings", Text),
    UniqueConstraint("study_id", "trial_number", name="uq_trials_number"),
    CheckConstraint("trial_number >= 0 AND attempt >= 1", name="ck_trials_counts"),
    CheckConstraint("purpose IN ('search', 'confirm', 'launch')", name="ck_trials_purpose"),
    CheckConstraint("state IN ('RUNNING', 'FINISHED')", name="ck_trials_state"),
    CheckConstraint(f"outcome IN ({_listed(OUTCOMES)})", name="ck_trials_outcome"),
    CheckConstraint(
        "(state = 'RUNNING') = (outcome IS NULL) AND (outcome IS NULL) = (finished_at IS NULL)"
        " AND (outcome IS NOT NULL OR (phase IS NULL AND failed_rank IS NULL"
        " AND peak_allocated_bytes IS NULL AND peak_reserved_bytes IS NULL AND peak_device_bytes IS NULL"
        " AND requested_bytes IS NULL AND allocated_bytes IS NULL AND wall_seconds IS NULL AND error_type IS NULL"
        " AND message IS NULL))",
        name="ck_trials_finished",
    ),
    CheckConstraint(
        f"outcome NOT IN ({_listed(MEASURED_OUTCOMES)}) OR (peak_device_bytes IS NOT NULL AND step_time_seconds IS NOT NULL"
        " AND samples_per_second IS NOT NULL AND tokens_per_second IS NOT NULL AND objective_value IS NOT NULL)",
        name="ck_trials_measured",
    ),
    CheckConstraint(
        f"(outcome IS NOT NULL AND outcome IN ({_listed(MEASURED_OUTCOMES)})) OR ("
        + " AND ".join(f"{name} IS NULL" for name in SPEED_COLUMNS)
        + ")",
        name="ck_trials_unmeasured",
    ),
    CheckConstraint(
        "outcome NOT IN ('SKIPPED', 'PREDICTED') OR (peak_allocated_bytes IS NULL AND peak_reserved_bytes IS NULL"
        " AND peak_device_bytes IS NULL AND requested_bytes IS NULL AND allocated_bytes IS NULL)",
        name="ck_trials_not_run",
    ),
    CheckConstraint(
        "(outcome IS NULL OR outcome != 'PREDICTED' OR predicted_peak_bytes IS NOT NULL)"
        " AND (predicted_peak_high_bytes IS NULL"
        " OR (predicted_peak_bytes IS NOT NULL AND predicted_peak_high_bytes >= predicted_peak_bytes))",
        name="ck_trials_predicted",
    ),
    CheckConstraint(
        "(margin_bytes IS NULL) = (peak_device_bytes IS NULL)"
        " AND (margin_bytes IS NULL OR margin_bytes = memory_budget_bytes - peak_device_bytes)",
        name="ck_trials_margin",
    ),
    CheckConstraint(
        " AND ".join(f"({name} IS NULL OR {name} > 0)" for name in POSITIVE_COLUMNS)
        + " AND (allocated_bytes IS NULL OR allocated_bytes >= 0) AND (wall_seconds IS NULL OR wall_seconds >= 0)"
        " AND (failed_rank IS NULL OR failed_rank >= 0)",
        name="ck_trials_positive",
    ),
    CheckConstraint(
        "micro_batch_size > 0 AND gradient_accumulation_steps > 0 AND num_gpus > 0 AND cutoff_len > 0"
        " AND global_batch_size = micro_batch_size * gradient_accumulation_steps * num_gpus"
        " AND zero_stage IN (0, 1, 2, 3) AND (method = 'lora') = (lora_rank IS NOT NULL)"
        " AND images_per_sample >= 0 AND (images_per_sample = 0) = (image_max_pixels IS NULL)",
        name="ck_trials_knobs",
    ),
    CheckConstraint(" AND ".join(f"{name} IN (0, 1)" for name in BOOLEAN_COLUMNS), name="ck_trials_booleans"),
)

# The long JSON, apart from `trials`, whose rows are then so short that filtering 100,000 of them takes milliseconds.
trial_documents = Table(
    "trial_documents",
    metadata,
    Column("trial_id", Integer, ForeignKey("trials.id", name="fk_trial_documents_trial"), primary_key=True),
    Column("spec", Text, nullable=False),
    Column("result", Text),
    Column("prediction", Text),
)

FITS = "outcome = 'COMPLETED' AND purpose = 'search' AND margin_bytes >= 0"
"""Trials of the search that ran to the end inside the budget: the candidates."""

Index(
    "uq_trials_configuration",
    trials.c.study_id,
    trials.c.config_key,
    trials.c.purpose,
    unique=True,
    sqlite_where=text("purpose != 'launch'"),
)
Index("ix_trials_state", trials.c.study_id, trials.c.state)
Index("ix_trials_best", trials.c.study_id, trials.c.objective_value, sqlite_where=text(FITS))
Index(
    "ix_trials_pareto",
    trials.c.study_id,
    trials.c.samples_per_second,
    trials.c.peak_device_bytes,
    sqlite_where=text(FITS),
)

queue = Table(
    "queue",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("study", Text, nullable=False),
    Column("created_at", Text, nullable=False),
    Column("submitted_by", Text, nullable=False),
    Column("request", Text, nullable=False),
    Column("wish", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("device_set", Text),
    Column("attempt", Integer, nullable=False),
    Column("started_at", Text),
    Column("finished_at", Text),
    Column("message", Text),
    UniqueConstraint("study", name="uq_queue_study"),
    CheckConstraint("wish IN ('RUN', 'PAUSE', 'CANCEL')", name="ck_queue_wish"),
    CheckConstraint("state IN ('QUEUED', 'RUNNING', 'PAUSED', 'CANCELLED', 'DONE', 'FAILED')", name="ck_queue_state"),
    CheckConstraint(
        "attempt >= 0 AND (attempt = 0) = (started_at IS NULL) AND (attempt = 0) = (device_set IS NULL)",
        name="ck_queue_started",
    ),
    CheckConstraint("(state IN ('CANCELLED', 'DONE', 'FAILED')) = (finished_at IS NOT NULL)", name="ck_queue_finished"),
)
Index("ix_queue_state", queue.c.state, queue.c.id)
