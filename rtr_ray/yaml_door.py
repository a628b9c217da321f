"""Reading a YAML file that a person wrote, and saying in one sentence what is wrong with it."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from rtr_ray.errors import ConfigError

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")

Model = TypeVar("Model", bound="Door")


class Door(BaseModel):
    """The base of everything that is read from YAML: frozen, and no key that nobody knows."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file, as it is written: `validated` fills the variables.

    Raises:
        ConfigError: If the file cannot be read, is no YAML, or holds a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"There is no file {path}.") from None
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}, line {line}: not UTF-8. Save the file as UTF-8 text.") from error
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader that refuses a key given twice
    except _DuplicateKeyError as error:
        raise ConfigError(f"{path}, line {error.line}: the key '{error.key}' is given twice.") from None
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line_number = f", line {where.line + 1}" if where else ""
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{path}{line_number}: not YAML: {reason}.") from error


def validated(model: type[Model], content: Any, where: str) -> Model:
    """The content as a model, with `${NAME}` and `${NAME:-default}` filled from the environment.

    Args:
        where: The file, for the message. A message shows a value as it is written, not as it is
            filled: a variable may hold a key.

    Raises:
        ConfigError: Naming the file, the key, what was found and what is expected; or a variable
            that is not set.
    """
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: keys with values are expected, found {_shown(content)}.")
    try:
        return model.model_validate(_filled(content, where, ""))
    except ValidationError as error:
        raise ConfigError(f"{where}: {_sentence(model, content, error)}") from None


def converted(value: Any, kind: Any, key: str) -> Any:
    """A value as a type that a plugin's field has; as it is where the type is none of a file's.

    Raises:
        ConfigError: Naming the key, what was found and what is needed.
    """
    try:
        adapter = TypeAdapter(kind)
    except PydanticUserError:
        return value
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigError(f"{key} is {_shown(value)}: {_reason(first)}.") from None


class _DuplicateKeyError(Exception):
    def __init__(self, key: str, line: int) -> None:
        self.key, self.line = key, line


class _Loader(yaml.SafeLoader):
    pass


