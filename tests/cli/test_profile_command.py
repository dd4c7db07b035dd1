"""`autofit profile` from the command line, with this interpreter (no LLaMA-Factory)."""

import json
import sys
from pathlib import Path

import pytest

from autofit.cli.app import main


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A profile of a text dataset and a tiny model's tokenizer."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
    try:
        from make_tiny import PRESETS, write_tokenizer
    finally:
        sys.path.pop(0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_tokenizer(tmp_path / "model")
    config = json.loads((PRESETS / "tiny-llama.json").read_text())["config"]
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    rows = [{"instruction": "what is it", "input": "", "output": "large " * (10 * number + 1)} for number in range(20)]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.json").write_text(json.dumps(rows))
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps({"mine": {"file_name": "mine.json"}}))
    data = ["--dataset", "mine", "--dataset-dir", str(tmp_path / "data")]
    return ["profile", "--model", str(tmp_path / "model"), *data, "--template", "llama3", "--python", sys.executable]


def test_table_and_json_say_the_same(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--cutoff-len", "64,1024", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["samples"] == 20
    assert document["cutoff_floor"] == 1
    assert document["longest_sample"] == "row 19 of mine"
    assert [entry["cutoff_len"] for entry in document["truncation"]] == [64, 1024]
    assert document["truncation"][0]["samples_truncated"] > 10
    assert document["truncation"][1]["samples_truncated"] == 0
    assert sum(entry["samples"] for entry in document["length_histogram"]) == 20
    assert main([*command, "--cutoff-len", "64,1024"]) == 0
    shown = capsys.readouterr()
    assert f"{document['tokens']['total']:,}" in shown.out
    assert "row 19 of mine" in shown.out
    assert "none: no sample has image tokens" in shown.out
    assert f"{document['truncation'][0]['samples_truncated']}" in shown.out
    assert "the tokenizer's own chat template" in shown.out


def test_a_row_that_would_end_the_training_is_exit_1(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "data" / "mine.json"
    rows = json.loads(file.read_text())
    rows[7]["instruction"] = 7
    file.write_text(json.dumps(rows))
    assert main([*command, "--json"]) == 1
    shown = capsys.readouterr()
    assert json.loads(shown.out)["faults"][0]["row"] == 7
    assert shown.err.splitlines()[-1].startswith("error: 1 row(s) would end the training before it starts: row 7 of mine")


def test_usage(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--cutoff-len", "many"]) == 2
    assert "write positive whole numbers" in capsys.readouterr().err
    assert main([*command, "--cutoff-len", "0"]) == 2
    assert main(["mine" if word == "mine" else word for word in command] + ["--dataset", "mein"]) == 2
    assert "did you mean 'mine'?" in capsys.readouterr().err
    assert main([*command, "--python", "/no/such/python"]) == 1
    assert "no such interpreter" in capsys.readouterr().err
