"""The example files of `tests/data/llamafactory_examples` in a folder where their paths lead somewhere."""

import json
import shutil
from pathlib import Path

from autofit.config.model import ModelRef, resolve_model

EXAMPLES = Path(__file__).parent / "data" / "llamafactory_examples"
NAMES = sorted(file.stem for file in EXAMPLES.glob("*.yaml"))
BEYOND = sorted(file.stem for file in (EXAMPLES / "beyond").glob("*.yaml"))


def lay_out(folder: Path) -> Path:
    """Copies the examples to `folder`, with models that have a config and no weights, and data that is only described."""
    shutil.copytree(EXAMPLES, folder, dirs_exist_ok=True)
    for name in ("tiny-llama", "tiny-qwen2.5-vl"):
        model = folder / "models" / name
        model.mkdir(parents=True)
        (model / "config.json").write_text(json.dumps(resolve_model(ModelRef(preset=name)).config))
        (model / "model.safetensors").touch()
    (folder / "data").mkdir()
    described = {"tiny_vl": {"file_name": "v.json", "columns": {"images": "images"}}, "tiny_text": {"file_name": "t.json"}}
    (folder / "data" / "dataset_info.json").write_text(json.dumps(described))
    return folder
