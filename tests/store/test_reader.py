"""Questions in SQL: conditions are expressions over known columns, and nothing that is asked can change anything."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from store_records import NOON, completed, out_of_memory, study_record, trial_record

from autofit.errors import StoreError, UsageError
from autofit.store import Store
from autofit.store.reader import Reader
from autofit.store.where import parse_where


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Trials 0 to 3 completed at 1, 3, 2 and 3 samples a second and 40 to 70 GiB, 4 out of memory, 5 running."""
    file = tmp_path / "autofit.db"
    with Store.open(str(file)) as store:
        store.create_study(study_record())
        store.create_study(study_record("empty"))
        results = [
            completed(1.0, 40.0),
            completed(3.0, 50.0),
            completed(2.0, 60.0),
            completed(3.0, 70.0),
            out_of_memory(),
            None,
        ]
        for number, result in enumerate(results):
            store.start_trial(trial_record(number))
            if result:
                store.finish_trial("first", number, NOON + timedelta(hours=1), result)
    return file


@pytest.fixture
def reader(database: Path) -> Iterator[Reader]:
    with Reader.open(f"sqlite:///{database}") as opened:
        yield opened


def numbers(reader: Reader, **asked: object) -> list[int]:
    return [row["trial_number"] for row in reader.trial_rows(**asked).as_dicts()]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("peak_reserved_gib < 55 and zero_stage = 0", [0, 1]),
        ("PEAK_RESERVED_GIB<55 AND NOT trial_number=0", [1]),
        ("outcome = 'OOM'", [4]),
        ('outcome = "OOM"', [4]),
        ('"outcome" is null', [5]),
        ("outcome in ('OOM', 'COMPLETED') and (trial_number between 3 and 4 or micro_batch_size*2 == 2)", [0, 3, 4]),
        ("message like '%Tried to allocate%'", [4]),
        ("coalesce(samples_per_second, 0) >= 3.0e0 - -0", [1, 3]),
        ("gradient_checkpointing = true and margin_gib < 2.5", [3]),
        ("reason = 'it''s; -- no comment'", []),
        ("case when samples_per_second > 2 then 1 else 0 end = 1", [1, 3]),
    ],
)
def test_a_condition_chooses_trials(reader: Reader, where: str, expected: list[int]) -> None:
    assert numbers(reader, where=where) == expected


