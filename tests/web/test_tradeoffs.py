"""The service's front and compromise table are those of the command line and the report, though it reads few trials whole."""

import random
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from store_records import NOON, completed, out_of_memory, prediction, study_record

from autofit.cli.findings_view import documents
from autofit.config.model import resolve_model
from autofit.config.record import TrialRecord
from autofit.config.result import TrialResult
from autofit.config.space import SearchSpace
from autofit.config.trial import TrialSpec
from autofit.store import Store
from autofit.tuning.findings import Findings, find
from autofit.tuning.winner import ranking
from autofit.web import tradeoffs

TRIALS = 420
FLOOR = {"image_max_pixels": 50176, "lengths": [0, 120, 200], "longer": [100, 40, 7]}


def space(objective: str) -> SearchSpace:
    """Every kind of change: data, parts, adapters, precision, optimizer; and every way to run."""
    tiny = SearchSpace.load("tiny_qwen2_5_vl").model_dump(exclude_defaults=True)
    fixed = {name: value for name, value in tiny["fixed"].items() if name not in {"optimizer", "precision"}}
    more = {
        "optimizer": ["adamw_torch", "adamw_torch_fused", "adafactor"],
        "precision": ["fp32", "bf16"],
        "offload_optimizer": [False, True],
    }
    reference = {**tiny["reference"], "optimizer": "adamw_torch", "precision": "fp32", "offload_optimizer": False}
    changed = {"fixed": fixed, "knobs": {**tiny["knobs"], **more}, "reference": reference, "objective": objective}
    return SearchSpace.model_validate({**tiny, **changed})


def measured(chance: random.Random) -> TrialResult:
    """Few different figures, so that many tie."""
    speed, peak = 1.0 + chance.randint(0, 12) / 4, 50.0 + 2 * chance.randint(0, 12)
    varied = {"tokens_per_second": 100.0 * chance.randint(1, 9), "effective_tokens_per_second": 90.0 * chance.randint(1, 9)}
    return chance.choice(
        [completed(speed, peak, **varied)] * 6
        + [completed(speed, peak, outcome="GROWTH"), completed(speed, peak, outcome="THRASH")]
        + [out_of_memory(), out_of_memory(peak_device_bytes=int((60 + peak / 10) * 2**30))]
        + [TrialResult(outcome="CRASHED", message="no"), TrialResult(outcome="TIMEOUT")]
    )


def predicted(chance: random.Random, spec: TrialSpec) -> Any:
    speed, peak = 1.0 + chance.randint(0, 12) / 4, 50.0 + 2 * chance.randint(0, 15)
    told = {"samples_per_second": speed, "tokens_per_second": speed * spec.cutoff_len, "fits": peak < 71}
    return prediction(peak, peak + 1, **told)


def store_study(database: Path, seed: int, objective: str, device: str) -> Findings:
    """A study of TRIALS random trials, and some that confirm; what `tuning.findings` finds in it."""
    chance = random.Random(seed)
    searched = space(objective)
    model = resolve_model(searched.model)
    template = study_record()
    hardware = template.hardware.model_copy(update={"device": device, "devices": template.hardware.devices * 2})
    study = study_record("many", space=searched.model_dump(), model=model, hardware=hardware, floor=FLOOR)
    from autofit.config.space import enumerate_space

    legal = enumerate_space(searched, model, 2, study.floor)
    points = chance.sample(legal.points, TRIALS)
    trials = [trial(chance, number, spec, device) for number, spec in enumerate([*points, *points[:200]])]
    ranked = ranking(study, trials, legal)
    fitting = [each for each in trials if each.result and each.result.outcome == "PREDICTED" and not legal.breaches(each.spec)]
    winner = ranked[0] if device == "cuda" else fitting[0]
    with Store.open(str(database)) as store:
        store.create_study(study)
        store.add_trials("many", trials)
        store.set_study_status("many", "FINISHED", winner.trial_number)
        return find(store.study("many"), store.trials("many"))


