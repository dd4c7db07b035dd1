"""Runs in the LLaMA-Factory environment, which has TRL 0.24: parses every YAML file of a folder as `trl sft --config` would.

    PYTHON trl_parse.py FOLDER OUT.json

OUT.json: file name -> {"error": message}, or {"unknown": keys that TRL's script does not read, "values": the parsed ones}.
"""

import dataclasses
import json
import sys
from pathlib import Path


def main() -> None:
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    import transformers.training_args
    from trl.scripts.sft import make_parser

    transformers.training_args.is_torch_bf16_gpu_available = lambda: True
    found: dict[str, dict[str, object]] = {}
    for file in sorted(folder.glob("*.yaml")):
        try:
            *groups, rest = make_parser().parse_args_and_config(["--config", str(file)], return_remaining_strings=True)
        except Exception as error:
            found[file.name] = {"error": f"{type(error).__name__}: {error}"}
            continue
        values: dict[str, object] = {}
        for group in groups:
            values |= {field.name: getattr(group, field.name, None) for field in dataclasses.fields(group)}
        found[file.name] = {"unknown": rest, "values": values}
    out.write_text(json.dumps(found, default=str))


if __name__ == "__main__":
    main()
