"""A LLaMA-Factory YAML as its author wrote it: read, and changed in place so that all else stays, byte for byte.

The parser only says where a value stands; the text is spliced there. Dumping the document again would move comments, quotes
and blank lines. What was spliced is read back and compared, so a construct that this cannot handle is an error, never a loss.
"""

import io
import json
import re
from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode

from autofit.errors import AutofitError, UsageError

REMOVED = object()
"""As a value of `edited`'s changes: the key goes."""

_PLAIN = re.compile(r"[A-Za-z_/.][A-Za-z0-9_/.-]*")
_WORDS = frozenset({"true", "false", "yes", "no", "on", "off", "null", "none", "y", "n", "~"})
_ADDED = "# autofit: added"


def launcher_values(text: str, source: str) -> dict[str, Any]:
    """The top-level keys of a file and their values, read as the launcher reads them (YAML 1.1: `yes` is a truth value).

    Raises:
        UsageError: not YAML, or not a mapping; `source` (the file's name) leads the message.
    """
    yaml = YAML(typ="safe")
    yaml.version = "1.1"
    try:
        values = yaml.load(text)
    except YAMLError as error:
        raise UsageError(f"{source}: is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UsageError(f"{source}: must hold a mapping of keys to values, not {type(values).__name__}")
    return values


def edited(text: str, changes: Mapping[str, Any], source: str) -> str:
    """`text` with top-level keys set to new values; a key that is not there is added at the end, a REMOVED one commented out.

    Every other line, comment and quote stays. A changed line without a comment is given the old value as one.

    Raises:
        AutofitError: the file is written in a way (anchors, one flow mapping) in which its lines cannot be changed apart.
    """
    old = launcher_values(text, source)
    # a key without a value says nothing: there is nothing to remove
    changes = {
        key: value
        for key, value in changes.items()
        if (old.get(key) is not None if value is REMOVED else key not in old or old[key] != value)
    }
    if not changes:
        return text
    root = YAML().compose(text)
    if not isinstance(root, MappingNode) or root.flow_style:
        raise AutofitError(f"{source}: is one flow mapping {{...}}; write one key a line, so that single lines can be changed")
    nodes = {key.value: (key, value) for key, value in root.value}
    result = text
    for key in sorted((key for key in changes if key in nodes), key=lambda key: -nodes[key][0].start_mark.index):
        result = _spliced(result, key, *nodes[key], changes[key])
    result = _appended(result, {key: value for key, value in changes.items() if key not in nodes and value is not REMOVED})
    if text.count("\n") == text.count("\r\n"):
        result = re.sub(r"(?<!\r)\n", "\r\n", result)  # our lines end as the author's do
    wanted = {key: value for key, value in {**old, **changes}.items() if value is not REMOVED}
    if not _reads_as(result, wanted):
        raise AutofitError(f"{source}: {', '.join(changes)} cannot be changed in place; write them as plain `key: value` lines")
    return result


def _reads_as(text: str, wanted: Mapping[str, Any]) -> bool:
    try:
        return launcher_values(text, "") == wanted
    except UsageError:
        return False


def _spliced(text: str, key: str, key_node: Node, value_node: Node, value: Any) -> str:
    """`text` with one key's value replaced, or its lines commented out."""
    if value_node.start_mark.index == value_node.end_mark.index:  # no value: its mark may stand anywhere behind the colon
        colon = text.index(":", key_node.end_mark.index) + 1
        return f"{text[:colon]} {_scalar(value)}{text[colon:]}"
    begin, end = key_node.start_mark.index, _end(text, value_node)
    line_end = text.find("\n", end)
    line_end = len(text) if line_end < 0 else line_end
    if value is REMOVED:
        gone = "\n".join(f"# {line}" for line in text[begin:line_end].split("\n"))
        return f"{text[:begin]}# autofit: taken out\n{gone}{text[line_end:]}"
    was = "" if text[end:line_end].strip() or not isinstance(value_node, ScalarNode) else f"  # autofit: was {value_node.value}"
    if isinstance(value, Mapping):
        return f"{text[:begin]}{key}:{was}{text[end:line_end].rstrip()}\n{_block(value)}{text[line_end:]}"
    start = value_node.start_mark.index
    gap = "" if text[start - 1 : start] in {" ", "\t"} else " "
    return f"{text[:start]}{gap}{_scalar(value)}{was}{text[end:]}"


def _end(text: str, node: Node) -> int:
    """Where the last character of a value stands; a block's end mark lies beyond the comments that follow it."""
    begin, end = node.start_mark.index, node.end_mark.index
    if isinstance(node, ScalarNode) and node.style not in {"|", ">"}:
        return int(end)
    lines = text[begin:end].split("\n")
    while len(lines) > 1 and (not lines[-1].strip() or lines[-1].lstrip().startswith("#")):
        lines.pop()
    return int(begin) + len("\n".join(lines).rstrip())


def _appended(text: str, added: Mapping[str, Any]) -> str:
    if not added:
        return text
    lines = [
        f"{key}:\n{_block(value)}" if isinstance(value, Mapping) else f"{key}: {_scalar(value)}" for key, value in added.items()
    ]
    gap = "\n" if text.endswith("\n") else "\n\n"
    return f"{text}{gap}{_ADDED}\n" + "\n".join(lines) + "\n"


def _block(value: Mapping[str, Any]) -> str:
    """A nested mapping, indented, without a final line break."""
    stream = io.StringIO()
    yaml = YAML()
    yaml.width = 4096
    yaml.dump(json.loads(json.dumps(value)), stream)
    return "\n".join(f"  {line}" for line in stream.getvalue().rstrip().split("\n"))


def _scalar(value: Any) -> str:
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return json.dumps(value)
