"""`autofit search` and `doctor` as a user meets them: a real process, its two streams and its exit status."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def autofit(tmp_path: Path) -> Run:
    def run(*arguments: str, **env: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "autofit.cli", *arguments]
        here = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **env}
        return subprocess.run(command, cwd=tmp_path, env=here, capture_output=True, text=True, timeout=120, check=False)

    return run


@pytest.fixture
def tiny(stub_python: str) -> list[str]:
    return ["search", "--space", "tiny_qwen2_5_vl", "--device", "cpu", "--python", stub_python, "--study", "s"]


def only_line(done: "subprocess.CompletedProcess[str]") -> str:
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


def test_a_search_answers_on_stdout_and_talks_on_stderr(autofit: Run, tiny: list[str]) -> None:
    done = autofit(*tiny, "--gpu-mem", "204MB", "--trials", "8")
    assert done.returncode == 0, done.stderr
    assert "winner: trial" in done.stdout and "confirmed over 40 steps" in done.stdout
    assert "autofit export --study s" in done.stdout
    assert done.stderr.count("\n#") == 9  # eight trials and the confirmation, a line each where there is no terminal
    assert "209,631,313 bytes (199.9 MiB) a device" in done.stderr


def test_json_is_one_document(autofit: Run, tiny: list[str]) -> None:
    done = autofit(*tiny, "--gpu-mem", "204MB", "--trials", "5", "--json")
    answer = json.loads(done.stdout)
    assert answer["winner"]["result"]["outcome"] == "COMPLETED"
    assert answer["confirmed_by"]["purpose"] == "confirm"
    assert answer["trials"] == 5


def test_the_compromise_tables_measured_rows_are_what_trials_holds(autofit: Run, tiny: list[str]) -> None:
    answer = json.loads(autofit(*tiny, "--gpu-mem", "204MB", "--trials", "40", "--json").stdout)
    held = {row["trial_number"]: row for row in json.loads(autofit("trials", "--study", "s", "--json").stdout)}
    winner = held[answer["winner"]["trial_number"]]
    measured = [row for row in answer["compromises"] if row["evidence"] == "measured"]
    assert {row["kind"] for row in measured} == {"training", "running"} and len(measured) > 4
    for row in measured:
        trial = held[row["trial_number"]]
        assert trial["purpose"] == "search"
        assert (row["samples_per_second"], row["peak_device_bytes"]) == (
            trial["samples_per_second"],
            trial["peak_device_bytes"],
        )
        if row["fits"]:
            assert trial["outcome"] == "COMPLETED" and trial["margin_bytes"] >= 0
            assert row["speedup"] == trial["samples_per_second"] / winner["samples_per_second"]
            assert row["more_bytes"] == trial["peak_device_bytes"] - winner["peak_device_bytes"]
        else:
            assert row["speedup"] is None and trial["outcome"] != "COMPLETED"
    # and it is the fastest of its kind: no other trial with the same single change is faster
    short = next(row for row in measured if row["changes"] == ["cutoff_len 96 instead of 192"])
    same = ("method", "freeze_vision_tower", "freeze_multi_modal_projector")
    others = [t for t in held.values() if t["cutoff_len"] == 96 and all(t[name] == winner[name] for name in same)]
    assert short["samples_per_second"] == max(t["samples_per_second"] or 0 for t in others)


def test_an_allowed_trade_is_made_and_said(autofit: Run, tiny: list[str]) -> None:
    asked = ["--min-cutoff-len", "96", "--samples-per-epoch", "3600", "--gpu-hour-price", "2"]
    done = autofit(*tiny, "--gpu-mem", "204MB", "--trials", "30", *asked)
    assert done.returncode == 0, done.stderr
    assert "you asked for: min_cutoff_len 96" in done.stdout
    assert "against the reference: cutoff_len 96 instead of 192" in done.stdout
    assert "an epoch of 3,600 samples takes" in done.stdout and "(2 x 2 an hour)" in done.stdout
    again = autofit("search", "--resume", "--gpu-mem", "204MB", "--trials", "30", "--min-cutoff-len", "192")
    assert again.returncode == 2 and "was started with --min-cutoff-len 96, not 192" in only_line(again)


def test_no_winner_is_exit_1_with_the_way_on(autofit: Run, tiny: list[str]) -> None:
    done = autofit(*tiny, "--gpu-mem", "60MB", "--trials", "3")
    assert done.returncode == 1
    assert "none of 3 configurations tried runs the reference's training within 58.8 MiB" in only_line(done)
    assert "autofit search --resume --study s" in only_line(done)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["search"], 2, "--gpu-mem"),
        (["search", "--gpu-mem", "lots"], 2, "is not a memory size"),
        (["search", "--gpu-mem", "80GB", "--time-limit", "soon"], 2, "is not a duration"),
        (["search", "--gpu-mem", "80GB", "--space", "qwen2_5_vl7b"], 2, "did you mean 'qwen2_5_vl_7b'?"),
        (["search", "--gpu-mem", "80GB", "--model", "qwen2.5-vl-8b"], 2, "did you mean the preset 'qwen2.5-vl-7b'?"),
        (["search", "--gpu-mem", "400MB", "--device", "cpu"], 2, "too large"),
        (["search", "--gpu-mem", "1MB", "--space", "tiny_qwen2_5_vl", "--device", "cpu"], 2, "impossible"),
        (["search", "--gpu-mem", "80GB", "--resume"], 2, "no study yet"),
        (["search", "--gpu-mem", "80GB", "--objective", "cost_per_epoch"], 2, "needs gpu_hour_price (--gpu-hour-price)"),
        (["search", "--gpu-mem", "80GB", "--min-cutoff-len", "9000"], 2, "is above every cutoff_len of the space"),
        (["search", "--gpu-mem", "80GB", "--allow-freezing", "tower"], 2, "'vision_tower'"),
        (
            ["search", "--gpu-mem", "400MB", "--space", "tiny_qwen2_5_vl", "--device", "cpu", "--python", "/no"],
            1,
            "no such interpreter",
        ),
        (["search", "--gpu-mem", "80GB", "--db", "/no/such/folder/a.db"], 1, "/no/such/folder"),
    ],
)
def test_bad_input_is_one_line(autofit: Run, arguments: list[str], status: int, words: str) -> None:
    done = autofit(*arguments)
    assert done.returncode == status
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr and done.stdout == ""


def test_a_model_folder_without_config_is_one_line(autofit: Run, tiny: list[str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = autofit(*tiny, "--gpu-mem", "204MB", "--model", str(tmp_path / "empty"))
    assert done.returncode == 2
    assert "has no config.json" in only_line(done)


def test_an_unreadable_database_is_one_line_and_is_left_alone(autofit: Run, tiny: list[str], tmp_path: Path) -> None:
    (tmp_path / "autofit.db").write_text("this is no database, but somebody needs it\n" * 100)
    before = (tmp_path / "autofit.db").read_bytes()
    done = autofit(*tiny, "--gpu-mem", "204MB")
    assert done.returncode == 1
    assert "autofit.db" in only_line(done)
    assert (tmp_path / "autofit.db").read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_the_user_is_130_and_goes_on(autofit: Run, tiny: list[str], tmp_path: Path, number: signal.Signals) -> None:
    env = {**os.environ, "AUTOFIT_STUB_SECONDS": "0.5"}
    command = [sys.executable, "-m", "autofit.cli", *tiny, "--gpu-mem", "204MB", "--trials", "6"]
    with subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True) as search:
        assert search.stderr is not None
        while not search.stderr.readline().startswith("#1"):
            assert search.poll() is None
        time.sleep(0.2)
        search.send_signal(number)
        said = search.stderr.read()
        assert search.wait() == 130
    assert "autofit search --resume --study s goes on" in said
    done = autofit("search", "--resume", "--gpu-mem", "204MB", "--trials", "6", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["trials"] == 6


def test_doctor_names_what_is_missing_and_what_mends_it(autofit: Run, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.write_text(f'#!{sys.executable}\nprint(\'{{"python": "3.12", "torch": null}}\')\n')
    bare.chmod(0o755)
    done = autofit("doctor", "--python", str(bare), "--json")
    assert done.returncode == 1
    found = {item["what"]: item for item in json.loads(done.stdout)}
    assert found["torch"]["status"] == "missing" and found["torch"]["mend"] == f"{bare} -m pip install torch"
    assert found["GPU"]["status"] == "note"


def test_doctor_is_content_with_the_training_environment(autofit: Run, stub_python: str) -> None:
    done = autofit("doctor", "--python", stub_python)
    assert done.returncode == 0
    assert "deepspeed" in done.stdout
