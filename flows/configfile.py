"""YAML to a pydantic model and back, with errors that a person can act on."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from loop.errors import ConfigError

Model = TypeVar("Model")  # a pydantic model, or a dataclass prepared by `flows.config.forbid_extra`
UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")


def presets() -> list[str]:
    """Names of the configurations that the package ships."""
    return sorted(path.name[:-5] for path in (files("flows") / "presets").iterdir() if path.name.endswith(".yaml"))


def read_text(source: str | Path) -> str:
    """Text of a YAML file, or of a preset where no such file exists.

    Raises:
        ConfigError: there is neither, or the file cannot be read.
    """
    path = Path(source)
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} cannot be read as text: {error}") from error
    if str(source) in presets():
        return (files("flows") / "presets" / f"{source}.yaml").read_text(encoding="utf-8")
    raise ConfigError(f"{source}: no such file, and no preset of that name (presets: {', '.join(presets())})")


def read_mapping(source: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file or preset.

    Raises:
        ConfigError: no YAML, or no mapping.
    """
    try:
        data = yaml.safe_load(read_text(source))
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" at line {where.line + 1}, column {where.column + 1}" if where else ""
        raise ConfigError(f"{source} is no valid YAML{line}: {getattr(error, 'problem', None) or error}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{source}: expected `key: value` lines, got {type(data).__name__}")
    return data


def set_key(data: dict[str, Any], dotted: str, value: Any) -> None:
    """Set ``a.b.c`` in nested mappings.

    Raises:
        ConfigError: a part on the way is no mapping.
    """
    *parents, last = dotted.split(".")
    for part in parents:
        data = data.setdefault(part, {})
        if not isinstance(data, dict):
            raise ConfigError(f"{dotted}: {part!r} holds a value, no section")
    data[last] = value


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """``["a.b=3"]`` to ``{"a.b": 3}``; values are read as YAML.

    Raises:
        ConfigError: no ``=`` in one of them, or a value that is no YAML.
    """
    parsed = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set wants key=value such as rounds=5 or oracle.relax.fmax=0.1, got {setting!r}")
        try:
            parsed[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {setting!r}: the value is no valid YAML") from error
    return parsed


def load(model: type[Model], source: str | Path | None, overrides: Mapping[str, Any] | None = None) -> Model:
    """Read a YAML file or preset (None: the defaults) into a model; `overrides` maps dotted keys to values.

    Raises:
        ConfigError: with every problem on a line of its own.
    """
    data = {} if source is None else read_mapping(source)
    for key, value in (overrides or {}).items():
        set_key(data, key, value)
    return validate(model, data, str(source or "settings"))


def validate(model: type[Model], data: Mapping[str, Any], source: str) -> Model:
    """A mapping as a model.

    Raises:
        ConfigError: with every problem on a line of its own.
    """
    try:
        return TypeAdapter(model).validate_python(data)
    except ValidationError as error:
        raise ConfigError(explain(model, error, source)) from None
    except ConfigError as error:  # of a room's own check
        raise ConfigError(f"{source}: {error}") from None


def dump(config: BaseModel, path: Path) -> None:
    """Write a model as YAML."""
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    path.write_text(text, encoding="utf-8")


def explain(model: type[Any], error: ValidationError, source: str) -> str:
    """All problems of a configuration: the key, what was expected, what came, what it may have meant."""
    lines = [problem_line(model, problem) for problem in error.errors()]
    if len(lines) == 1:
        return f"{source}: {lines[0]}"
    return "\n".join([f"{source}: {len(lines)} problems", *(f"  {line}" for line in lines)])


def problem_line(model: type[Any], problem: Any) -> str:
    """One problem in one line."""
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] in UNKNOWN:
        known = known_keys(model, location[:-1])
        close = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"{key}: unknown key{hint} (known here: {', '.join(known)})" if known else f"{key}: unknown key"
    if problem["type"] == "missing":
        return f"{key}: missing, and there is no default"
    message = re.sub(r"^(Value|Assertion) error, ", "", problem["msg"]).replace("Input should be", "expected")
    return f"{key}: {message}" if problem["type"] == "value_error" else f"{key}: {message}, got {problem['input']!r}"


def known_keys(model: type[Any], location: Sequence[str]) -> list[str]:
    """Names of the keys of the section at a location."""
    current: Any = model
    for part in location:
        if part.isdigit():  # an element of a list: the section is already its class
            continue
        section = next((kind for kind in _sections(current, part)), None)
        if section is None:
            return []
        current = section
    if isinstance(current, type) and issubclass(current, BaseModel):
        return list(current.model_fields)
    return [item.name for item in fields(current)] if is_dataclass(current) else []


def _sections(owner: Any, part: str) -> list[Any]:
    """Classes of a field that have keys of their own."""
    if isinstance(owner, type) and issubclass(owner, BaseModel):
        field = owner.model_fields.get(part)
        annotation = field.annotation if field else None
    elif is_dataclass(owner):
        annotation = get_type_hints(owner).get(part)
    else:
        annotation = None
    kinds = [annotation, *get_args(annotation)]
    return [kind for kind in kinds if isinstance(kind, type) and (issubclass(kind, BaseModel) or is_dataclass(kind))]


def expand_environment(text: str) -> str:
    """Replace ``${NAME}`` by the environment's value, so that secrets stay out of files.

    Raises:
        ConfigError: the environment has no such variable.
    """

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise ConfigError(f"{text!r} wants the environment variable {name}, which is not set: export {name}=...")
        return os.environ[name]

    return re.sub(r"\$\{(\w+)\}", value, text)
