"""The worker runs where nothing of autofit's own dependencies exists."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from worker_orders import write_spec

from autofit.resources import worker_entry

TORCH_STACK = {"torch", "transformers", "accelerate", "peft", "deepspeed", "pynvml", "numpy", "bitsandbytes"}
TORCH_STACK |= {"llamafactory", "safetensors", "datasets", "pyarrow", "PIL"}  # what reads the training data there
SOURCES = sorted(worker_entry().parent.rglob("*.py"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_imports_stay_on_the_island(source: Path) -> None:
    allowed = set(sys.stdlib_module_names) | TORCH_STACK
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
            assert node.level == 0
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            on_island = name.startswith("autofit.worker") or name.partition(".")[0] in allowed
            assert on_island, f"{source.name} imports {name}"


def bare(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the worker by path in an interpreter that has the standard library and nothing else."""
    command = [sys.executable, "-I", "-S", str(worker_entry()), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_probe_tells_what_is_missing() -> None:
    done = bare("probe")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["torch"] is None


def test_a_broken_spec_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_text('{"trial": {}')
    done = bare(str(path))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert bare().returncode == 2


def test_supervisor_runs_bare_and_reports_a_missing_torch(tmp_path: Path) -> None:
    """The ranks inherit no `-S`, so PYTHONPATH-less isolation is not theirs; a spec with another engine needs no torch."""
    path = write_spec(tmp_path)
    content = json.loads(path.read_text())
    content["engine"] = "llamafactory-from-the-future"
    path.write_text(json.dumps(content))
    done = bare("run", str(path))
    assert done.returncode == 1
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["outcome"] == "CRASHED"
    assert "llamafactory-from-the-future" in result["message"]
