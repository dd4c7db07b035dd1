"""Migrations: the models equal the head, an upgrade is whole or nothing, and what cannot be opened is told in one line."""

import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine
from store_records import NOON, completed, out_of_memory, prediction, study_record, trial_record

from autofit.errors import AutofitError, StoreError
from autofit.resources import resource_dir
from autofit.store import Store, schema, sqlite
from autofit.store.reader import Reader
from autofit.store.tables import metadata

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """One finished and one running trial."""
    file = tmp_path / "autofit.db"
    fill(file)
    return file


def fill(file: Path) -> None:
    with Store.open(str(file)) as store:
        store.create_study(study_record())
        for number, result in enumerate((completed(), out_of_memory(), None)):
            store.start_trial(trial_record(number, prediction=None if number else prediction()))
            if result:
                store.finish_trial("first", number, NOON, result)


def ddl(connection: sqlite3.Connection, kinds: str) -> dict[str, str]:
    found = connection.execute(f"SELECT name, sql FROM sqlite_master WHERE type IN ({kinds}) AND name != 'alembic_version'")
    return {name: " ".join(sql.split()) for name, sql in found if sql}


def test_the_models_equal_the_head(database: Path, tmp_path: Path) -> None:
    with create_engine(f"sqlite:///{database}").connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    # Alembic does not compare CHECK constraints and partial indexes: compare what SQLite was told
    modelled = tmp_path / "models.db"
    metadata.create_all(create_engine(f"sqlite:///{modelled}"))
    with closing(sqlite3.connect(modelled)) as expected, closing(sqlite3.connect(database)) as migrated:
        assert ddl(migrated, "'table', 'index'") == ddl(expected, "'table', 'index'")


def test_revisions_are_numbered_in_a_line() -> None:
    config = Config()
    config.set_main_option("script_location", str(resource_dir("db")))
    revisions = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()][::-1]
    assert revisions == [f"{number:04d}" for number in range(1, len(revisions) + 1)]
    assert revisions[-1] == schema.head_revision()
    files = sorted(file.name for file in (resource_dir("db") / "versions").glob("*.py"))
    assert [name[:4] for name in files] == revisions


@pytest.mark.parametrize("dump", sorted(DATA.glob("store_*.sql")), ids=lambda file: file.stem)
def test_a_frozen_database_is_upgraded_with_its_records(dump: Path, tmp_path: Path) -> None:
    file = tmp_path / "old.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript(dump.read_text())
    assert schema.upgrade(file).revision == dump.stem.removeprefix("store_")
    with Store.open(str(file), create=False) as store:
        assert store.study("first") == study_record()
        assert [trial.result for trial in store.trials()] == [completed(), out_of_memory(), None]
        assert store.query("SELECT trial_number FROM best_trials").rows == [(0,)]
        assert store.query("SELECT as_asked FROM trials ORDER BY trial_number").rows == [(1,), (1,), (1,)]
        predictions = [None if dump.stem == "store_0001" else prediction(), None, None]  # 0001 knew none
        assert [trial.prediction for trial in store.trials()] == predictions
        assert len(store.query("SELECT * FROM prediction_accuracy").rows) == sum(found is not None for found in predictions)
        store.start_trial(trial_record(3, prediction=prediction()))
        store.finish_trial("first", 3, NOON, completed())
        assert store.trial("first", 3).prediction == prediction()


