"""The README tells the truth: its help is the program's, and every command, file and make target that it names is there.

`AUTOFIT_UPDATE_DOCS=1 pytest tests/test_docs.py` writes the help anew.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from autofit.cli.app import COMMANDS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
GROUPS = {"db", "token"}
"""Commands whose options are their subcommands'."""
HELP = re.compile(r"(<!-- help:begin -->\n```text\n)(.*?)(```\n<!-- help:end -->)", re.DOTALL)


def autofit(*arguments: str) -> str:
    command = [sys.executable, "-m", "autofit.cli", *arguments]
    env = {**os.environ, "COLUMNS": "100", "TERM": "dumb"}
    return subprocess.run(command, capture_output=True, text=True, env=env, check=True).stdout


def test_the_pasted_help_is_the_programs() -> None:
    text, printed = README.read_text(), autofit("--help")
    if os.environ.get("AUTOFIT_UPDATE_DOCS"):
        README.write_text(HELP.sub(lambda match: match[1] + printed + match[3], text))
    match = HELP.search(README.read_text())
    assert match is not None and match[2] == printed


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help_and_is_in_the_readme(command: str) -> None:
    assert COMMANDS[command].summary
    assert "Usage: autofit " + command in autofit(command, "--help")
    assert f"autofit {command}" in README.read_text()


def test_every_option_the_readme_uses_exists() -> None:
    text = README.read_text()
    for line in re.findall(r"autofit ([a-z]+ [^\n`#]*)", text):
        command = line.split()[0]
        if command not in COMMANDS:
            continue
        group = line.split()[:2] if command in GROUPS else [command]
        known = autofit(*group, "--help") + autofit("--help")
        for option in re.findall(r"--[a-z][a-z-]*", line):
            assert option in known, f"{option} of: autofit {line}"


def test_every_make_target_the_readme_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z-]+)", README.read_text())) <= targets


def test_every_file_that_is_linked_is_there() -> None:
    for document in (README, *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_ci_runs_what_the_readme_says() -> None:
    assert "make check" in (ROOT / ".ci" / "run").read_text()
