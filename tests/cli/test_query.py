"""`trials`, `show`, `studies`, `query` and `db`: what they print, and how they say no."""

import csv
import io
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from store_records import NOON, completed, out_of_memory, study_record, trial_record

from autofit.cli import app
from autofit.cli.app import COMMANDS, main
from autofit.config.trial import Lora
from autofit.store import Store

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """autofit.db in the current folder: four finished trials and a running one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AUTOFIT_DB", raising=False)
    run_dir = tmp_path / "runs" / "0"
    run_dir.mkdir(parents=True)
    (run_dir / "stderr.log").write_text("".join(f"line {number}\n" for number in range(30)))
    with Store.open("sqlite:///autofit.db") as store:
        store.create_study(study_record())
        lora = trial_record(2).spec.model_copy(update={"method": "lora", "lora": Lora(rank=16), "zero_stage": 3})
        specs = {2: lora}
        results = [completed(1.0, 40.0), completed(3.0, 50.0), completed(2.0, 60.0), out_of_memory(), None]
        for number, result in enumerate(results):
            store.start_trial(trial_record(number, spec=specs.get(number), run_dir=str(tmp_path / "runs" / str(number))))
            if result:
                store.finish_trial("first", number, NOON + timedelta(hours=1), result)
    return tmp_path / "autofit.db"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str) -> tuple[int, str, str]:
        status = main(arguments)
        out, err = capsys.readouterr()
        return status, out, err

    return call


def test_the_table_of_trials_fits_100_columns(database: Path, run: Run) -> None:
    status, out, err = run("trials")
    lines = out.splitlines()
    assert (status, err) == (0, "")
    assert lines[0].split()[:4] == ["trial", "outcome", "method", "micro"]
    assert len(lines) == 6 and max(map(len, lines)) <= 100
    assert "lora 16" in lines[3] and "50.00" in lines[2] and lines[5].split()[:2] == ["4", "running"]


def test_where_sort_and_limit(database: Path, run: Run) -> None:
    status, out, err = run(
        "trials", "--where", "peak_reserved_gib < 55", "--sort", "samples_per_second", "--descending", "--limit", "1"
    )
    assert (status, out.splitlines()[1].split()[0], len(out.splitlines())) == (0, "1", 2)
    assert err == "the first 1 rows; there are more: --limit, --where or --format csv\n"


def test_a_column_to_sort_by_is_shown(database: Path, run: Run) -> None:
    _, out, _ = run("trials", "--sort", "wall_seconds")
    assert out.splitlines()[0].split()[-1] == "wall_seconds"


@pytest.mark.parametrize("form", [["--json"], ["--format", "json"]])
def test_json_has_every_column_and_nulls(database: Path, run: Run, form: list[str]) -> None:
    _, out, _ = run("trials", *form)
    rows = json.loads(out)
    assert [row["outcome"] for row in rows] == ["COMPLETED", "COMPLETED", "COMPLETED", "OOM", None]
    assert rows[3]["samples_per_second"] is None and rows[0]["peak_device_gib"] == 40.0
    assert "config_key" in rows[0] and "study_id" not in rows[0]


def test_csv_is_read_back(database: Path, run: Run) -> None:
    _, out, _ = run("trials", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert len(rows) == 5 and rows[1]["samples_per_second"] == "3.0" and rows[4]["outcome"] == ""


def test_show_tells_spec_result_and_the_end_of_the_log(database: Path, run: Run) -> None:
    status, out, _ = run("show", "0")
    assert status == 0
    for part in ("COMPLETED", "40.00 GiB", "micro_batch_size: 1", "losses: [2.5, 2.25]", "ranks[0]:", "line 29"):
        assert part in out
    assert "line 9\n" not in out and "stdout.log (last 20 lines)\n  (none)" in out
    document = json.loads(run("show", "0", "--json")[1])
    assert document["spec"]["micro_batch_size"] == 1 and document["logs"]["stderr.log"][-1] == "line 29"
    assert document["logs"]["stdout.log"] is None


def test_studies(database: Path, run: Run) -> None:
    _, out, _ = run("studies")
    assert out.splitlines()[1].split()[:4] == ["first", "RUNNING", "tiny-llama", "72.00"]
    [study] = json.loads(run("studies", "--json")[1])
    assert (study["trials"], study["completed"], study["best_trial_number"]) == (5, 3, 1)


def test_query_prints_what_was_asked(database: Path, run: Run) -> None:
    sql = "SELECT outcome, count(*) AS n, NULL AS gone FROM trials GROUP BY outcome ORDER BY n DESC LIMIT 1"
    assert run("query", sql)[1].split() == ["outcome", "n", "gone", "COMPLETED", "3", "-"]
    assert json.loads(run("query", sql, "--json")[1]) == [{"outcome": "COMPLETED", "n": 3, "gone": None}]
    assert json.loads(run("query", "SELECT 1 AS a, 2 AS a, x'ff' AS b", "--json")[1]) == [{"a": 1, "a_2": 2, "b": "ff"}]
    assert run("query", sql, "--format", "csv")[1] == "outcome,n,gone\nCOMPLETED,3,\n"


def test_db_current_and_upgrade(database: Path, run: Run, tmp_path: Path) -> None:
    assert json.loads(run("db", "current", "--json")[1])["current"] is True
    assert "the newest already" in run("db", "upgrade")[1]
    status, out, _ = run("--db", "new.db", "db", "upgrade", "--json")
    assert status == 0 and json.loads(out)["from"] is None and (tmp_path / "new.db").exists()
    with closing(sqlite3.connect(tmp_path / "new.db")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()
    for command in (["trials"], ["db", "current"], ["db", "upgrade"]):
        status, _, err = run("--db", "new.db", *command)
        assert (status, err.count("\n")) == (1, 1)
        assert "has schema revision 9999" in err and "upgrade autofit" in err


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["trials", "--where", "peak_gib < 3"], 2, "error: --where: unknown column 'peak_gib'; did you mean"),
        (["trials", "--where", "1=1; DROP TABLE trials"], 2, "error: --where: '; DROP TABLE"),
        (["trials", "--sort", "speed"], 2, "error: --sort: unknown column 'speed'"),
        (["trials", "--study", "frist"], 1, "error: there is no study 'frist'; did you mean 'first'?"),
        (["show", "17"], 1, "error: this database has no trial 17"),
        (["query", "DELETE FROM trials"], 2, "error: query: only SELECT is allowed"),
        (
            ["query", "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) SELECT max(i) FROM n", "--timeout", "0.05"],
            1,
            "longer",
        ),
        (["--db", "missing.db", "trials"], 1, "error: there is no database at missing.db; `autofit search` makes one"),
        (["trials", "--db", "missing.db"], 1, "error: there is no database at missing.db"),
        (["--db", "runs", "studies"], 1, "error: database runs is a folder"),
        (["--db", "runs/0/stderr.log", "studies"], 1, "is not an autofit database"),
        (["--db", "mysql://x/y", "studies"], 2, "error: --db mysql://x/y: only SQLite is supported"),
    ],
)
def test_what_goes_wrong_is_one_line_on_stderr(
    database: Path, run: Run, arguments: list[str], status: int, message: str
) -> None:
    found, out, err = run(*arguments)
    assert (found, out, err.count("\n")) == (status, "", 1)
    assert message in err


@pytest.mark.parametrize(
    "arguments",
    [["trails"], ["trials", "--limit", "0"], ["trials", "--format", "xml"], ["trials", "--colour"], ["show", "x"], ["--db"]],
)
def test_usage_errors_exit_2(database: Path, run: Run, arguments: list[str]) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "") and "Error: " in err


def test_debug_shows_the_traceback_wherever_it_stands(database: Path, run: Run) -> None:
    for arguments in (["--debug", "show", "17"], ["show", "17", "--debug"]):
        status, _, err = run(*arguments)
        assert status == 1 and "Traceback" in err and err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in run("show", "17")[2]


def test_the_environment_names_the_database(database: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOFIT_DB", "missing.db")
    assert "missing.db" in run("studies")[2]
    assert run("studies", "--db=autofit.db")[0] == 0


def test_an_interrupt_exits_130(database: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(context: app.typer.Context) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, "studies", app.Command("", lambda: interrupted))
    assert run("studies")[0] == 130


def test_help_lists_every_command_whole_and_each_has_its_own(run: Run) -> None:
    status, out, _ = run("--help")
    assert status == 0 and "..." not in out.replace("[ARGS]...", "")
    for name, command in COMMANDS.items():
        assert f"  {name} " in out and command.summary in out
        status, text, err = run(name, "--help")
        assert (status, err) == (0, "") and text.startswith(f"Usage: autofit {name} ")
    assert "peak_reserved_gib < 70 and zero_stage = 3" in " ".join(run("trials", "--help")[1].split())
    assert run("--version")[1].startswith("autofit ")


# in a process of its own


def start(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "autofit.cli", *arguments], capture_output=True, text=True, check=False, **options
    )


def test_a_reader_that_leaves_ends_it_quietly(database: Path) -> None:
    many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200000) SELECT i FROM n"
    command = [sys.executable, "-m", "autofit.cli", "query", many, "--format", "csv"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=database.parent)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "i\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 1


def test_a_reader_that_was_never_there_is_no_fault_either(database: Path) -> None:
    """Short output is written when it ends: Python must not complain about that."""
    reading, writing = os.pipe()
    os.close(reading)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-m", "autofit.cli", "--db", str(database), "trials"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, env=environment)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("arguments", [["--help"], ["trials"], ["trials", "--where", "zero_stage = 3"], ["query", "SELECT 1"]])
def test_asking_loads_nothing_heavy(database: Path, arguments: list[str]) -> None:
    program = "import sys; from autofit.cli import main; main(); print(*sorted(sys.modules), file=sys.stderr)"
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=database.parent)
    assert {"torch", "sqlalchemy", "alembic", "optuna", "numpy", "pydantic", "matplotlib"}.isdisjoint(done.stderr.split())


def test_writing_commands_load_no_torch(tmp_path: Path) -> None:
    program = "import sys; from autofit.cli import main; main(); print(*sorted(sys.modules), file=sys.stderr)"
    command = [sys.executable, "-c", program, "--db", str(tmp_path / "new.db"), "db", "upgrade"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "sqlalchemy" in done.stderr.split()
    assert {"torch", "transformers", "deepspeed"}.isdisjoint(done.stderr.split())


def test_python_m_autofit_cli_runs(database: Path) -> None:
    done = start("--db", str(database), "trials", "--json", env={**os.environ, "COLUMNS": "40"})
    assert done.returncode == 0 and len(json.loads(done.stdout)) == 5