def test_an_upgrade_tells_which_trials_train_what_was_asked_for(tmp_path: Path) -> None:
    """From the records; of a study that cannot be read any more nothing is said, and its best is the fastest, as it was."""
    file = tmp_path / "old.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript((DATA / "store_0005.sql").read_text())
        connection.execute("UPDATE trial_documents SET spec = json_set(spec, '$.cutoff_len', 64) WHERE trial_id = 1")
        connection.commit()
        schema.upgrade(file)
        assert connection.execute("SELECT as_asked FROM trials ORDER BY id").fetchall() == [(0,), (1,), (1,)]
        assert connection.execute("SELECT trial_number FROM best_trials").fetchall() == []
        connection.execute("UPDATE trials SET as_asked = NULL")
        connection.execute("UPDATE studies SET record = json_set(record, '$.engine', 'of tomorrow')")
        connection.commit()
        schema.upgrade(file)
        assert connection.execute("SELECT as_asked FROM trials ORDER BY id").fetchall() == [(None,)] * 3
        assert connection.execute("SELECT trial_number FROM best_trials").fetchall() == [(0,)]


def test_an_upgraded_table_is_the_one_that_a_new_database_gets(database: Path, tmp_path: Path) -> None:
    """Constraints, indexes and views: the migrated old file and a new one hold the same text."""
    file = tmp_path / "old.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript((DATA / "store_0001.sql").read_text())
    schema.upgrade(file)
    with closing(sqlite3.connect(file)) as old, closing(sqlite3.connect(database)) as new:
        assert ddl(old, "'table', 'index', 'view'") == ddl(new, "'table', 'index', 'view'")


def test_every_revision_has_a_frozen_database() -> None:
    frozen = {file.stem.removeprefix("store_") for file in DATA.glob("store_*.sql")}
    assert frozen == {file.name[:4] for file in (resource_dir("db") / "versions").glob("*.py")}


def test_the_dictionary_names_every_column(database: Path) -> None:
    documented: dict[str, set[str]] = {}
    for line in (resource_dir("db") / "README.md").read_text().splitlines():
        if heading := re.match(r"## (?:Table|View) `(\w+)`", line):
            columns = documented.setdefault(heading[1], set())
        elif "The columns of `trials` without the JSON" in line:
            columns |= documented["trials"] - {"versions", "hardware", "timings"}
        elif "The columns of `trials`, and" in line:
            columns |= documented["trials"]
        elif row := re.match(r"\| `(\w+)` \|", line):
            columns.add(row[1])
    with closing(sqlite3.connect(database)) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")]
        actual = {name: {row[1] for row in connection.execute(f"PRAGMA table_info({name})")} for name in names}
    del actual["alembic_version"]
    assert documented == actual


# migrations that do not exist yet

GOOD = """
op.add_column("trials", sa.Column("colour", sa.Text))
with op.batch_alter_table("studies") as batch:
    batch.alter_column("seed", nullable=True)
"""