def trial(chance: random.Random, number: int, spec: TrialSpec, device: str) -> TrialRecord:
    told = predicted(chance, spec) if chance.random() < (0.9 if device == "none" else 0.5) else None
    result = measured(chance) if number < TRIALS else completed(99.0, 40.0)  # a confirmation must not stand for a search trial
    if device == "none":
        result = TrialResult(outcome="PREDICTED" if told and told.fits else "SKIPPED", message="m")
    return TrialRecord(
        study="many", trial_number=number, purpose="search" if number < TRIALS else "confirm", spec=spec, reason="r",
        run_dir=".", started_at=NOON, finished_at=NOON + timedelta(seconds=1), prediction=told, result=result,
    )  # fmt: skip


@pytest.mark.parametrize("device", ["cuda", "none"])
@pytest.mark.parametrize(
    ("seed", "objective"), [(1, "samples_per_second"), (2, "tokens_per_second"), (3, "effective_tokens_per_second")]
)
def test_the_table_and_the_front_are_those_that_tuning_finds(
    client: TestClient, database: Path, seed: int, objective: str, device: str
) -> None:
    found = store_study(database, seed, objective, device)
    told = documents(found.compromises, found.front, found.legal.epoch, None)
    assert {row["kind"] for row in told["compromises"]} == {"training", "running"}
    assert len(told["compromises"]) > 8 and len(told["pareto_front"]) > 5
    answer = client.get("/api/studies/many/compromises").json()
    assert found.winner and answer["against_trial_number"] == found.winner.trial_number
    for row in told["compromises"]:
        del row["spec"]
        row["peak_bytes"] = row.pop("peak_device_bytes")
    assert answer["compromises"] == told["compromises"]
    front = client.get("/api/studies/many/pareto").json()
    assert [row["trial_number"] for row in front["front"]] == [row["trial_number"] for row in told["pareto_front"]]
    assert front["rate"] == objective
    for row, one in zip(front["front"], found.front, strict=True):
        assert row["gives_up"] == found.legal.breaches(one.spec)
        if device == "cuda":
            assert row["objective_value"] == one.rate
        else:
            tokens = 1 if objective == "samples_per_second" else row["cutoff_len"]
            assert row["predicted_samples_per_second"] * tokens == one.rate, "what the page draws"
    shown = {row["trial_number"] for row in front["front"] + front["others"]}
    assert shown == set(range(TRIALS)), "search trials, each once"


def test_few_trials_are_read_whole(client: TestClient, database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    records = tradeoffs._records
    monkeypatch.setattr(tradeoffs, "_records", lambda reader, study, ids: read.append(len(ids)) or records(reader, study, ids))
    with Store.open(str(database)) as store:
        spec = store.trial("first", 1).spec
        trials = [
            TrialRecord(
                study="first", trial_number=number, spec=spec.model_copy(update={"micro_batch_size": number}), reason="r",
                run_dir=".", started_at=NOON, finished_at=NOON, result=completed(1 + number % 7, 20 + number % 31),
            )
            for number in range(6, 206)
        ]  # fmt: skip
        store.add_trials("first", trials)
    client.get("/api/studies/first/compromises")
    client.get("/api/studies/first/pareto")
    assert len(read) == 2 and max(read) < 12


def test_while_a_search_runs_the_best_so_far_stands_for_the_winner(client: TestClient, database: Path) -> None:
    assert client.get("/api/studies/second/compromises").json() == {
        "study": "second", "against_trial_number": None, "compromises": [],
    }  # fmt: skip
    from store_records import trial_record

    with Store.open(str(database)) as store:
        store.finish_trial("second", 0, NOON, completed(1.0))
        store.start_trial(trial_record(1, study="second", spec=trial_record(0).spec.model_copy(update={"cutoff_len": 4096})))
        store.finish_trial("second", 1, NOON, completed(0.5))
    answer = client.get("/api/studies/second/compromises").json()
    assert answer["against_trial_number"] == 0
