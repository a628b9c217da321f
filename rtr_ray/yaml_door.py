"""Reading a YAML file that a person wrote, and saying in one sentence what is wrong with it."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from rtr_ray.errors import ConfigError

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")

Model = TypeVar("Model", bound="Door")


class Door(BaseModel):
    """The base of everything that is read from YAML: frozen, and no key that nobody knows."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file, with `${NAME}` and `${NAME:-default}` filled from the environment.

    Raises:
        ConfigError: If the file cannot be read, is no YAML, holds a key twice, or names a
            variable that is not set.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"There is no file {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Cannot read {path}: {error}.") from error
    try:
        content = yaml.load(text, Loader=_Loader)  # a SafeLoader that refuses a key given twice
    except _DuplicateKeyError as error:
        raise ConfigError(f"{path}, line {error.line}: the key '{error.key}' is given twice.") from None
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        raise ConfigError(f"{path}{line}: not YAML: {getattr(error, 'problem', None) or error}.") from error
    return _filled(content, path, "")


def validated(model: type[Model], content: Any, where: str) -> Model:
    """The content as a model.

    Args:
        where: The file, for the message.

    Raises:
        ConfigError: Naming the file, the key, what was found and what is expected.
    """
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: a mapping of keys is expected, found {type(content).__name__}.")
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_sentence(model, error)}") from None


class _DuplicateKeyError(Exception):
    def __init__(self, key: str, line: int) -> None:
        self.key, self.line = key, line


class _Loader(yaml.SafeLoader):
    pass


def _mapping(loader: _Loader, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
    seen: set[Hashable] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            raise _DuplicateKeyError(str(key), key_node.start_mark.line + 1)
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _filled(value: Any, path: Path, key: str) -> Any:
    if isinstance(value, dict):
        return {
            name: _filled(item, path, f"{key}.{name}" if key else str(name)) for name, item in value.items()
        }
    if isinstance(value, list):
        return [_filled(item, path, f"{key}[{number}]") for number, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def fill(found: re.Match[str]) -> str:
        name, default = found.groups()
        filled = os.environ.get(name, default)
        if filled is None:
            raise ConfigError(f"{path}: {key} needs the environment variable {name}, which is not set.")
        return filled

    return _VARIABLE.sub(fill, value)


def _sentence(model: type[BaseModel], error: ValidationError) -> str:
    """The first thing that is wrong, and how many others there are."""
    problems = error.errors(include_url=False)
    # a value that fits none of several types is reported once per type: the deepest says most
    first = max(problems, key=lambda problem: (problem["type"] == "extra_forbidden", len(problem["loc"])))
    path = [part for part in first["loc"] if not _is_type_name(part)]
    key = _dotted(path)
    parent, described = _parent(model, path)
    others = len({tuple(problem["loc"]) for problem in problems}) - 1
    more = f" ({others} more problem{'s' if others > 1 else ''} behind it.)" if others else ""
    if first["type"] == "extra_forbidden":
        known = sorted(parent.model_fields) if parent else []
        close = difflib.get_close_matches(str(path[-1]), known, 1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        return f"{key}: unknown key. Known keys here: {', '.join(known)}.{hint}{more}"
    expected = f" Expected: {described}." if described else ""
    if first["type"] == "missing":
        return f"{key} is missing.{expected}{more}"
    reason = first["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ").rstrip(".")
    return f"{key} is {_shown(first['input'])}: {reason}.{expected}{more}"


def _is_type_name(part: Any) -> bool:
    # pydantic puts the tried type of a union into the location
    return isinstance(part, str) and (
        part in ("str", "int", "float", "bool") or "[" in part or part[:1].isupper()
    )


def _dotted(path: list[Any]) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else str(part))
    return text or "the file"


def _parent(model: type[BaseModel], path: list[Any]) -> tuple[type[BaseModel] | None, str | None]:
    """The model that the last key belongs to, and the description of that key."""
    current: type[BaseModel] | None = model
    described = None
    for number, part in enumerate(path):
        if current is None:
            break
        field = current.model_fields.get(str(part))
        if field is None:
            described = None
            if number == len(path) - 1:
                return current, None
            continue  # the name of an entry in a mapping: its model is that of the values
        described = field.description
        if number == len(path) - 1:
            return current, described
        current = _model_in(field.annotation)
    return current, described


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in get_args(annotation):
        if (found := _model_in(part)) is not None:
            return found
    return None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