def test_sorting_puts_empty_values_last_and_the_limit_says_that_there_was_more(reader: Reader) -> None:
    assert numbers(reader, sort="samples_per_second") == [0, 2, 1, 3, 4, 5]
    assert numbers(reader, sort="samples_per_second", descending=True) == [1, 3, 2, 0, 4, 5]
    found = reader.trial_rows(sort="samples_per_second", descending=True, limit=2)
    assert [row["trial_number"] for row in found.as_dicts()] == [1, 3] and found.truncated
    assert not reader.trial_rows(limit=6).truncated
    assert reader.trial_rows("empty").rows == []


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("peak_reserved_gb < 70", "unknown column 'peak_reserved_gb'; did you mean 'peak_reserved_gib'"),
        ("1=1; DELETE FROM trials", "'; DELETE FRO' has no place"),
        ("1=1 -- and more", "'-- and more' has no place"),
        ("1=1 /* */", "has no place"),
        ("trial_number in (select trial_number from studies)", "unknown column 'select'"),
        ("exists (select 1)", r"'exists\(' is no function"),
        ("load_extension('x') = 1", r"'load_extension\(' is no function"),
        ("randomblob(1000000000) is null", r"'randomblob\(' is no function"),
        ("pragma_table_info('trials') = 1", "is no function"),
        ("attach database 'x' as y", "unknown column 'attach'"),
        ("pragma writable_schema = 1", "unknown column 'pragma'"),
        ("1) or (1", r"a \) without its \("),
        ("(1 = 1", r"a \( without its \)"),
        ("outcome = 'OOM", "has no place"),
        ("outcome = ?", "has no place"),
        ("zero_stage 3", "near|syntax"),
        ("", "--where is empty"),
    ],
)
def test_what_is_no_condition_is_refused_in_one_line(reader: Reader, where: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        reader.trial_rows(where=where)
    assert "\n" not in str(caught.value)


def test_an_unknown_column_to_sort_by_is_told_its_nearest(reader: Reader) -> None:
    with pytest.raises(UsageError, match="unknown column 'sample_per_second'; did you mean 'samples_per_second'"):
        reader.trial_rows(sort="sample_per_second")
    with pytest.raises(UsageError, match="unknown column"):
        reader.trial_rows(sort="1; DROP TABLE trials")


def test_a_column_named_like_a_keyword_stays_a_string_only_when_it_is_no_column() -> None:
    assert parse_where('a = "b"', ["a", "b"]) == "a = b"
    assert parse_where('a = "it\'s"', ["a"]) == "a = 'it''s'"


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM trials",
        "INSERT INTO studies(name) VALUES ('x')",
        "UPDATE trials SET outcome = 'OOM'",
        "DROP TABLE trials",
        "CREATE TABLE x(y)",
        "CREATE TEMP TABLE x AS SELECT 1",
        "ATTACH DATABASE '/tmp/autofit-attached.db' AS other",
        "PRAGMA query_only = OFF",
        "PRAGMA journal_mode = DELETE",
        "VACUUM INTO '/tmp/autofit-vacuum.db'",
        "SELECT load_extension('x')",
        "WITH x AS (SELECT 1) DELETE FROM trials",
        "BEGIN IMMEDIATE",
        "EXPLAIN DELETE FROM trials",
        "REINDEX",
        "ANALYZE",
    ],
)
def test_only_reading_is_allowed(reader: Reader, database: Path, sql: str) -> None:
    before = database.read_bytes()
    with pytest.raises(UsageError, match=r"only SELECT is allowed|not authorized|no such function") as caught:
        reader.query(sql)
    assert "\n" not in str(caught.value)
    assert database.read_bytes() == before
    assert reader.query("SELECT count(*) FROM trials").rows == [(6,)]


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT 1; SELECT 2", "one statement at a time"),
        ("SELECT 1; DROP TABLE trials", "one statement at a time"),
        ("SELEC 1", "syntax error"),
        ("SELECT * FROM nowhere", "no such table: nowhere"),
        ("SELECT :name", "binding|parameter"),
        ("SELECT hex(zeroblob(1000000000))", "larger than 64 MiB"),
        ("", "only SELECT"),
    ],
)
def test_faulty_sql_is_told_in_one_line(reader: Reader, sql: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        reader.query(sql)


def test_a_question_without_end_is_stopped(reader: Reader) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    with pytest.raises(StoreError, match=r"took longer than 0\.05 s and was stopped"):
        reader.query(endless, timeout=0.05)
    assert reader.query("SELECT 1 AS one").as_dicts() == [{"one": 1}]


def test_a_trial_is_shown_with_its_documents(reader: Reader) -> None:
    document = reader.trial_document(1)
    assert (document["study"], document["outcome"], document["spec"]["micro_batch_size"]) == ("first", "COMPLETED", 2)
    assert document["result"]["losses"] == [2.5, 2.25] and document["versions"] == {"torch": "2.13.0"}
    assert reader.trial_document(5, "first")["result"] is None
    with pytest.raises(StoreError, match="study 'empty' has no trial 1"):
        reader.trial_document(1, "empty")


def test_the_study_must_be_said_when_several_have_the_number(reader: Reader, database: Path) -> None:
    with Store.open(str(database)) as store:
        store.start_trial(trial_record(1, "empty"))
    with pytest.raises(StoreError, match=r"2 studies have a trial 1; say which with --study \(among them first, empty\)"):
        reader.trial_document(1)


def test_studies_count_their_trials_and_name_their_best(reader: Reader) -> None:
    first, empty = reader.studies().as_dicts()
    wanted = ("study", "trials", "completed", "out_of_memory", "running", "best_trial_number", "best_samples_per_second")
    assert [first[name] for name in wanted] == ["first", 6, 4, 1, 1, 1, 3.0]
    assert [empty[name] for name in wanted] == ["empty", 0, 0, 0, 0, None, None]


def test_a_winner_is_the_best_whatever_is_faster(database: Path) -> None:
    with Store.open(str(database)) as store:
        store.set_study_status("first", "FINISHED", 2)
    with Reader(database) as reader:
        first = reader.studies().as_dicts()[0]
    assert (first["best_trial_number"], first["best_samples_per_second"], first["trials"]) == (2, 2.0, 6)


def test_readers_never_wait_for_the_writer_and_see_only_whole_trials(tmp_path: Path) -> None:
    """A writer finishes trials as fast as it can while a reader asks; every trial that is seen is whole."""
    file, stop, seen = tmp_path / "autofit.db", threading.Event(), []
    together = "SELECT count(*) FROM trials AS t JOIN trial_documents AS d ON d.trial_id = t.id"
    torn = f"{together} WHERE (outcome IS NULL) != (result IS NULL)"
    with Store.open(str(file)) as store:
        store.create_study(study_record())

        def read() -> None:
            with Reader(file) as reader:
                while not stop.is_set():
                    seen.append((reader.query(torn).rows[0][0], reader.query("SELECT count(*) FROM trials").rows[0][0]))

        thread = threading.Thread(target=read)
        thread.start()
        for number in range(60):
            store.start_trial(trial_record(number))
            store.finish_trial("first", number, NOON + timedelta(hours=2), completed())
        stop.set()
        thread.join()
    counts = [count for _, count in seen]
    assert {broken for broken, _ in seen} == {0}
    assert counts == sorted(counts) and len(set(counts)) > 1


def test_a_reader_leaves_no_lock(database: Path, reader: Reader) -> None:
    reader.query("SELECT * FROM trials", limit=1)
    with closing(sqlite3.connect(database, timeout=0)) as writer:
        writer.execute("UPDATE studies SET status = 'FINISHED'")
        writer.commit()
        assert writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
