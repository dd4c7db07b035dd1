"""The package as a user installs it: nothing of torch in the driver, and a wheel that works away from its checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DRIVER = [
    "autofit.cli.app",
    "autofit.cli.search",
    "autofit.cli.search_view",
    "autofit.cli.query",
    "autofit.cli.database",
    "autofit.cli.export",
    "autofit.cli.doctor",
    "autofit.cli.profile",
    "autofit.data.throughput",
    "autofit.tuning.profiling",
    "autofit.tuning.driver",
    "autofit.tuning.plan",
    "autofit.search.samplers",
    "autofit.store.store",
    "autofit.export",
]
HEAVY = {"torch", "transformers", "deepspeed", "accelerate", "peft"}


@pytest.mark.parametrize("module", DRIVER)
def test_the_driver_never_loads_torch(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert HEAVY.isdisjoint(done.stdout.split())


def test_a_whole_search_never_loads_torch(stub_python: str, tmp_path: Path) -> None:
    code = (
        "import sys; from autofit.cli.app import main\n"
        "status = main(sys.argv[1:])\n"
        "sys.stderr.write('LOADED ' + ' '.join(sys.modules) + '\\n'); sys.exit(status)"
    )
    command = [
        "search",
        "--gpu-mem",
        "204MB",
        "--space",
        "tiny_qwen2_5_vl",
        "--device",
        "cpu",
        "--python",
        stub_python,
        "--trials",
        "8",
    ]
    done = subprocess.run([sys.executable, "-c", code, *command], cwd=tmp_path, capture_output=True, text=True, check=True)
    loaded = next(line for line in done.stderr.splitlines() if line.startswith("LOADED"))
    assert HEAVY.isdisjoint(loaded.split())
    assert "optuna" in loaded.split()  # it was a real search


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    with zipfile.ZipFile(next(folder.glob("autofit_llm-*.whl"))) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_runs_away_from_its_checkout(wheel: Path, stub_python: str, tmp_path: Path) -> None:
    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        code = f"import sys; sys.path.insert(0, {str(wheel)!r}); from autofit.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(command, cwd=tmp_path, env={**os.environ}, capture_output=True, text=True, check=False)

    done = run(
        "search",
        "--gpu-mem",
        "204MB",
        "--space",
        "tiny_qwen2_5_vl",
        "--device",
        "cpu",
        "--python",
        stub_python,
        "--trials",
        "2",
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "autofit.db").exists()
    assert str(ROOT) not in done.stderr
    done = run("db", "current")
    assert done.returncode == 0, done.stderr
    assert run("search", "--gpu-mem", "80GB", "--space", "llama").stderr.count("did you mean 'llama_text'") == 1


def test_the_wheel_holds_the_worker_spaces_and_migrations(wheel: Path) -> None:
    files = {str(file.relative_to(wheel)) for file in wheel.rglob("*") if file.is_file()}
    assert "autofit/worker/__main__.py" in files
    assert "autofit/config/presets/qwen2.5-vl-7b.json" in files
    assert "autofit/_resources/search_spaces/qwen2_5_vl_7b.yaml" in files
    assert any(name.startswith("autofit/_resources/db/versions/0001") for name in files)
    assert not any(name.startswith(("tests", "benchmarks")) for name in files)
