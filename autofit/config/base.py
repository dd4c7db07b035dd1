"""The base of every config model, and the one way a file becomes a model."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from autofit.errors import UsageError


class Frozen(BaseModel):
    """Immutable, and strict about keys: an unknown one is an error that names the nearest valid one."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


ModelT = TypeVar("ModelT", bound=BaseModel)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML (or JSON) file.

    Raises:
        UsageError: no such file, not YAML, or not a mapping.
    """
    try:
        value = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path}: must hold a mapping of keys to values, not {type(value).__name__}")
    return value


def parse(model: type[ModelT], value: Mapping[str, Any], source: str) -> ModelT:
    """`value` as `model`; `source` (a file name) leads the message.

    Raises:
        UsageError: one line with the first fault, where it is and what is allowed.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise UsageError(f"{source}: {describe(error, model)}") from error


def describe(error: ValidationError, model: type[BaseModel]) -> str:
    """The faults of a validation error in one line; a misspelt key is told its nearest neighbour."""
    faults = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            names = _keys_at(model, item["loc"][:-1])
            near = difflib.get_close_matches(str(item["loc"][-1]), names, n=1, cutoff=0.4)
            hint = f"did you mean '{near[0]}'?" if near else f"valid keys: {', '.join(sorted(names))}"
            faults.append(f"unknown key '{where}'; {hint}")
            continue
        message = item["msg"].removeprefix("Value error, ")
        seen = "" if item["type"] in {"missing", "value_error"} else f" (got {item['input']!r})"
        faults.append(f"'{where}': {message}{seen}" if where else f"{message}{seen}")
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return " ".join(faults[0].split()) + more


def _keys_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """The valid keys of the (sub)model at a location in `model`."""
    current: type[BaseModel] = model
    for part in loc:
        field = current.model_fields.get(str(part))
        nested = _models_in(field.annotation) if field else []
        if not nested:
            continue  # a list index or a union's tag: the model stays
        current = nested[0]
    return list(current.model_fields)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in getattr(annotation, "__args__", ()) for found in _models_in(part)]
