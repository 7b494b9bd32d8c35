"""YAML to a pydantic model and back, with errors that a person can act on."""

from __future__ import annotations

import ast
import difflib
import inspect
import itertools
import os
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from flows import yaml_core
from flows.console import note
from flows.hiding import hidden
from loop.errors import ConfigError, InputError
from loop.io import opening
from loop.io.files import write_text

Model = TypeVar("Model")  # a pydantic model, or a dataclass prepared by `flows.config.forbid_extra`
UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
LISTS = ("tuple_type", "list_type", "set_type", "frozen_set_type")
SECTIONS = ("model_type", "model_attributes_type", "dataclass_type", "dict_type", "mapping_type")
SPELLINGS = {"maximize": "maximise", "minimize": "minimise", "standardize": "standardise"}


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
            return opening.read_text(path)
        except (OSError, InputError) as error:
            raise ConfigError(f"{path} cannot be read as text: {error}") from error
    if str(source) in presets():
        return (files("flows") / "presets" / f"{source}.yaml").read_text(encoding="utf-8")
    raise ConfigError(f"{source}: no such file, and no preset of that name (presets: {', '.join(presets())})")


def read_mapping(source: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file or preset.

    Raises:
        ConfigError: no YAML, a key twice, no mapping, or nothing at all.
    """
    try:
        data = yaml_core.read(read_text(source))
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" at line {where.line + 1}, column {where.column + 1}" if where else ""
        raise ConfigError(f"{source} is no valid YAML{line}: {getattr(error, 'problem', None) or error}") from error
    if data is None or data == {}:
        raise ConfigError(
            f"{source} holds no settings: expected `key: value` lines, as `discovery-loop init NAME` writes"
        )
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
        ConfigError: no ``=`` in one of them, a value that is no YAML, or a key twice.
    """
    parsed: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set needs key=value such as rounds=5 or oracle.relax.fmax=0.1, got {setting!r}")
        if key in parsed:
            raise ConfigError(f"--set {key} is given twice: keep one of them")
        try:
            parsed[key] = yaml_core.read(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {setting!r}: the value is no valid YAML") from error
    return parsed


Upgrade = Callable[[Mapping[str, Any]], tuple[dict[str, Any], list[str]]]
"""Settings of an earlier version to today's, with lines of advice."""


def load(
    model: type[Model],
    source: str | Path | None,
    overrides: Mapping[str, Any] | None = None,
    upgrade: Upgrade | None = None,
    give_way: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]] | None = None,
    origins: Callable[[Mapping[str, Any]], dict[str, str]] | None = None,
) -> Model:
    """Read a YAML file or preset (None: the defaults) into a model; `overrides` maps dotted keys to values.

    `give_way` takes out of the file what would contradict the overrides: those who override know what they want.
    `origins` tells under which key the file says what stands under another: problems are reported there.

    Raises:
        ConfigError: with every problem on a line of its own.
    """
    data = {} if source is None else read_mapping(source)
    try:
        data = spelled(data)
        said = {
            ".".join(SPELLINGS.get(part, part) for part in key.split(".")): v for key, v in (overrides or {}).items()
        }
        data = give_way(data, said) if give_way is not None else data
        for key, value in said.items():
            set_key(data, key, spelled(value))
    except ConfigError as error:
        raise ConfigError(f"{source or 'settings'}: {error}") from None
    if upgrade is not None:
        data, advice = upgrade(data)
        for line in advice:
            note(f"{source or 'settings'}: {line}")
    return validate(model, data, str(source or "settings"), origins)


