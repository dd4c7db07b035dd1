"""What is stored stays, whole, through kills, full disks and records that break the rules."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from contextlib import closing
from pathlib import Path

import pytest
from store_records import NOON, completed, out_of_memory, study_record, trial_record

from autofit.errors import StoreError
from autofit.store import Store
from autofit.store import store as store_module
from autofit.store.reader import Reader
from autofit.store.sqlite import connect

WRITER = textwrap.dedent("""
    import sys
    sys.path.insert(0, sys.argv[2])
    from store_records import NOON, completed, study_record, trial_record
    from autofit.store import Store
    with Store.open(sys.argv[1]) as store:
        first = len(store.trials())
        if not first:
            store.create_study(study_record())
        for number in range(first, 1_000_000):
            store.start_trial(trial_record(number))
            store.finish_trial("first", number, NOON, completed())
            print(number, flush=True)
""")


def test_a_killed_writer_loses_nothing_that_it_had_finished(tmp_path: Path) -> None:
    file, chance = tmp_path / "autofit.db", random.Random(5)
    told = -1
    for _ in range(4):
        command = [sys.executable, "-c", WRITER, str(file), str(Path(__file__).parents[1])]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(chance.randint(1, 40)):
            told = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        told = max([told, *(int(line) for line in process.stdout.read().splitlines())])
        process.wait()
        with Reader(file) as reader:  # the first to open it after the kill has read access only
            assert reader.query("SELECT count(*) FROM trials WHERE state = 'FINISHED'").rows[0][0] > told
        with closing(sqlite3.connect(file)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        with Store.open(str(file)) as store:
            assert all(trial.result == completed() for trial in store.trials(running=False))
            for stale in store.running_trials("first"):
                store.finish_trial("first", stale.trial_number, NOON, completed())


def test_a_full_disk_is_one_line_and_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "autofit.db"
    with Store.open(str(file)) as store:
        store.create_study(study_record())
        store.start_trial(trial_record(0))

    def nearly_full(file: Path, *, read_only: bool) -> sqlite3.Connection:
        connection = connect(file, read_only=read_only)
        connection.execute(f"PRAGMA max_page_count = {connection.execute('PRAGMA page_count').fetchone()[0] + 2}")
        return connection

    monkeypatch.setattr(store_module, "connect", nearly_full)
    with (
        Store.open(str(file)) as store,
        pytest.raises(StoreError, match=r"cannot grow: the disk is full; .* --resume") as caught,
    ):
        store.finish_trial("first", 0, NOON, completed(message="x" * 50_000))
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    with Store.open(str(file)) as store:
        assert store.running_trials("first") == [trial_record(0)]
        store.finish_trial("first", 0, NOON, completed())


def test_commits_are_synchronous_and_readers_do_not_block(tmp_path: Path) -> None:
    with Store.open(str(tmp_path / "autofit.db")) as store, store._transaction() as connection:
        pragmas = ("journal_mode", "synchronous", "foreign_keys")
        assert [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in pragmas] == ["wal", 2, 1]


def test_two_writers_take_turns_and_one_of_them_wins(tmp_path: Path) -> None:
    """Each trial is started and finished by exactly one; the other is told so, and not that the database is locked."""
    url, rounds, refusals = str(tmp_path / "autofit.db"), 25, []
    with Store.open(url) as store:
        store.create_study(study_record())
    barrier = threading.Barrier(2)

    def write() -> None:
        with Store.open(url) as store:
            for number in range(rounds):
                barrier.wait()
                for action in (
                    lambda: store.start_trial(trial_record(number)),  # noqa: B023 - called at once
                    lambda: store.finish_trial("first", number, NOON, completed()),  # noqa: B023
                ):
                    try:
                        action()
                    except StoreError as error:
                        refusals.append(str(error))

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refusals) == 2 * rounds
    assert [refusal for refusal in refusals if "already" not in refusal] == []


def test_a_vanished_database_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "autofit.db"
    store = Store.open(str(file))
    store.create_study(study_record())
    store.close()
    for left in tmp_path.glob("autofit.db*"):
        os.truncate(left, 0)
    with pytest.raises(StoreError, match=r"no such table|is empty"):
        store.studies()


@pytest.mark.parametrize(
    ("result", "rule"),
    [
        (completed().model_copy(update={"peak_device_bytes": 0}), "ck_trials_positive"),
        (completed().model_copy(update={"peak_reserved_bytes": -1}), "ck_trials_positive"),
        (completed().model_copy(update={"trainable_parameters": 0}), "ck_trials_positive"),
        (out_of_memory(outcome="SKIPPED"), "ck_trials_not_run"),
    ],
)
def test_a_result_that_breaks_a_rule_is_refused_and_the_trial_still_runs(result: object, rule: str, tmp_path: Path) -> None:
    with Store.open(str(tmp_path / "autofit.db")) as store:
        store.create_study(study_record())
        store.start_trial(trial_record(0))
        with pytest.raises(StoreError, match=f"refuses the record: CHECK constraint failed: {rule}"):
            store.finish_trial("first", 0, NOON, result)  # type: ignore[arg-type]
        assert len(store.running_trials("first")) == 1


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ("outcome = NULL", "ck_trials_finished"),
        ("state = 'RUNNING'", "ck_trials_finished"),
        ("outcome = 'FINE'", "ck_trials_outcome"),
        ("peak_device_bytes = NULL, margin_bytes = NULL", "ck_trials_measured"),
        ("samples_per_second = NULL", "ck_trials_measured"),
        ("samples_per_second = -1", "ck_trials_positive"),
        ("step_time_seconds = 0", "ck_trials_positive"),
        ("outcome = 'OOM'", "ck_trials_unmeasured"),
        ("margin_bytes = 1", "ck_trials_margin"),
        ("global_batch_size = 7", "ck_trials_knobs"),
        ("zero_stage = 4", "ck_trials_knobs"),
        ("lora_rank = 8", "ck_trials_knobs"),
        ("pure_bf16 = 2", "ck_trials_booleans"),
        ("purpose = 'fun'", "ck_trials_purpose"),
        ("attempt = 0", "ck_trials_counts"),
        ("study_id = 99", "FOREIGN KEY"),
        ("reason = NULL", "NOT NULL"),
    ],
)
def test_the_database_itself_refuses_what_cannot_be(change: str, rule: str, tmp_path: Path) -> None:
    file = tmp_path / "autofit.db"
    with Store.open(str(file)) as store:
        store.create_study(study_record())
        store.start_trial(trial_record(0))
        store.finish_trial("first", 0, NOON, completed())
    with closing(connect(file, read_only=False)) as connection, pytest.raises(sqlite3.IntegrityError, match=rule):
        connection.execute(f"UPDATE trials SET {change}")
