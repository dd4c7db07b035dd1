"""Runs in the LLaMA-Factory environment: parses every YAML file of a folder as `llamafactory-cli train` would.

    PYTHON llamafactory_parse.py FOLDER OUT.json

OUT.json: `files`, file name -> {"error": message} or {"values": {key: parsed value}} over all of LLaMA-Factory's argument
classes; and `templates`, the names of its chat templates.
Torchrun's variables make this process rank 0 of 1; the checks for a GPU that the files were written for are answered yes.
"""

import dataclasses
import json
import os
import socket
import sys
from pathlib import Path


def main() -> None:
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    from llamafactory.data.template import TEMPLATES
    from llamafactory.hparams import parser
    from transformers import training_args

    training_args.is_torch_bf16_gpu_available = parser.is_torch_bf16_gpu_available = lambda: True
    found = {}
    for file in sorted(folder.glob("*.yaml")):
        sys.argv = ["train", str(file)]  # what the launcher leaves of its command line
        try:
            found[file.name] = {"values": _values(parser.get_train_args())}
        except Exception as error:
            found[file.name] = {"error": f"{type(error).__name__}: {error}"}
    out.write_text(json.dumps({"files": found, "templates": sorted(TEMPLATES)}))


def _values(groups: tuple[object, ...]) -> dict[str, object]:
    values: dict[str, object] = {}
    for group in groups:
        for field in dataclasses.fields(group):
            value = getattr(group, field.name, None)
            values[field.name] = value if isinstance(value, bool | int | float | str | dict | list | None) else str(value)
    return json.loads(json.dumps(values, default=str))


if __name__ == "__main__":
    main()
