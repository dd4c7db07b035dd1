"""A certificate holds where nothing has changed, and names what has."""

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from llamafactory_files import lay_out

from autofit.config.record import TrialRecord
from autofit.config.result import TrialResult
from autofit.config.space import DatasetRef
from autofit.errors import UsageError
from autofit.export import EXPORTERS, export
from autofit.export.digest import dataset_digest
from autofit.tuning.plan import SearchRequest, plan_study
from autofit.tuning.verification import Verdict, read_certificate, verify

VERSIONS = {"python": "3.11", **dict.fromkeys(("torch", "transformers", "accelerate", "peft", "deepspeed"), "stub")}


@pytest.fixture
def exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stub_python: str) -> Path:
    """An export of a measured and confirmed trial, with its data beside it."""
    here = lay_out(tmp_path / "here")
    monkeypatch.chdir(here)
    (here / "data" / "t.json").write_text('[{"instruction": "a", "output": "b"}]')
    write(here / "best", stub_python)
    return here / "best"


def write(folder: Path, python: str, launcher: str = "llamafactory", on: str = "cpu", **changed: Any) -> None:
    request = SearchRequest(gpu_mem_bytes=2**29, device="cpu", num_gpus=2, python=python, from_file="text_lora.yaml", study="s")
    plan = plan_study(request)
    measured = {"peak_device_bytes": 2**28, "step_time_seconds": 1.0, "samples_per_second": 8.0, "tokens_per_second": 9.0}
    result = TrialResult.model_validate({"outcome": "COMPLETED", "timed_steps": 5, "versions": VERSIONS, **measured, **changed})
    now = datetime.now(UTC)
    trial = TrialRecord(
        study="s",
        trial_number=2,
        spec=plan.legal.reference,
        reason="t",
        run_dir="r",
        started_at=now,
        finished_at=now,
        result=result,
    )
    longer = {"purpose": "confirm", "trial_number": 5}
    study = plan.study.model_copy(update={"hardware": plan.study.hardware.model_copy(update={"device": on})})
    export(study, trial, None, launcher, folder, confirm=trial.model_copy(update=longer))


