BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0006');
CREATE TABLE queue (
	id INTEGER NOT NULL, 
	study TEXT NOT NULL, 
	created_at TEXT NOT NULL, 
	submitted_by TEXT NOT NULL, 
	request TEXT NOT NULL, 
	wish TEXT NOT NULL, 
	state TEXT NOT NULL, 
	device_set TEXT, 
	attempt INTEGER NOT NULL, 
	started_at TEXT, 
	finished_at TEXT, 
	message TEXT, 
	PRIMARY KEY (id), 
	CONSTRAINT uq_queue_study UNIQUE (study), 
	CONSTRAINT ck_queue_wish CHECK (wish IN ('RUN', 'PAUSE', 'CANCEL')), 
	CONSTRAINT ck_queue_state CHECK (state IN ('QUEUED', 'RUNNING', 'PAUSED', 'CANCELLED', 'DONE', 'FAILED')), 
	CONSTRAINT ck_queue_started CHECK (attempt >= 0 AND (attempt = 0) = (started_at IS NULL) AND (attempt = 0) = (device_set IS NULL)), 
	CONSTRAINT ck_queue_finished CHECK ((state IN ('CANCELLED', 'DONE', 'FAILED')) = (finished_at IS NOT NULL))
);
CREATE TABLE studies (
	id INTEGER NOT NULL, 
	name TEXT NOT NULL, 
	created_at TEXT NOT NULL, 
	status TEXT NOT NULL, 
	model TEXT NOT NULL, 
	engine TEXT NOT NULL, 
	python TEXT NOT NULL, 
	executor TEXT NOT NULL, 
	sampler TEXT NOT NULL, 
	seed INTEGER NOT NULL, 
	objective TEXT NOT NULL, 
	device TEXT NOT NULL, 
	gpu_mem_bytes INTEGER NOT NULL, 
	memory_budget_bytes INTEGER NOT NULL, 
	winner_trial_number INTEGER, 
	autofit_version TEXT NOT NULL, 
	hardware TEXT NOT NULL, 
	record TEXT NOT NULL, 
	PRIMARY KEY (id), 
	CONSTRAINT uq_studies_name UNIQUE (name), 
	CONSTRAINT ck_studies_status CHECK (status IN ('RUNNING', 'INTERRUPTED', 'FINISHED')), 
	CONSTRAINT ck_studies_objective CHECK (objective IN ('samples_per_second', 'tokens_per_second', 'effective_tokens_per_second', 'epoch_seconds', 'cost_per_epoch')), 
	CONSTRAINT ck_studies_positive CHECK (gpu_mem_bytes > 0 AND memory_budget_bytes > 0), 
	CONSTRAINT ck_studies_winner CHECK (winner_trial_number IS NULL OR winner_trial_number >= 0)
);
INSERT INTO "studies" VALUES(1,'first','2026-11-23T12:00:00.000000+00:00','RUNNING','tiny-llama','transformers','python3','local','tpe',7,'samples_per_second','cuda',85899345920,77309411328,NULL,'0.1.0','{"device": "cuda", "devices": [{"index": 0, "uuid": "GPU-1", "name": "card", "memory_bytes": 85899345920}], "cpu_count": 8, "host_memory_bytes": 274877906944, "driver_version": null}','{"name": "first", "created_at": "2026-11-23T12:00:00Z", "status": "RUNNING", "space": {"name": "small", "description": "", "model": {"preset": "tiny-llama", "path": null, "id": null, "config": null}, "dataset": null, "num_gpus": null, "planned_gpus": 1, "global_batch_size": null, "objective": "samples_per_second", "gpu_hour_price": null, "samples_per_epoch": null, "quality": {"max_truncated_share": null, "min_cutoff_len": null, "allow_freezing": [], "precision": []}, "fixed": {}, "knobs": {"micro_batch_size": [1, 2, 4, 8], "zero_stage": [0, 3]}, "conditions": [], "reference": {"micro_batch_size": 1, "zero_stage": 3}, "measure": {"warmup_steps": 2, "steps": 5, "evaluate": false, "save": false, "resume": false}, "compromise_trials": 3}, "model": {"label": "tiny-llama", "config": {"model_type": "llama", "hidden_size": 64}, "path": null, "id": null}, "hardware": {"device": "cuda", "devices": [{"index": 0, "uuid": "GPU-1", "name": "card", "memory_bytes": 85899345920}], "cpu_count": 8, "host_memory_bytes": 274877906944, "driver_version": null}, "engine": "transformers", "python": "python3", "executor": "local", "sampler": "tpe", "seed": 7, "gpu_mem_bytes": 85899345920, "memory_budget_bytes": 77309411328, "winner_trial_number": null, "stop_reason": null, "autofit_version": "0.1.0", "floor": null, "source_path": null, "source_yaml": null}');
CREATE TABLE trial_documents (
	trial_id INTEGER NOT NULL, 
	spec TEXT NOT NULL, 
	result TEXT, prediction TEXT, 
	PRIMARY KEY (trial_id), 
	CONSTRAINT fk_trial_documents_trial FOREIGN KEY(trial_id) REFERENCES trials (id)
);
INSERT INTO "trial_documents" VALUES(1,'{"model": {"preset": "tiny-llama", "path": null, "id": null, "config": null}, "method": "full", "lora": {"rank": 8, "target": "all"}, "precision": "bf16", "pure_bf16": false, "optimizer": "adamw_torch", "micro_batch_size": 1, "gradient_accumulation_steps": 1, "cutoff_len": 2048, "zero_stage": 0, "offload_optimizer": false, "offload_param": false, "num_gpus": 1, "gradient_checkpointing": true, "freeze_vision_tower": true, "freeze_multi_modal_projector": true, "freeze_language_model": false, "attention": "auto", "fused_cross_entropy": false, "images": {"per_sample": 1, "max_pixels": 589824}}','{"schema_version": 1, "outcome": "COMPLETED", "phase": "backward", "error_type": null, "message": null, "failed_rank": null, "requested_bytes": null, "allocated_bytes": null, "peak_allocated_bytes": 50465865728, "peak_reserved_bytes": 52613349376, "peak_device_bytes": 53687091200, "step_time_seconds": 4.0, "samples_per_second": 2.0, "tokens_per_second": 4096.0, "effective_tokens_per_second": 4000.0, "timed_steps": 5, "epoch": null, "losses": [2.5, 2.25], "resumed_loss": null, "resume_problem": null, "growth_bytes_per_step": null, "crossing_step": null, "crossing_step_low": null, "crossing_step_high": null, "trainable_parameters": 1000, "total_parameters": 2000, "precision_mode": "bf16 autocast, fp32 masters", "memory_limit": null, "not_measured": [], "versions": {"torch": "2.13.0"}, "hardware": {"gpu": "card"}, "timings": {"load": 2.5}, "ranks": [{"rank": 0, "outcome": "COMPLETED", "phase": null, "error_type": null, "message": null, "requested_bytes": null, "allocated_bytes": null, "peak_allocated_bytes": null, "peak_reserved_bytes": null, "peak_device_bytes": null, "phase_peak_bytes": {}, "phase_allocated_bytes": {}, "step_peak_bytes": [], "step_seconds": [4.0, 4.0], "step_cpu_seconds": [], "step_tokens": [], "step_effective_tokens": [], "step_batch_tokens": [], "step_batch_patches": [], "step_alloc_retries": [], "baseline_bytes": null, "num_alloc_retries": null}]}','{"peak_allocated_bytes": 48318382080, "peak_allocated_bytes_low": 45097156608, "peak_allocated_bytes_high": 51539607552, "peak_reserved_bytes": 50465865728, "peak_reserved_bytes_low": 47244640256, "peak_reserved_bytes_high": 53687091200, "peak_device_bytes": 51539607552, "peak_device_bytes_low": 48318382080, "peak_device_bytes_high": 54760833024, "step_time_seconds": 5.0, "step_terms": {}, "samples_per_second": 1.6, "tokens_per_second": 3276.8, "fits": true, "alloc_retries": 0, "terms": {"weights": 42949672960, "activations": 8589934592}, "uncorrected_bytes": {}, "fragmentation": null, "phase": "backward", "precision_mode": "bf16 autocast, fp32 masters", "device_model": "a100-80gb", "assumptions": ["CUDA context 0.5 GiB"], "not_modelled": [], "versions": {"torch": "2.13.0"}}');
INSERT INTO "trial_documents" VALUES(2,'{"model": {"preset": "tiny-llama", "path": null, "id": null, "config": null}, "method": "full", "lora": {"rank": 8, "target": "all"}, "precision": "bf16", "pure_bf16": false, "optimizer": "adamw_torch", "micro_batch_size": 2, "gradient_accumulation_steps": 1, "cutoff_len": 2048, "zero_stage": 0, "offload_optimizer": false, "offload_param": false, "num_gpus": 1, "gradient_checkpointing": true, "freeze_vision_tower": true, "freeze_multi_modal_projector": true, "freeze_language_model": false, "attention": "auto", "fused_cross_entropy": false, "images": {"per_sample": 1, "max_pixels": 589824}}','{"schema_version": 1, "outcome": "OOM", "phase": "backward", "error_type": "OutOfMemoryError", "message": "CUDA out of memory. Tried to allocate 2.00 GiB", "failed_rank": 0, "requested_bytes": 2147483648, "allocated_bytes": 75161927680, "peak_allocated_bytes": null, "peak_reserved_bytes": null, "peak_device_bytes": null, "step_time_seconds": null, "samples_per_second": null, "tokens_per_second": null, "effective_tokens_per_second": null, "timed_steps": null, "epoch": null, "losses": [], "resumed_loss": null, "resume_problem": null, "growth_bytes_per_step": null, "crossing_step": null, "crossing_step_low": null, "crossing_step_high": null, "trainable_parameters": null, "total_parameters": null, "precision_mode": null, "memory_limit": null, "not_measured": [], "versions": {}, "hardware": {}, "timings": {}, "ranks": []}',NULL);
INSERT INTO "trial_documents" VALUES(3,'{"model": {"preset": "tiny-llama", "path": null, "id": null, "config": null}, "method": "full", "lora": {"rank": 8, "target": "all"}, "precision": "bf16", "pure_bf16": false, "optimizer": "adamw_torch", "micro_batch_size": 3, "gradient_accumulation_steps": 1, "cutoff_len": 2048, "zero_stage": 0, "offload_optimizer": false, "offload_param": false, "num_gpus": 1, "gradient_checkpointing": true, "freeze_vision_tower": true, "freeze_multi_modal_projector": true, "freeze_language_model": false, "attention": "auto", "fused_cross_entropy": false, "images": {"per_sample": 1, "max_pixels": 589824}}',NULL,NULL);
CREATE TABLE trials (
	id INTEGER NOT NULL, 
	study_id INTEGER NOT NULL, 
	trial_number INTEGER NOT NULL, 
	purpose TEXT NOT NULL, 
	as_asked INTEGER, 
	config_key TEXT NOT NULL, 
	state TEXT NOT NULL, 
	attempt INTEGER NOT NULL, 
	outcome TEXT, 
	phase TEXT, 
	failed_rank INTEGER, 
	model TEXT NOT NULL, 
	method TEXT NOT NULL, 
	lora_rank INTEGER, 
	lora_target TEXT, 
	precision TEXT NOT NULL, 
	pure_bf16 INTEGER NOT NULL, 
	optimizer TEXT NOT NULL, 
	micro_batch_size INTEGER NOT NULL, 
	gradient_accumulation_steps INTEGER NOT NULL, 
	global_batch_size INTEGER NOT NULL, 
	cutoff_len INTEGER NOT NULL, 
	zero_stage INTEGER NOT NULL, 
	offload_optimizer INTEGER NOT NULL, 
	offload_param INTEGER NOT NULL, 
	num_gpus INTEGER NOT NULL, 
	gradient_checkpointing INTEGER NOT NULL, 
	freeze_vision_tower INTEGER NOT NULL, 
	freeze_multi_modal_projector INTEGER NOT NULL, 
	freeze_language_model INTEGER NOT NULL, 
	attention TEXT NOT NULL, 
	fused_cross_entropy INTEGER NOT NULL, 
	images_per_sample INTEGER NOT NULL, 
	image_max_pixels INTEGER, 
	predicted_peak_bytes INTEGER, 
	predicted_peak_high_bytes INTEGER, 
	predicted_allocated_bytes INTEGER, 
	predicted_reserved_bytes INTEGER, 
	predicted_step_time_seconds FLOAT, 
	predicted_samples_per_second FLOAT, 
	memory_budget_bytes INTEGER NOT NULL, 
	peak_allocated_bytes INTEGER, 
	peak_reserved_bytes INTEGER, 
	peak_device_bytes INTEGER, 
	margin_bytes INTEGER, 
	requested_bytes INTEGER, 
	allocated_bytes INTEGER, 
	step_time_seconds FLOAT, 
	samples_per_second FLOAT, 
	tokens_per_second FLOAT, 
	effective_tokens_per_second FLOAT, 
	objective_value FLOAT, 
	timed_steps INTEGER, 
	trainable_parameters INTEGER, 
	total_parameters INTEGER, 
	precision_mode TEXT, 
	memory_limit TEXT, 
	error_type TEXT, 
	message TEXT, 
	reason TEXT NOT NULL, 
	started_at TEXT NOT NULL, 
	finished_at TEXT, 
	wall_seconds FLOAT, 
	run_dir TEXT NOT NULL, 
	versions TEXT, 
	hardware TEXT, 
	timings TEXT, 
	PRIMARY KEY (id), 
	CONSTRAINT uq_trials_number UNIQUE (study_id, trial_number), 
	CONSTRAINT ck_trials_counts CHECK (trial_number >= 0 AND attempt >= 1), 
	CONSTRAINT ck_trials_purpose CHECK (purpose IN ('search', 'confirm', 'launch')), 
	CONSTRAINT ck_trials_state CHECK (state IN ('RUNNING', 'FINISHED')), 
	CONSTRAINT ck_trials_outcome CHECK (outcome IN ('COMPLETED', 'OOM', 'HOST_OOM', 'GROWTH', 'THRASH', 'TIMEOUT', 'HANG', 'DATA_ERROR', 'CRASHED', 'SKIPPED', 'PREDICTED')), 
	CONSTRAINT ck_trials_finished CHECK ((state = 'RUNNING') = (outcome IS NULL) AND (outcome IS NULL) = (finished_at IS NULL) AND (outcome IS NOT NULL OR (phase IS NULL AND failed_rank IS NULL AND peak_allocated_bytes IS NULL AND peak_reserved_bytes IS NULL AND peak_device_bytes IS NULL AND requested_bytes IS NULL AND allocated_bytes IS NULL AND wall_seconds IS NULL AND error_type IS NULL AND message IS NULL))), 
	CONSTRAINT ck_trials_measured CHECK (outcome NOT IN ('COMPLETED', 'GROWTH', 'THRASH') OR (peak_device_bytes IS NOT NULL AND step_time_seconds IS NOT NULL AND samples_per_second IS NOT NULL AND tokens_per_second IS NOT NULL AND objective_value IS NOT NULL)), 
	CONSTRAINT ck_trials_unmeasured CHECK ((outcome IS NOT NULL AND outcome IN ('COMPLETED', 'GROWTH', 'THRASH')) OR (step_time_seconds IS NULL AND samples_per_second IS NULL AND tokens_per_second IS NULL AND effective_tokens_per_second IS NULL AND objective_value IS NULL)), 
	CONSTRAINT ck_trials_not_run CHECK (outcome NOT IN ('SKIPPED', 'PREDICTED') OR (peak_allocated_bytes IS NULL AND peak_reserved_bytes IS NULL AND peak_device_bytes IS NULL AND requested_bytes IS NULL AND allocated_bytes IS NULL)), 
	CONSTRAINT ck_trials_predicted CHECK ((outcome IS NULL OR outcome != 'PREDICTED' OR predicted_peak_bytes IS NOT NULL) AND (predicted_peak_high_bytes IS NULL OR (predicted_peak_bytes IS NOT NULL AND predicted_peak_high_bytes >= predicted_peak_bytes))), 
	CONSTRAINT ck_trials_margin CHECK ((margin_bytes IS NULL) = (peak_device_bytes IS NULL) AND (margin_bytes IS NULL OR margin_bytes = memory_budget_bytes - peak_device_bytes)), 
	CONSTRAINT ck_trials_positive CHECK ((predicted_peak_bytes IS NULL OR predicted_peak_bytes > 0) AND (predicted_peak_high_bytes IS NULL OR predicted_peak_high_bytes > 0) AND (predicted_allocated_bytes IS NULL OR predicted_allocated_bytes > 0) AND (predicted_reserved_bytes IS NULL OR predicted_reserved_bytes > 0) AND (predicted_step_time_seconds IS NULL OR predicted_step_time_seconds > 0) AND (predicted_samples_per_second IS NULL OR predicted_samples_per_second > 0) AND (memory_budget_bytes IS NULL OR memory_budget_bytes > 0) AND (peak_allocated_bytes IS NULL OR peak_allocated_bytes > 0) AND (peak_reserved_bytes IS NULL OR peak_reserved_bytes > 0) AND (peak_device_bytes IS NULL OR peak_device_bytes > 0) AND (requested_bytes IS NULL OR requested_bytes > 0) AND (step_time_seconds IS NULL OR step_time_seconds > 0) AND (samples_per_second IS NULL OR samples_per_second > 0) AND (tokens_per_second IS NULL OR tokens_per_second > 0) AND (effective_tokens_per_second IS NULL OR effective_tokens_per_second > 0) AND (objective_value IS NULL OR objective_value > 0) AND (timed_steps IS NULL OR timed_steps > 0) AND (trainable_parameters IS NULL OR trainable_parameters > 0) AND (total_parameters IS NULL OR total_parameters > 0) AND (allocated_bytes IS NULL OR allocated_bytes >= 0) AND (wall_seconds IS NULL OR wall_seconds >= 0) AND (failed_rank IS NULL OR failed_rank >= 0)), 
	CONSTRAINT ck_trials_knobs CHECK (micro_batch_size > 0 AND gradient_accumulation_steps > 0 AND num_gpus > 0 AND cutoff_len > 0 AND global_batch_size = micro_batch_size * gradient_accumulation_steps * num_gpus AND zero_stage IN (0, 1, 2, 3) AND (method = 'lora') = (lora_rank IS NOT NULL) AND images_per_sample >= 0 AND (images_per_sample = 0) = (image_max_pixels IS NULL)), 
	CONSTRAINT ck_trials_booleans CHECK (as_asked IN (0, 1) AND pure_bf16 IN (0, 1) AND offload_optimizer IN (0, 1) AND offload_param IN (0, 1) AND gradient_checkpointing IN (0, 1) AND freeze_vision_tower IN (0, 1) AND freeze_multi_modal_projector IN (0, 1) AND freeze_language_model IN (0, 1) AND fused_cross_entropy IN (0, 1)), 
	CONSTRAINT fk_trials_study FOREIGN KEY(study_id) REFERENCES studies (id)
);
INSERT INTO "trials" VALUES(1,1,0,'search',1,'4f568d13f2b187c9','FINISHED',1,'COMPLETED','backward',NULL,'tiny-llama','full',NULL,NULL,'bf16',0,'adamw_torch',1,1,1,2048,0,0,0,1,1,1,1,0,'auto',0,1,589824,51539607552,54760833024,48318382080,50465865728,5.0,1.6,77309411328,50465865728,52613349376,53687091200,23622320128,NULL,NULL,4.0,2.0,4096.0,4000.0,2.0,5,1000,2000,'bf16 autocast, fp32 masters',NULL,NULL,NULL,'the reference','2026-11-23T12:00:00.000000+00:00','2026-11-23T12:00:00.000000+00:00',0.0,'runs/first/0','{"torch": "2.13.0"}','{"gpu": "card"}','{"load": 2.5}');
INSERT INTO "trials" VALUES(2,1,1,'search',1,'1eea76f0644646b4','FINISHED',1,'OOM','backward',0,'tiny-llama','full',NULL,NULL,'bf16',0,'adamw_torch',2,1,2,2048,0,0,0,1,1,1,1,0,'auto',0,1,589824,NULL,NULL,NULL,NULL,NULL,NULL,77309411328,NULL,NULL,NULL,NULL,2147483648,75161927680,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'OutOfMemoryError','CUDA out of memory. Tried to allocate 2.00 GiB','sampled','2026-11-23T12:01:00.000000+00:00','2026-11-23T12:00:00.000000+00:00',NULL,'runs/first/1','{}','{}','{}');
INSERT INTO "trials" VALUES(3,1,2,'search',1,'4001a97874a18a88','RUNNING',1,NULL,NULL,NULL,'tiny-llama','full',NULL,NULL,'bf16',0,'adamw_torch',3,1,3,2048,0,0,0,1,1,1,1,0,'auto',0,1,589824,NULL,NULL,NULL,NULL,NULL,NULL,77309411328,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'sampled','2026-11-23T12:02:00.000000+00:00',NULL,NULL,'runs/first/2',NULL,NULL,NULL);
CREATE VIEW pareto_front AS
WITH points AS (
    SELECT DISTINCT study_id, samples_per_second, peak_device_bytes FROM trials WHERE outcome = 'COMPLETED' AND purpose = 'search' AND margin_bytes >= 0
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
    AND t.peak_device_bytes = c.peak_device_bytes AND outcome = 'COMPLETED' AND purpose = 'search' AND margin_bytes >= 0
JOIN studies AS s ON s.id = t.study_id
WHERE c.least_of_faster IS NULL OR c.peak_device_bytes < c.least_of_faster;
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
GROUP BY study_id;
CREATE INDEX ix_queue_state ON queue (state, id);
CREATE INDEX ix_trials_best ON trials (study_id, objective_value) WHERE outcome = 'COMPLETED' AND purpose = 'search' AND margin_bytes >= 0;
CREATE INDEX ix_trials_pareto ON trials (study_id, samples_per_second, peak_device_bytes) WHERE outcome = 'COMPLETED' AND purpose = 'search' AND margin_bytes >= 0;
CREATE INDEX ix_trials_state ON trials (study_id, state);
CREATE UNIQUE INDEX uq_trials_configuration ON trials (study_id, config_key, purpose) WHERE purpose != 'launch';
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
FROM trials AS t CROSS JOIN studies AS s ON s.id = t.study_id;
CREATE VIEW best_trials AS
SELECT s.name AS study, s.objective, t.*
FROM studies AS s JOIN trials AS t ON t.id = (
    SELECT id FROM trials
    WHERE study_id = s.id AND outcome = 'COMPLETED' AND purpose = 'search' AND margin_bytes >= 0 AND coalesce(as_asked, 1)
    ORDER BY objective_value DESC, trial_number LIMIT 1
);
COMMIT;