def spelled(data: Any, key: str = "") -> Any:
    """Nested settings with `maximize` and its like, as keys and as goals, in the spelling that is used here.

    Raises:
        ConfigError: a section holds both spellings of one key.
    """
    if isinstance(data, Mapping):
        both = [f"{one} and {other}" for one, other in SPELLINGS.items() if one in data and other in data]
        if both:
            raise ConfigError(f"{key or 'settings'}: {', '.join(both)} are one key in two spellings: keep one of them")
        return {SPELLINGS.get(name, name): spelled(value, str(name)) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return type(data)(spelled(value, key) for value in data)
    return SPELLINGS.get(data, data) if key == "goal" and isinstance(data, str) else data


def validate(
    model: type[Model],
    data: Mapping[str, Any],
    source: str,
    origins: Callable[[Mapping[str, Any]], dict[str, str]] | None = None,
) -> Model:
    """A mapping as a model.

    Raises:
        ConfigError: with every problem on a line of its own.
    """
    try:
        made = TypeAdapter(model).validate_python(data)
        if wrong := truths(data, made):
            raise ConfigError(listed(wrong, source))
        return made
    except ValidationError as error:
        raise ConfigError(explain(model, error, source, origins(data) if origins else {})) from None


def truths(data: Any, made: Any, key: str = "") -> list[str]:
    """Where true or false was given for a number: pydantic takes them for 1 and 0."""
    if isinstance(data, bool):
        is_number = isinstance(made, int | float) and not isinstance(made, bool)
        return [f"{key}: expected a number, got {str(data).lower()}"] if is_number else []
    if isinstance(data, Mapping):
        parts = {name: made.get(name) if isinstance(made, Mapping) else getattr(made, str(name), None) for name in data}
        return [line for name in data for line in truths(data[name], parts[name], f"{key}.{name}".lstrip("."))]
    if isinstance(data, list | tuple) and isinstance(made, list | tuple):
        pairs = zip(data, made, strict=False)
        return [line for at, pair in enumerate(pairs) for line in truths(*pair, f"{key}.{at}")]
    return []


def dump(config: BaseModel, path: Path) -> None:
    """Write a model as YAML, whole or not at all."""
    write_text(path, yaml_core.write(config.model_dump(mode="json")))


def explain(model: type[Any], error: ValidationError, source: str, said: Mapping[str, str] | None = None) -> str:
    """All problems of a configuration: the key, what was expected, what came, what it may have meant.

    Args:
        model: that the settings do not fit.
        error: how.
        source: of the settings.
        said: the key under which the source says what stands under another.
    """
    found: dict[str, str] = {}
    for problem in error.errors():
        key, line = ".".join(key_of(problem)), problem_line(model, problem)
        if key in found:  # a value that may be one of several things, and is none of them
            line = f"{found[key].rsplit(', got ', 1)[0]}, or {line.removeprefix(f'{key}: ')}"
        found[key] = line
    lines = [_where_said(key, line, said or {}) for key, line in found.items()]
    return listed(list(dict.fromkeys(lines)), source)  # what was said once is one problem, wherever it is used


def _where_said(key: str, line: str, said: Mapping[str, str]) -> str:
    """The line under the key that the user wrote, where what the problem is about was said there."""
    inside = {home for used, home in said.items() if used.startswith(f"{key}.") and used.split(".")[-1] in line.split()}
    around = {home for used, home in said.items() if f"{key}.".startswith(f"{used}.")}
    homes = inside or around
    about = line.split(" ", 1)[0]  # a check of the whole names its key in the line
    if not key and "." in about and about in said:
        return said[about] + line.removeprefix(about)
    return " and ".join(sorted(homes)) + line.removeprefix(key) if homes else line


def listed(lines: Sequence[str], source: str) -> str:
    """Problems of a source as one message."""
    if len(lines) == 1:
        return f"{source}: {lines[0]}"
    return "\n".join([f"{source}: {len(lines)} problems", *(f"  {line}" for line in lines)])


def key_of(problem: Any) -> list[str]:
    """Where a problem is, without the names that pydantic gives to the members of a union."""
    return [str(part) for part in problem["loc"] if not re.search(r"[\[\](),]|^(int|str|float|bool|path)$", str(part))]


def problem_line(model: type[Any], problem: Any) -> str:
    """One problem in one line."""
    location, kind, given = key_of(problem), problem["type"], problem["input"]
    key = ".".join(location)
    if kind in UNKNOWN:
        known = known_keys(model, location[:-1])
        close = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"{key}: unknown key{hint} (known here: {', '.join(known)})" if known else f"{key}: unknown key"
    if kind == "missing":
        return f"{key}: missing, and there is no default"
    if kind in LISTS:
        return (
            f"{key}: expected a list, as [{given if isinstance(given, str | int | float) else 'A, B'}], got {given!r}"
        )
    if kind in SECTIONS:
        return f"{key}: expected a section of `key: value` lines, got {given!r}"
    if kind == "string_type" and isinstance(given, int | float):
        return f'{key}: expected text, got the number {given!r}: put it in quotes, as "{given}"'
    message = re.sub(r"^(Value|Assertion) error, ", "", problem["msg"]).replace("Input should be", "expected")
    message = re.sub("^Input is not a valid path.*", "expected a path", message)
    where = f"{key}: " if key else ""  # a check of the whole names its keys itself
    return f"{where}{message}" if kind == "value_error" else f"{where}{message}, got {given!r}"


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


def meanings(kind: type[Any]) -> dict[str, str]:
    """What the fields of a dataclass mean: the text under each, in the class or the base that defines it."""
    found: dict[str, str] = {}
    for owner in reversed([base for base in kind.__mro__ if is_dataclass(base)]):
        definition = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
        for key, text in itertools.pairwise(definition.body if isinstance(definition, ast.ClassDef) else []):
            match key, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(meaning))):
                    found[name] = " ".join(meaning.split())
    return found


def expand_environment(text: str) -> str:
    """Replace ``${NAME}`` by the environment's value, so that secrets stay out of files.

    Raises:
        ConfigError: the environment has no such variable.
    """

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise ConfigError(
                f"{hidden(text)!r} needs the environment variable {name}, which is not set: export {name}=..."
            )
        return os.environ[name]

    return re.sub(r"\$\{(\w+)\}", value, text)