@pytest.fixture
def next_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Pretends that the next autofit has one more migration, with this body."""

    def install(body: str) -> None:
        future = tmp_path / "future"
        shutil.copytree(resource_dir("db"), future, dirs_exist_ok=True)
        head = max(file.name[:4] for file in (future / "versions").glob("0*.py"))
        lines = "".join(f"    {line}\n" for line in body.strip().splitlines())
        number = f"{int(head) + 1:04d}"
        text = f"import sqlalchemy as sa\nfrom alembic import op\nrevision = '{number}'\ndown_revision = '{head}'\n"
        (future / "versions" / f"{number}_next.py").write_text(f"{text}\n\ndef upgrade():\n{lines}")
        monkeypatch.setattr(schema, "resource_dir", lambda name: future)

    return install


def test_an_upgrade_changes_a_table_that_others_refer_to(database: Path, next_revision: Callable[[str], None]) -> None:
    head = schema.head_revision()
    next_revision(GOOD)
    newer = rf"revision {head}, this autofit needs {schema.head_revision()}; .* run: autofit --db .* db upgrade"
    with pytest.raises(StoreError, match=newer):
        Store.open(str(database))
    assert schema.upgrade(database).revision == head
    with Store.open(str(database)) as store:
        assert [trial.result for trial in store.trials()] == [completed(), out_of_memory(), None]
        assert store.query("SELECT count(*), max(colour) FROM trials").rows == [(3, None)]
    assert schema.upgrade(database).is_current


@pytest.mark.parametrize("fault", ['op.execute("SELECT * FROM nowhere")', 'op.execute("UPDATE trials SET study_id = 99")'])
def test_a_failed_upgrade_changes_nothing(fault: str, database: Path, next_revision: Callable[[str], None]) -> None:
    with closing(sqlite3.connect(database)) as connection:
        before = list(connection.iterdump())
    next_revision(f"{GOOD}\n{fault}")
    with pytest.raises(StoreError, match=r"nowhere|would break a reference in table"):
        schema.upgrade(database)
    with closing(sqlite3.connect(database)) as connection:
        assert list(connection.iterdump()) == before


def test_a_newer_database_is_left_alone(
    database: Path, next_revision: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    next_revision(GOOD)
    schema.upgrade(database)
    found = schema.head_revision()
    monkeypatch.setattr(schema, "resource_dir", resource_dir)
    newer = rf"has schema revision {found}, this autofit knows up to {schema.head_revision()}; upgrade autofit"
    for attempt in (Store.open, Reader.open, lambda url: schema.upgrade(Path(url))):
        with pytest.raises(StoreError, match=newer):
            attempt(str(database))


def test_processes_that_create_one_database_at_once_all_succeed(tmp_path: Path) -> None:
    program = "import sys; from autofit.store import Store; Store.open(sys.argv[1]).close()"
    command = [sys.executable, "-c", program, str(tmp_path / "autofit.db")]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[1] for process in processes] == ["", "", ""]
    assert schema.current(tmp_path / "autofit.db").is_current


# what is no database of ours


def _text(file: Path) -> None:
    file.write_text("autofit " * 500)


def _folder(file: Path) -> None:
    file.mkdir()


def _optuna(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript("CREATE TABLE trials(x); CREATE TABLE alembic_version(version_num); "
                                 "INSERT INTO alembic_version VALUES ('v3.0.0.d')")  # fmt: skip


def _other(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE places(name)")


def _torn(file: Path) -> None:
    fill(file)
    content = bytearray(file.read_bytes())
    content[100:2000] = b"\xff" * 1900
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_text, "is not an autofit database"),
        (_folder, "is a folder; give a file"),
        (_optuna, r"belongs to another program \(revision v3.0.0.d\)"),
        (_other, r"belongs to another program \(tables places\)"),
        (_torn, "is damaged|not an autofit database"),
    ],
)
@pytest.mark.parametrize("open_it", [Store.open, Reader.open])
def test_what_is_no_database_is_refused_in_one_line_and_kept(
    open_it: Callable[[str], object], make: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    file = tmp_path / "thing.db"
    make(file)
    before = file.read_bytes() if file.is_file() else None
    with pytest.raises(StoreError, match=message) as caught:
        open_it(str(file))
    assert "\n" not in str(caught.value)
    assert (file.read_bytes() if file.is_file() else None) == before


def test_a_missing_database_is_made_only_to_write(tmp_path: Path) -> None:
    file = tmp_path / "autofit.db"
    for attempt in (Reader.open, lambda url: Store.open(url, read_only=True), lambda url: Store.open(url, create=False)):
        with pytest.raises(StoreError, match=r"there is no database at .*; `autofit search` makes one"):
            attempt(str(file))
    assert not file.exists()
    with pytest.raises(StoreError, match=r"its folder .*nowhere does not exist"):
        Store.open(str(tmp_path / "nowhere" / "autofit.db"))
    file.touch()
    with pytest.raises(StoreError, match="is empty"):
        Reader.open(str(file))
    Store.open(str(file)).close()
    assert schema.current(file).is_current


def test_a_database_that_another_process_writes_is_waited_for_then_told(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.05)
    with Store.open(str(database)) as store, closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(AutofitError, match="is locked by another process; wait for it or stop it"):
            store.create_study(study_record("second"))
        assert store.study("first") == study_record()  # reading does not wait
        other.execute("ROLLBACK")
        store.create_study(study_record("second"))
