"""Plugins by name: `kind: score`, or `kind: their_package.module:Class` for one's own."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_type_hints

from rtr_ray.errors import ConfigError, RtrError
from rtr_ray.yaml_door import converted


def load(kind: str, known: Mapping[str, str], what: str) -> type[Any]:
    """The class of a kind.

    Args:
        kind: A key of `known`, or 'package.module:Class'.
        known: kind -> 'package.module:Class'.
        what: What it is, for the message: "policy", "estimator", ...

    Raises:
        ConfigError: If nobody knows the kind, or its module cannot be imported.
    """
    path = known.get(kind, kind) if isinstance(kind, str) else ""
    module, _, name = path.partition(":")
    if not module or not name:
        raise ConfigError(
            f"Unknown {what} kind '{kind}'. Known kinds: {', '.join(sorted(known))}. "
            "For your own class write 'package.module:Class'."
        )
    try:
        found: type[Any] | None = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise ConfigError(f"The {what} '{kind}' needs a package that cannot be imported: {error}.") from error
    if not callable(found):
        raise ConfigError(f"The module {module} has no class {name} (asked for by {what} '{kind}').")
    return found


def build(spec: Mapping[str, Any] | str, known: Mapping[str, str], what: str) -> Any:
    """A plugin from its configuration: `{"kind": ..., field: value, ...}`, or the kind alone.

    Raises:
        ConfigError: If the kind is unknown, a field is unknown, missing or refused.
    """
    given = {"kind": spec} if isinstance(spec, str) else dict(spec)
    if "kind" not in given:
        raise ConfigError(f"The {what} has no kind. Known kinds: {', '.join(sorted(known))}.")
    kind = given.pop("kind")
    found = load(kind, known, what)
    if is_dataclass(found):
        given = _typed(found, given, f"{what} '{kind}'", what)
    try:
        return found(**given)
    except RtrError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{what} '{kind}' cannot be built from {sorted(given)}: {error}.") from error


def _typed(plugin: type[Any], given: Mapping[str, Any], title: str, what: str) -> dict[str, Any]:
    """The values of a plugin's fields, each as the type that the field has."""
    known = {field.name: field for field in fields(plugin) if field.init}
    for key in given:
        if key not in known:
            raise ConfigError(f"{title} has no field '{key}'. Its fields: {', '.join(known) or 'none'}.")
    for name, field in known.items():
        if name not in given and field.default is MISSING and field.default_factory is MISSING:
            raise ConfigError(f"{title} lacks the field '{name}'. Its fields: {', '.join(known)}.")
    try:
        types = get_type_hints(plugin)
    except NameError:  # of a plugin from outside, which imports some types for its checker only
        types = {}
    return {key: converted(value, types.get(key, Any), f"{what}.{key}") for key, value in given.items()}


def spec_of(plugin: Any, known: Mapping[str, str]) -> dict[str, Any]:
    """The configuration that `build` makes the same plugin from."""
    path = f"{type(plugin).__module__}:{type(plugin).__qualname__}"
    kind = next((kind for kind, where in known.items() if where == path), path)
    return {"kind": kind} | {
        field.name: getattr(plugin, field.name) for field in fields(plugin) if field.init
    }
