"""Reads the condition of `--where` and writes it as SQL.

It must be an expression over known columns: names, numbers, strings, operators and a few functions. A second statement, a
comment or a subselect is no such thing and is refused before SQLite sees it.
"""

import difflib
import re
from collections.abc import Iterator, Sequence

from autofit.errors import UsageError

_KEYWORDS = frozenset(
    {"and", "or", "not", "is", "null", "like", "glob", "between", "in", "escape", "true", "false"}
    | {"case", "when", "then", "else", "end", "collate", "nocase"}
)
_FUNCTIONS = frozenset({"abs", "round", "lower", "upper", "length", "coalesce", "ifnull", "instr", "substr", "min", "max"})
_TOKEN = re.compile(
    r"""(?P<space>\s+)
      | (?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))
      | (?P<string>'(?:[^']|'')*')
      | (?P<quoted>"(?:[^"]|"")*")
      | (?P<name>[A-Za-z_]\w*)
      | (?P<operator><=|>=|<>|!=|==|\|\||[+*%<>=]|/(?!\*)|-(?!-))
      | (?P<open>\()
      | (?P<close>\))
      | (?P<comma>,)""",
    re.VERBOSE,
)


def parse_where(text: str, columns: Sequence[str]) -> str:
    """`text` as an SQL expression over `columns`.

    A text in double quotes is a column if there is one of that name, else a string, as people write `outcome = "OOM"`.

    Raises:
        UsageError: an unknown column (names the nearest) or something that no condition contains.
    """
    parts: list[str] = []
    depth = 0
    for kind, token, follows_call in _tokens(text):
        if kind == "name":
            parts.append(_name(token, columns, follows_call))
        elif kind == "quoted":
            inner = token[1:-1].replace('""', '"')
            parts.append(inner if inner in columns else "'" + inner.replace("'", "''") + "'")
        else:
            depth += {"open": 1, "close": -1}.get(kind, 0)
            if depth < 0:
                raise UsageError(f"--where: a ) without its ( in {text!r}")
            parts.append(token)
    if depth:
        raise UsageError(f"--where: a ( without its ) in {text!r}")
    if not parts:
        raise UsageError('--where is empty; write for example "peak_reserved_gib < 70 and zero_stage = 3"')
    return " ".join(parts)


def nearest(name: str, valid: Sequence[str]) -> str:
    """`did you mean ...?` for a name that is none of `valid`."""
    near = difflib.get_close_matches(name.lower(), valid, n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else f"columns: {', '.join(valid)}"


def _name(token: str, columns: Sequence[str], is_call: bool) -> str:
    lower = token.lower()
    if is_call and lower not in _KEYWORDS:
        if lower not in _FUNCTIONS:
            raise UsageError(
                f"--where: '{token}(' is no function that a condition may use; allowed: {', '.join(sorted(_FUNCTIONS))}"
            )
        return lower
    if lower in _KEYWORDS or lower in columns:
        return lower
    raise UsageError(f"--where: unknown column '{token}'; {nearest(token, columns)}")


def _tokens(text: str) -> Iterator[tuple[str, str, bool]]:
    """Kind, text, and whether a parenthesis follows."""
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise UsageError(
                f"--where: {text[position : position + 12]!r} has no place in a condition; write columns, numbers, 'strings'"
                " and operators, or use autofit query for more"
            )
        position = match.end()
        kind = str(match.lastgroup)
        if kind != "space":
            yield kind, match[0], text[position:].lstrip().startswith("(")
