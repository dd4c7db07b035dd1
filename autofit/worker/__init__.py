"""The island: runs inside the training environment, in the interpreter that has torch.

It imports nothing of autofit but this package: the standard library and the torch stack only. Orders come in as JSON files
(`spec.json`, an `autofit.config.trial.RunSpec`), results go out as JSON files (`result.json`, an
`autofit.config.result.TrialResult`); the field names here are those models' names.

Map: `__main__` verbs; `supervisor` starts and ends ranks; `rank` one rank's life; `engines/` the training loops; `models`
(build, freeze, adapters; shared with `trace`), `batches` (the worst batch), `meter` (memory and time), `outcomes` (what an
exception means), `merge` (rank files -> result.json); `trace*` what two steps allocate
without data; `profile*` how long the training data is.
"""
