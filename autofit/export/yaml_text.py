"""One YAML document of headed sections, with comments before it."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap


def yaml_text(heading: Sequence[str], sections: Mapping[str, Mapping[str, Any]], notes: Mapping[str, str] | None = None) -> str:
    """`sections` (heading -> keys; none is empty, no key occurs twice) as text; `notes` are comments beside a key's value."""
    document = CommentedMap()
    for title, section in sections.items():
        document.update(section)
        document.yaml_set_comment_before_after_key(next(iter(section)), before=f"\n{title}")
    for key, note in (notes or {}).items():
        if key in document:
            document.yaml_add_eol_comment(note, key)
    document.yaml_set_start_comment("\n".join(heading))
    yaml = YAML()
    yaml.width = 4096  # never fold a path over lines
    stream = io.StringIO()
    yaml.dump(document, stream)
    return stream.getvalue()
