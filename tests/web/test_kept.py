"""Answers are kept until the database changes, made once however many ask, and never of a state before the change."""

import shutil
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from store_records import NOON, completed, study_record, trial_record

from autofit.errors import NotFound, StoreError
from autofit.store import Store
from autofit.store.version import Version
from autofit.web import questions
from autofit.web.kept import Answers, Kept
from autofit.web.questions import Readers

ASKING = 16


class Counted:
    """A computation that says how often it ran, and may be held at a gate."""

    def __init__(self) -> None:
        self.times = 0
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Event()

    def __call__(self) -> bytes:
        self.times += 1
        made = b"%d" % self.times
        self.begun.set()
        assert self.gate.wait(30)
        return made


def write(database: Path, number: int) -> None:
    with Store.open(str(database)) as store:
        store.start_trial(trial_record(number, study="second"))
        store.finish_trial("second", number, NOON, completed())


def test_the_version_grows_with_each_commit_of_others_and_with_nothing_else(database: Path) -> None:
    version = Version(database)
    first = version.now()
    with Readers(database).open() as reader:
        reader.ask("SELECT count(*) FROM trials")
    assert version.now() == version.now() == first
    write(database, 1)
    second = version.now()
    assert second > first == version.now() - (second - first)
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE studies SET status = 'RUNNING'")
        assert version.now() == second, "not committed yet"
        connection.execute("ROLLBACK")
        assert version.now() == second
    version.close()


def test_another_file_in_its_place_is_a_change_and_none_is_an_error(database: Path, tmp_path: Path) -> None:
    version = Version(database)
    first = version.now()
    other = Path(shutil.copy(database, tmp_path / "other.db"))
    other.replace(database)
    second = version.now()
    assert second > first
    away = database.with_suffix(".away")
    database.rename(away)
    with pytest.raises(StoreError, match="no database"):
        version.now()
    away.rename(database)
    assert version.now() > second, "nobody knows what happened meanwhile"
    version.close()


def test_many_threads_that_ask_at_once_cost_one_computation() -> None:
    compute = Counted()
    compute.gate.clear()
    kept = Kept(lambda: 1)
    with ThreadPoolExecutor(ASKING) as pool:
        asked = [pool.submit(kept.get, "key", compute) for _ in range(ASKING)]
        assert compute.begun.wait(30)
        compute.gate.set()
        assert {one.result(30) for one in asked} == {b"1"}
    assert kept.get("key", compute) == b"1" and compute.times == 1
    assert kept.get("other", compute) == b"2", "each key has an answer of its own"


def test_an_answer_that_was_begun_before_a_change_is_not_the_one_after_it() -> None:
    now = [1]
    compute = Counted()
    compute.gate.clear()
    kept = Kept(lambda: now[0])
    with ThreadPoolExecutor(ASKING) as pool:
        early = pool.submit(kept.get, "key", compute)
        assert compute.begun.wait(30)
        now[0] = 2  # a commit, while the first answer is still made of what was there before
        late = [pool.submit(kept.get, "key", compute) for _ in range(ASKING - 1)]
        compute.gate.set()
        assert early.result(30) == b"1"
        assert {one.result(30) for one in late} == {b"2"}
    assert kept.get("key", compute) == b"2" and compute.times == 2


def test_a_change_between_reading_and_keeping_makes_the_answer_old() -> None:
    """The fault that is planted by asking for the version after the computation."""
    now = [1]

    def compute() -> bytes:
        read = b"%d" % now[0]
        now[0] += 1  # somebody commits while the rest is computed
        return read

    kept = Kept(lambda: now[0])
    assert kept.get("key", compute) == b"1"
    assert kept.get("key", compute) == b"2"


def test_errors_are_told_to_all_who_wait_and_not_kept() -> None:
    compute, faults = Counted(), [NotFound("no such study")]
    compute.gate.clear()

    def fails_once() -> bytes:
        made = compute()
        if faults:
            raise faults.pop()
        return made

    kept = Kept(lambda: 1)
    with ThreadPoolExecutor(ASKING) as pool:
        first = pool.submit(kept.get, "key", fails_once)
        assert compute.begun.wait(30)
        compute.gate.set()
        with pytest.raises(NotFound):
            first.result(30)
    assert kept.get("key", fails_once) == b"2"


def test_only_so_many_answers_are_kept() -> None:
    compute = Counted()
    kept = Kept(lambda: 1, most=2)
    for key in "abab":
        kept.get(key, compute)
    assert compute.times == 2
    kept.get("c", compute)
    kept.get("b", compute)
    assert compute.times == 3, "the one that was asked for longest ago went"
    kept.get("a", compute)
    assert compute.times == 4


def test_what_is_asked_again_is_not_read_again(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def study(reader: Any, name: str) -> dict[str, Any]:
        read.append(name)
        return questions.study(reader, name)

    answers = Answers(Readers(database))
    first = answers.json(study, "second")
    assert answers.json(study, "second") == first and read == ["second"]
    write(database, 1)
    assert answers.json(study, "second") != first and read == ["second", "second"]
    with pytest.raises(NotFound):
        answers.json(study, "none")
    with pytest.raises(NotFound):
        answers.json(study, "none")
    assert len(read) == 4
    answers.close()


@pytest.mark.parametrize("path", ["/api/studies", "/api/studies/second", "/api/studies/second/pareto"])
def test_every_route_tells_what_was_just_written(client: TestClient, database: Path, path: str) -> None:
    before = client.get(path).json()
    assert client.get(path).json() == before
    write(database, 1)
    assert client.get(path).json() != before


def test_pages_tell_what_was_just_written(client: TestClient, database: Path) -> None:
    assert "brand-new" not in client.get("/").text
    with Store.open(str(database)) as store:
        store.create_study(study_record(name="brand-new"))
    assert "brand-new" in client.get("/").text
    assert client.get("/studies/brand-new").status_code == 200


def test_a_replaced_database_is_served_anew(client: TestClient, database: Path, tmp_path: Path) -> None:
    assert len(client.get("/api/studies").json()["studies"]) == 2
    with Store.open(str(tmp_path / "other.db")) as store:
        store.create_study(study_record(name="other"))
    for suffix in ("-wal", "-shm"):  # they belong to the file that goes
        database.with_name(database.name + suffix).unlink(missing_ok=True)
    (tmp_path / "other.db").replace(database)
    assert [study["study"] for study in client.get("/api/studies").json()["studies"]] == ["other"]
