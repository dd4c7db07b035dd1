"""A tiny model's folder without weights, and the LLaMA-Factory environment."""

import importlib.util
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def make_tiny() -> Any:
    spec = importlib.util.spec_from_file_location("make_tiny", ROOT / "examples" / "make_tiny.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenizer, image processor and config of the tiny Qwen2.5-VL: all that a profile reads."""
    folder = tmp_path_factory.mktemp("model") / "tiny-qwen2.5-vl"
    maker = make_tiny()
    maker.write_tokenizer(folder)
    maker.write_image_processor(folder)
    config = json.loads((maker.PRESETS / "tiny-qwen2.5-vl.json").read_text())["config"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def llamafactory_python() -> str:
    """The interpreter of the LLaMA-Factory environment. CI must have it; elsewhere its absence skips."""
    found = Path(os.environ.get("AUTOFIT_LLAMAFACTORY_PYTHON") or ROOT / ".venv-llamafactory" / "bin" / "python")
    if not found.exists():
        reason = f"no LLaMA-Factory environment at {found}; `make llamafactory-env` builds it"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return str(found)


@pytest.fixture
def ask_llamafactory(llamafactory_python: str, tmp_path: Path) -> Callable[[str, dict[str, Any]], Any]:
    """Runs `llamafactory_oracle.py` in its environment."""

    def ask(verb: str, order: dict[str, Any]) -> Any:
        given, answer = tmp_path / f"{verb}-order.json", tmp_path / f"{verb}-answer.json"
        given.write_text(json.dumps(order))
        python = Path(llamafactory_python)
        env = {
            **{name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}},
            "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "DS_ACCELERATOR": "cpu",
        }
        command = [python, Path(__file__).with_name("llamafactory_oracle.py"), verb, given, answer]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=False)
        assert answer.exists(), (done.stdout + done.stderr)[-4000:]
        return json.loads(answer.read_text())

    return ask