def look(folder: Path, **arguments: Any) -> Verdict:
    return verify(folder, read_certificate(folder), **arguments)


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Makes the certificate one of another place."""
    content = json.loads((folder / "autofit.json").read_text())
    edit(content)
    (folder / "autofit.json").write_text(json.dumps(content))


def test_where_nothing_changed_it_holds(exported: Path) -> None:
    assert look(exported) == Verdict((), ())
    certificate = read_certificate(exported)
    assert [file.name for file in certificate.files] == ["train.yaml", "train.diff"]
    assert certificate.confirm is not None and certificate.confirm.trial_number == 5
    assert certificate.search is not None and certificate.search.margin_bytes == certificate.memory_budget_bytes - 2**28
    assert certificate.dataset.sha256 is not None


def test_another_transformers(exported: Path, stub_python: str) -> None:
    other = Path(stub_python).with_name("other")
    text = Path(stub_python).read_text()
    assert text.count('llamafactory": None}') == 1
    other.write_text(text.replace('llamafactory": None}', 'llamafactory": None, "transformers": "9.9"}'))
    other.chmod(0o755)
    assert look(exported, python=str(other)).broken == ("versions: transformers is 9.9 here, was stub",)
    assert look(exported, python="/no/such/python").broken == ("versions: --python /no/such/python: no such interpreter",)


def test_another_image(exported: Path, stub_python: str) -> None:
    """Drawn anew with the same number of bytes; and a copy of the data with other times of change, which still holds."""
    data = exported.parent / "data"
    info = json.loads((data / "dataset_info.json").read_text())
    info["tiny_text"]["columns"] = {"images": "pictures"}
    (data / "dataset_info.json").write_text(json.dumps(info))
    (data / "t.json").write_text(json.dumps([{"pictures": ["a.png"]}, {"pictures": ["b.png", "gone.png"]}]))
    for name in ("a.png", "b.png"):
        (data / name).write_bytes(name.encode())
    write(exported, stub_python)
    assert look(exported) == Verdict((), ()) and read_certificate(exported).dataset.media_files == 3
    (data / "b.png").touch()
    assert look(exported).holds
    (data / "b.png").write_bytes(b"B.png")
    assert look(exported).broken == (f"data set: tiny_text in {data} has changed",)
    (data / "b.png").write_bytes(b"b.png")
    assert look(exported).holds
    (data / "gone.png").write_bytes(b"here")
    assert not look(exported).holds


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.jsonl", '{"pictures": "a.png"}\n\n{"pictures": null}\n'),
        ("t.csv", 'text,pictures\nx,"[""a.png""]"\n'),
        ("t.json", '{"pictures": [["a.png"]]}\n{"pictures": []}\n'),
    ],
)
def test_images_in_every_form_of_rows(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "dataset_info.json").write_text(json.dumps({"d": {"file_name": name, "columns": {"images": "pictures"}}}))
    (tmp_path / name).write_text(text)
    (tmp_path / "a.png").write_bytes(b"1")
    before = dataset_digest(DatasetRef(name="d", dir=str(tmp_path)))
    (tmp_path / "a.png").write_bytes(b"2")
    after = dataset_digest(DatasetRef(name="d", dir=str(tmp_path)))
    assert before.media_files == after.media_files == 1 and before.sha256 != after.sha256


def test_rows_that_are_not_looked_through_are_named(tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text(json.dumps({"d": {"file_name": "t.parquet", "columns": {"images": "i"}}}))
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    assert dataset_digest(DatasetRef(name="d", dir=str(tmp_path))).unread == ("t.parquet",)


def test_another_row_of_data(exported: Path) -> None:
    file = exported.parent / "data" / "t.json"
    before = file.read_text()
    file.write_text(before.replace('"b"', '"c"'))
    assert [line.split(":")[0] for line in look(exported).broken] == ["data set"]
    assert "tiny_text in" in look(exported).broken[0] and "has changed" in look(exported).broken[0]
    file.write_text(before)
    assert look(exported).holds
    info = exported.parent / "data" / "dataset_info.json"
    info.write_text(info.read_text().replace('"t.json"', '"t.json", "formatting": "sharegpt"'))
    assert not look(exported).holds
    file.unlink()
    assert "t.json is not here" in look(exported).broken[0]


def test_another_machine_or_budget(exported: Path) -> None:
    assert "budget: 98.0 MiB a rank here, the proof is for 501.8 MiB" in look(exported, gpu_mem_bytes=100 * 2**20).broken
    assert look(exported, gpu_mem_bytes=2**30).holds, "more memory than was proved is no fault"
    text = (exported / "autofit.json").read_text()

    def renamed(content: dict[str, Any]) -> None:
        for device in content["hardware"]["devices"]:
            device["name"] = "Card X"

    change(exported, renamed)
    assert [line.split(",")[-1] for line in look(exported).broken] == [" was Card X"]
    (exported / "autofit.json").write_text(text)
    change(exported, lambda content: content["hardware"].update(device="cuda"))
    assert look(exported).broken[0].startswith("hardware: 2 GPU(s) wanted")
    (exported / "autofit.json").write_text(text)
    change(exported, lambda content: content.update(memory_budget_bytes=2**27))
    assert look(exported).broken == ("budget: the measured peak 256.0 MiB exceeds the budget 128.0 MiB",)


def test_another_file(exported: Path) -> None:
    with (exported / "train.yaml").open("a") as stream:
        stream.write("cutoff_len: 4096\n")
    assert look(exported).broken == ("file: train.yaml is not what was exported",)
    (exported / "train.yaml").unlink()
    assert look(exported).broken == ("file: train.yaml cannot be read (No such file or directory)",)


def test_what_was_not_measured_is_not_proved(exported: Path, stub_python: str) -> None:
    nothing = dict.fromkeys(
        ("peak_device_bytes", "step_time_seconds", "samples_per_second", "tokens_per_second", "timed_steps")
    )
    write(exported, stub_python, outcome="PREDICTED", versions={}, **nothing)
    verdict = look(exported)
    assert verdict.broken == ("nothing was measured: the configuration is PREDICTED, it was never run",)
    assert verdict.unchecked == ("versions: none were recorded",)
    certificate = read_certificate(exported)
    assert (certificate.search, certificate.confirm) == (None, None)
    write(exported, stub_python, outcome="OOM", **nothing)
    assert "did not run to its end: OOM" in look(exported).broken[0]


def test_data_that_are_not_here_cannot_be_checked(exported: Path, stub_python: str) -> None:
    (exported.parent / "data" / "dataset_info.json").write_text('{"tiny_text": {"hf_hub_url": "org/data"}}')
    write(exported, stub_python)
    assert look(exported) == Verdict((), ("data set: data set tiny_text is not local (hf_hub_url)",))


@pytest.mark.parametrize("launcher", sorted(set(EXPORTERS) - {"deepspeed"}))
def test_every_launchers_files_are_certified(exported: Path, stub_python: str, launcher: str) -> None:
    data = exported.parent / "data"
    if launcher == "trl":  # it reads no alpaca columns
        (data / "t.json").write_text('[{"prompt": "a", "completion": "b"}]')
        entries = json.loads((data / "dataset_info.json").read_text())
        for entry in entries.values():
            if entry["file_name"] == "t.json":
                entry["columns"] = {"prompt": "prompt", "response": "completion"}
        (data / "dataset_info.json").write_text(json.dumps(entries))
    write(exported.parent / launcher, stub_python, launcher, on="cuda" if launcher == "axolotl" else "cpu")
    certificate = read_certificate(exported.parent / launcher)
    if launcher != "axolotl":  # whose GPUs are not here
        assert look(exported.parent / launcher).holds
    names = {file.name for file in (exported.parent / launcher).iterdir()}
    assert names == {"autofit.json", *(file.name for file in certificate.files)}


def test_the_command(exported: Path) -> None:
    def run(*more: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "autofit.cli", "verify", "best", *more]
        return subprocess.run(command, cwd=exported.parent, capture_output=True, text=True, check=False)

    assert (run().returncode, run().stdout) == (0, "holds\n")
    (exported / "train.yaml").write_text("")
    assert (run().returncode, run().stdout) == (1, "does not hold: file: train.yaml is not what was exported\n")
    assert json.loads(run("--json").stdout)["broken"] == ["file: train.yaml is not what was exported"]


def test_a_folder_without_a_certificate(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"autofit\.json: cannot be read"):
        read_certificate(tmp_path)
    (tmp_path / "autofit.json").write_text('{"schema_version": 2}')
    with pytest.raises(UsageError, match="schema_version"):
        read_certificate(tmp_path)
