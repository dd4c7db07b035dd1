"""Predicts the configurations of the measured tables anew; what was measured stays. After a change of the predictor:

    .venv/bin/python -m benchmarks.replay.repredict

`simulate` makes the simulated tables again.
"""

import sys
from pathlib import Path

from autofit.config.prediction import Prediction
from autofit.launch.environment import probe
from autofit.predict.devices import CPU
from autofit.predict.many import Forecaster
from autofit.predict.predictor import Predictor
from benchmarks.replay.table import load, save, shrink

TABLES = Path(__file__).parent / "tables"


def main() -> None:
    environment = probe(sys.executable)
    forecaster = Forecaster(Predictor(environment.python, environment.versions, device=CPU))
    for file in sorted(TABLES.glob("cpu_*.jsonl")):
        table = load(file)
        found = forecaster.all_of(list(table.rows), table.header.model, table.budget_bytes)
        rows = []
        for spec, row in table.rows.items():
            answer = found[spec]
            told = shrink(answer, table.header.objective) if isinstance(answer, Prediction) else None
            terms = answer.step_terms if isinstance(answer, Prediction) else {}
            rows.append(row.model_copy(update={"prediction": told, "step_terms": terms}))
        save(file, table.header, rows)
        print(file.name, sum(row.prediction is not None for row in rows), "of", len(rows), "configurations predicted")


if __name__ == "__main__":
    main()
