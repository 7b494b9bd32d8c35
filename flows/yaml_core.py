"""YAML as its version 1.2 reads plain words, and no key twice.

PyYAML follows YAML 1.1, where 014 is 12, 1:30 is 90 and No is false, and of a key that is given twice it takes the last
one silently. The core schema of YAML 1.2.2 (section 10.3.2) knows null, true and false, decimal, 0o and 0x whole
numbers, and floating-point numbers; all else is text. What is written here is quoted such that both versions read it
alike.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

import yaml

TAG = "tag:yaml.org,2002:"
# kind, words, first characters; the first match counts
SCALARS = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", [*"-+0123456789"]),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        [*"-+.0123456789"],
    ),
    ("merge", "<<", ["<"]),  # not of the core schema, but unmistakable, and used with anchors
)


class Loader(yaml.SafeLoader):
    """Builds plain values; refuses a key that a mapping holds already."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[Any]]] = {}  # type: ignore[misc]

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """A mapping; what `<<` merges into it may be overruled, its own keys are unique."""
        lines: dict[Any, int] = {}
        own = node.value if isinstance(node, yaml.MappingNode) else []
        for key_node in [key_node for key_node, _ in own if key_node.tag != f"{TAG}merge"]:
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if not isinstance(key, str | int | float):
                raise _error(f"expected a word as key, got {key!r}", key_node)
            if key in lines:
                where = f"lines {lines[key]} and {line}" if line != lines[key] else f"line {line}"
                raise _error(f"{key!r} is given twice, at {where}: keep one of them", key_node)
            lines[key] = line
        return super().construct_mapping(node, deep)

    def whole(self, node: Any) -> int:
        """A whole number: decimal whatever zeros lead it, or 0o and 0x."""
        text = self.construct_scalar(node)
        if len(text) > 40:  # Python itself refuses thousands of digits
            raise _error(f"expected a number, got {len(text)} digits", node)
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


class Dumper(yaml.SafeDumper):
    """Quotes texts that `Loader`, or a reader of YAML 1.1, would take for something else."""


for kind, words, first in SCALARS:
    for reader in (Loader, Dumper):
        reader.add_implicit_resolver(TAG + kind, re.compile(f"(?:{words})$"), first)
Loader.add_constructor(f"{TAG}int", Loader.whole)


def _error(problem: str, node: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def read(text: str) -> Any:
    """The value that a YAML text holds.

    Raises:
        yaml.YAMLError: it is no YAML, holds more than plain values, or gives a key twice; `problem` and `problem_mark`
            tell what and where.
    """
    try:
        return yaml.load(text, Loader)
    except RecursionError:
        raise yaml.MarkedYAMLError(problem="lists or sections are nested too deep") from None
    except (ValueError, KeyError, AttributeError) as error:  # a tag as !!int before what is none
        raise yaml.MarkedYAMLError(problem=f"a value does not fit its tag ({error})") from error


def write(value: Any) -> str:
    """Plain values as YAML, keys in their order."""
    return yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True)
