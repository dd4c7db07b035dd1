"""What the routes answer, and how every fault is told."""

import io
import json
import sqlite3
import zipfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from store_records import study_record

from autofit.config.model import Model
from autofit.store import Store, schema


def fault(answer: Any, status: int) -> dict[str, Any]:
    """The error of an answer, in the one shape."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"status", "code", "message", "field"}
    assert body["error"]["status"] == status
    return dict(body["error"])


SEARCH = {"study": "new", "gpu_mem": "206MB", "space": "tiny_qwen2_5_vl", "device": "cpu", "trials": 3}


def test_studies_are_listed_with_their_best(client: TestClient) -> None:
    second, first = client.get("/api/studies").json()["studies"]
    assert (first["study"], first["status"], first["winner_trial_number"]) == ("first", "FINISHED", 1)
    assert first["best"]["trial_number"] == 1
    assert (first["trials"], first["completed"], first["out_of_memory"], first["running"]) == (6, 5, 1, 0)
    assert (second["running"], second["best"], second["job"]) == (1, None, None)
    assert client.get("/api/studies/first").json() == first


def test_trials_are_filtered_sorted_and_paged(client: TestClient) -> None:
    page = client.get(
        "/api/studies/first/trials",
        params={"where": "outcome = 'COMPLETED'", "sort": "samples_per_second", "descending": True, "limit": 2},
    ).json()
    assert [row["samples_per_second"] for row in page["trials"]] == [3.1, 3.0]
    assert page["next_offset"] == 2
    rest = client.get(
        "/api/studies/first/trials",
        params={"where": "outcome = 'COMPLETED'", "sort": "samples_per_second", "descending": True, "limit": 3, "offset": 2},
    ).json()
    assert [row["samples_per_second"] for row in rest["trials"]] == [2.5, 2.0, 1.0]
    assert rest["next_offset"] is None
    assert len(client.get("/api/trials").json()["trials"]) == 7


@pytest.mark.parametrize(
    "where", ["1; DROP TABLE trials", "speed > 3", "outcome = (SELECT 1)", "(", "", "1 --", "load_extension('x')"]
)
def test_a_condition_that_is_none_is_refused(client: TestClient, where: str) -> None:
    assert "--where" in fault(client.get("/api/studies/first/trials", params={"where": where}), 422)["message"]


def test_one_trial_best_front_and_compromises(client: TestClient) -> None:
    trial = client.get("/api/studies/first/trials/1").json()
    assert trial["prediction"]["phase"] == "backward"
    assert trial["result"]["outcome"] == "COMPLETED"
    assert trial["logs"] == {"stdout.log": None, "stderr.log": None}
    assert client.get("/api/studies/first/best").json()["trial_number"] == 1
    front = client.get("/api/studies/first/pareto").json()
    assert [row["trial_number"] for row in front["front"]] == [1, 3, 4]
    assert {row["trial_number"] for row in front["others"]} == {0, 2}
    found = client.get("/api/studies/first/compromises").json()
    assert (found["against_trial_number"], found["compromises"]) == (1, [])


def test_what_changes_buy_is_grouped_by_the_change(client: TestClient, database: Path) -> None:
    from store_records import NOON, completed, trial_record

    with Store.open(str(database)) as store:
        for number, (cutoff, speed) in enumerate([(1024, 4.0), (1024, 6.0), (4096, 9.0)], start=6):
            spec = trial_record(number).spec.model_copy(update={"cutoff_len": cutoff})
            store.start_trial(trial_record(number, spec=spec))
            store.finish_trial("first", number, NOON, completed(speed, 30))
    (row,) = client.get("/api/studies/first/compromises").json()["compromises"]
    assert row["kind"] == "training" and row["along"] == ["micro-batch 8"]
    assert row["changes"] == ["cutoff_len 1024 instead of 2048"]
    assert (row["trial_number"], row["speedup"], row["evidence"]) == (7, 2.0, "measured")


def test_a_search_is_submitted_paused_resumed_and_cancelled(client: TestClient) -> None:
    made = client.post("/api/studies", json=SEARCH)
    assert made.status_code == 201
    assert (made.json()["status"], made.json()["job"]["state"]) == ("WAITING", "QUEUED")
    for verb, state in [("pause", "PAUSED"), ("resume", "QUEUED"), ("cancel", "CANCELLED")]:
        assert client.post(f"/api/studies/new/{verb}").json()["job"]["state"] == state
    assert "CANCELLED" in fault(client.post("/api/studies/new/resume"), 409)["message"]
    assert "exists already" in fault(client.post("/api/studies", json=SEARCH), 409)["message"]
    assert "exists already" in fault(client.post("/api/studies", json={**SEARCH, "study": "first"}), 409)["message"]
    fault(client.post("/api/studies/first/pause"), 404)  # it was not submitted here


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"gpu_mem": "much"}, "gpu_mem"),
        ({"study": "../x"}, "study"),
        ({"study": "-x"}, "study"),
        ({"trials": 0}, "trials"),
        ({"gpus": 3}, "gpus"),
        ({"time_limit": "soon"}, "duration"),
        ({"python": "/usr/bin/python3"}, "no configured interpreter"),
        ({"python": "python3"}, "no configured interpreter"),
        ({"model": "/etc"}, "--root"),
        ({"model": "../../etc"}, "--root"),
        ({"space": "/etc/passwd"}, "--root"),
        ({"dataset": "/etc/passwd"}, "--root"),
        ({"dataset": "../secret.json"}, "--root"),
        ({"from_file": "/etc/passwd"}, "--root"),
        ({"from_file": "train.yaml\0"}, "--root"),
    ],
)
def test_a_search_that_asks_for_what_it_may_not_is_refused(client: TestClient, change: dict[str, object], named: str) -> None:
    error = fault(client.post("/api/studies", json={**SEARCH, **change}), 422)
    assert named in error["message"]
    assert "new" not in {study["study"] for study in client.get("/api/studies").json()["studies"]}


def test_paths_are_confined_to_the_roots(serve: Any, tmp_path: Path) -> None:
    root, secret = tmp_path / "root", tmp_path / "secret"
    (root / "model").mkdir(parents=True)
    secret.mkdir()
    (root / "link").symlink_to(secret)
    client = serve(roots=(root,), pythons={"train": "/opt/train/python"})
    for name in (str(secret), "../secret", "link", str(root / "link")):
        fault(client.post("/api/studies", json={**SEARCH, "model": name}), 422)
    for study, name in (("one", "model"), ("two", str(root / "model"))):
        assert client.post("/api/studies", json={**SEARCH, "study": study, "model": name, "python": "train"}).status_code == 201
    with closing(sqlite3.connect(tmp_path / "autofit.db")) as connection:
        for (text,) in connection.execute("SELECT request FROM queue"):
            request = json.loads(text)
            assert request["model"] == str(root / "model")
            assert request["python"] == "/opt/train/python"


def test_exports_are_files_a_zip_and_a_yaml(client: TestClient, database: Path, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "model.safetensors").touch()
    model = Model(label="tiny", config={"model_type": "qwen2_5_vl", "vision_config": {}}, path=str(folder))
    with Store.open(str(database)) as store:
        store.create_study(study_record(name="with-weights", model=model))
        from store_records import NOON, completed, trial_record

        store.start_trial(trial_record(0, study="with-weights"))
        store.finish_trial("with-weights", 0, NOON, completed())
        store.set_study_status("with-weights", "FINISHED", 0)
    answered = client.get("/api/studies/with-weights/export")
    assert answered.status_code == 200, answered.text
    files = answered.json()
    assert set(files["files"]) >= {"train.yaml", "autofit.json"}
    assert "with-weights-trial-0/train.yaml" in files["command"]
    packed = client.get("/api/studies/with-weights/export.zip")
    with zipfile.ZipFile(io.BytesIO(packed.content)) as archive:
        assert {Path(name).parent.name for name in archive.namelist()} == {"with-weights-trial-0"}
        assert archive.read("with-weights-trial-0/train.yaml").decode() == files["files"]["train.yaml"]
    yaml = client.get("/api/studies/with-weights/export/train.yaml")
    assert yaml.text == files["files"]["train.yaml"]
    assert yaml.headers["content-disposition"] == 'attachment; filename="train.yaml"'
    assert "bare config" in fault(client.get("/api/studies/first/export"), 422)["message"]
    assert "no winner" in fault(client.get("/api/studies/second/export"), 422)["message"]


def test_sql_is_read_only_and_time_limited(serve: Any) -> None:
    client = serve(query_seconds=0.3)
    answer = client.post("/api/query", json={"sql": "SELECT trial_number, 9e999, x'00ff' FROM best_trials"})
    assert answer.json() == {
        "columns": ["trial_number", "9e999", "x'00ff'"],
        "rows": [[1, "inf", "00ff"]],
        "truncated": False,
    }
    for sql in ("DELETE FROM trials", "PRAGMA writable_schema = 1", "ATTACH '/tmp/x' AS x", "SELECT 1; SELECT 2", "nonsense"):
        assert fault(client.post("/api/query", json={"sql": sql}), 422)["message"].startswith("query:")
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    assert "longer than" in fault(client.post("/api/query", json={"sql": endless}), 503)["message"]


def test_predictions_name_no_folder_outside_and_no_inline_model(client: TestClient) -> None:
    spec = {"model": {"preset": "tiny-llama"}}
    fault(client.post("/api/predict", json={"spec": {"model": {"path": "/etc"}}}), 422)
    fault(client.post("/api/predict", json={"spec": {"model": {"config": {"model_type": "llama"}}}}), 422)
    fault(client.post("/api/predict", json={"spec": {"model": {"preset": "gpt-5"}}}), 422)
    fault(client.post("/api/predict", json={"spec": {**spec, "micro_batch_size": 10**9}}), 422)
    assert "gpu_mem" in fault(client.post("/api/explain", json={"spec": spec}), 422)["message"]


def test_choices_health_and_metrics(client: TestClient) -> None:
    health = client.get("/api/health").json()
    assert (health["status"], health["supervisor"]) == ("ok", False)
    choices = client.get("/api/choices").json()
    assert "qwen2_5_vl_7b" in choices["spaces"] and "peak_device_gib" in choices["trial_columns"]
    client.get("/api/studies/first")
    client.get("/api/studies/nothing")
    text = client.get("/api/metrics").text
    assert 'autofit_http_requests_total{method="GET",route="/api/studies/{study}",status="200"} 1.0' in text
    assert 'autofit_http_requests_total{method="GET",route="/api/studies/{study}",status="404"} 1.0' in text
    assert 'autofit_trials{outcome="out_of_memory"} 1.0' in text
    assert "autofit_supervisor_up 0.0" in text


@pytest.mark.parametrize("path", ["/api/nothing", "/api/studies/none", "/api/studies/first/trials/99", "/nothing"])
def test_what_is_not_there_is_404_in_the_one_shape(client: TestClient, path: str) -> None:
    fault(client.get(path), 404)


def test_malformed_requests_are_4xx_in_the_one_shape(client: TestClient) -> None:
    fault(client.put("/api/studies"), 405)
    fault(client.post("/api/studies", content=b"{", headers={"content-type": "application/json"}), 422)
    fault(client.post("/api/studies", content=b"\xff\xfe", headers={"content-type": "application/json"}), 422)
    fault(client.get("/api/studies/first/trials?limit=0"), 422)
    fault(client.get("/api/studies/first/trials?offset=99999999999999999999"), 422)
    fault(client.get("/api/studies/first/trials/99999999999999999999"), 422)
    fault(client.get("/api/studies/%00"), 404)


def test_a_database_that_is_locked_gone_or_newer_is_503(
    client: TestClient, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert client.get("/api/health").status_code == 200
    monkeypatch.setattr("autofit.store.sqlite.BUSY_SECONDS", 0.1)
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        assert "locked" in fault(client.post("/api/studies", json=SEARCH), 503)["message"]
        assert client.get("/api/studies").status_code == 200, "readers wait for no writer"
        connection.execute("ROLLBACK")
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    assert "upgrade autofit" in fault(client.get("/api/studies"), 503)["message"]
    fault(client.get("/api/health"), 503)
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (schema.head_revision(),))
    assert client.get("/api/studies").status_code == 200, "it answers again when the database does"
    database.rename(database.with_suffix(".away"))
    assert "no database" in fault(client.get("/api/studies"), 503)["message"]


def test_two_writers_wait_for_each_other(client: TestClient, database: Path) -> None:
    """A search stores trials while others are submitted: both are there in the end."""
    import threading

    from store_records import NOON, completed, trial_record

    def write() -> None:
        with Store.open(str(database)) as store:
            for number in range(1, 40):
                store.start_trial(trial_record(number, study="second"))
                store.finish_trial("second", number, NOON, completed())

    writer = threading.Thread(target=write)
    writer.start()
    answers = [client.post("/api/studies", json={**SEARCH, "study": f"new-{number}"}).status_code for number in range(40)]
    writer.join()
    assert answers == [201] * 40
    assert client.get("/api/studies/second").json()["trials"] == 40


@pytest.mark.parametrize(
    "path",
    ["/", "/studies/first", "/studies/second", "/studies/first?where=nonsense", "/studies/first/trials/1",
     "/studies/first/trials/2", "/studies/second/trials/0", "/studies/first/compare", "/studies/first/compare?a=0&b=2",
     "/studies/second/compare", "/plan", "/new", "/ask", "/login", "/api/docs"],
)  # fmt: skip
def test_every_page_is_rendered_without_inline_code_or_foreign_address(client: TestClient, path: str) -> None:
    page = client.get(path)
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    for forbidden in ("<style", " style=", "onclick", "http://", "https://", "<script>"):
        assert forbidden not in page.text, forbidden


def test_what_users_write_is_escaped_in_pages(client: TestClient, database: Path) -> None:
    with Store.open(str(database)) as store:
        store.create_study(study_record(name="<img src=x onerror=alert(1)>"))
    page = client.get("/")
    assert "<img" not in page.text and "&lt;img" in page.text
    page = client.get("/studies/first", params={"where": '"><script>alert(1)</script>'})
    assert "<script>alert" not in page.text
