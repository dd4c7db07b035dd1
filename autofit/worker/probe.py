"""What this interpreter can train with, told without importing any of it."""

import json
import platform
import sys
from functools import cache
from importlib import metadata

PACKAGES = ("torch", "transformers", "accelerate", "peft", "deepspeed", "llamafactory")


@cache
def versions() -> dict[str, str]:
    """Python and the installed ones of PACKAGES -> version; what is not installed is absent. Only to be read."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def main() -> int:
    """Prints one line: a JSON object, `python` and each of PACKAGES -> version or null."""
    found = versions()
    sys.stdout.write(json.dumps({name: found.get(name) for name in ("python", *PACKAGES)}) + "\n")
    return 0