def _mapping(loader: _Loader, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
    seen: set[Hashable] = set()
    for key_node, _ in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(
                problem="a key is a plain word; put a text that begins with a brace or bracket in quotes",
                problem_mark=key_node.start_mark,
            )
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            raise _DuplicateKeyError(str(key), key_node.start_mark.line + 1)
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _filled(value: Any, where: str, key: str) -> Any:
    if isinstance(value, dict):
        return {
            name: _filled(item, where, f"{key}.{name}" if key else str(name)) for name, item in value.items()
        }
    if isinstance(value, list):
        return [_filled(item, where, f"{key}[{number}]") for number, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def fill(found: re.Match[str]) -> str:
        name, default = found.groups()
        filled = os.environ.get(name, default)
        if filled is None:
            raise ConfigError(f"{where}: {key} needs the environment variable {name}, which is not set.")
        return filled

    return _VARIABLE.sub(fill, value)


_REASONS = {
    "string_type": "text is needed; put it in quotes",
    "string_too_short": "it must not be empty",
    "string_pattern_mismatch": "it does not look like one",
    "int_type": "a whole number is needed",
    "int_parsing": "a whole number is needed",
    "int_from_float": "a whole number is needed",
    "float_type": "a number is needed",
    "float_parsing": "a number is needed",
    "decimal_type": "a number is needed",
    "decimal_parsing": "a number is needed",
    "decimal_max_places": "it has more than {decimal_places} decimals",
    "finite_number": "a finite number is needed",
    "bool_type": "true or false is needed",
    "bool_parsing": "true or false is needed",
    "dict_type": "keys with values are needed",
    "model_type": "keys with values are needed",
    "model_attributes_type": "keys with values are needed",
    "list_type": "a list is needed",
    "tuple_type": "a list is needed",
    "too_short": "at least {min_length} is needed",
    "too_long": "at most {max_length} are possible",
    "date_type": "a date is needed",
    "date_from_datetime_parsing": "a date is needed",
    "literal_error": "that is not among the known ones",
    "greater_than": "it must be above {gt:g}",
    "greater_than_equal": "{ge:g} is the least",
    "less_than": "it must be below {lt:g}",
    "less_than_equal": "{le:g} is the most",
}
"""What pydantic finds, in the words of someone who knows YAML and no Python."""


def _sentence(model: type[BaseModel], content: Any, error: ValidationError) -> str:
    """The first thing that is wrong, and how many others there are."""
    found = [(_keys(problem, content), problem) for problem in error.errors(include_url=False)]
    # a value that fits none of several types is reported once per type, whole or in parts: the parts say most
    paths = {tuple(path) for path, _ in found}
    whole = {path for path in paths if any(path == other[: len(path)] != other for other in paths)}
    path, first = max(found, key=lambda pair: (pair[1]["type"] == "extra_forbidden", len(pair[0])))
    others = len(paths - whole) - 1
    more = f" ({others} more problem{'s' if others > 1 else ''} behind it.)" if others else ""
    key = _dotted(path)
    parent, described = _parent(model, path)
    if first["type"] == "extra_forbidden":
        known = sorted(parent.model_fields) if parent else []
        close = difflib.get_close_matches(str(path[-1]), known, 1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        return f"{key}: unknown key. Known keys here: {', '.join(known)}.{hint}{more}"
    expected = f" Expected: {described}." if described else ""
    if first["type"] == "missing":
        return f"{key} is missing.{expected}{more}"
    if first["loc"][-1] == "[key]":
        return f"{_dotted(path[:-1])} has the key {_shown(path[-1])}: put it in quotes.{more}"
    value = _value(content, path)
    reason = "a value is needed" if value is None else _reason(first)
    return f"{key} is {_shown(value)}: {reason}.{expected}{more}"


def _reason(problem: Any) -> str:
    said: str = _REASONS.get(problem["type"], problem["msg"].removeprefix("Value error, "))
    return said.format(**problem.get("ctx", {})).rstrip(".")


def _keys(problem: Any, content: Any) -> list[Any]:
    """The keys that lead to a problem, without the names of types that pydantic puts between them."""
    keys: list[Any] = []
    for number, part in enumerate(problem["loc"]):
        missing = problem["type"] == "missing" and number == len(problem["loc"]) - 1
        if _holds(content, part):
            content = content[part]
            keys.append(part)
        elif missing:
            keys.append(part)
    return keys


def _holds(content: Any, key: Any) -> bool:
    if isinstance(content, list):
        return isinstance(key, int) and 0 <= key < len(content)
    return isinstance(content, dict) and key in content


def _value(content: Any, path: list[Any]) -> Any:
    for key in path:
        content = content[key]
    return content


def _dotted(path: list[Any]) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else str(part))
    return text or "the file"


def _parent(model: type[BaseModel], path: list[Any]) -> tuple[type[BaseModel] | None, str | None]:
    """The model that the last key belongs to, and the description of that key."""
    current: type[BaseModel] | None = model
    described, entry = None, False  # whether the next key is the name of an entry in a mapping
    for number, part in enumerate(path, 1):
        if entry or isinstance(part, int):
            entry = False
            continue
        if current is None:
            break
        field = current.model_fields.get(str(part))
        if field is None:
            return current, None
        described, parent = field.description, current
        current, entry = _model_in(field.annotation), _is_mapping(field.annotation)
        if number == len(path):
            return parent, described
    return current, described


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in get_args(annotation):
        if (found := _model_in(part)) is not None:
            return found
    return None


def _is_mapping(annotation: Any) -> bool:
    return get_origin(annotation) is dict or any(map(_is_mapping, get_args(annotation)))


def _shown(value: Any) -> str:
    """A value as YAML has it."""
    if value is None:
        return "empty"
    text = f"'{value}'" if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
