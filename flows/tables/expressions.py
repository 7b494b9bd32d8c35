"""Expressions on the columns of a table, such as ``e_above_hull <= 0.05 and bulk_modulus > 100``.

Python never evaluates them: the text is parsed, and what is not on the list (comparisons, and/or/not, + - * /, in,
texts, numbers, columns, the functions below) is refused before any column is read.

Logic has three values, as in SQL: a comparison with a cell in which nothing stands is neither true nor false, negated
or not, so that a crystal without a value is never taken for one that fulfils ``not (bulk_modulus > 100)``.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from flows.tables.typed_columns import FORMULAS, NUMBER, TEXT, TRUTH, Columns, Values, mostly_numbers
from loop.errors import InputError

MAX_LENGTH = 10_000  # characters
MAX_DEPTH = 100  # of parts within parts
FUNCTIONS = {"abs": (1, 1), "min": (2, 50), "max": (2, 50), "isnull": (1, 1), "notnull": (1, 1)}  # numbers of arguments
KNOWN = "comparisons, and, or, not, + - * /, in [...], texts, numbers, columns and " + ", ".join(FUNCTIONS)

_ORDERS = {ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge}
_EQUALS = {ast.Eq: operator.eq, ast.NotEq: operator.ne}
_SUMS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
_LISTS = (ast.List, ast.Tuple, ast.Set)
_ALLOWED = (*_ORDERS, *_EQUALS, *_SUMS, *_LISTS, ast.In, ast.NotIn, ast.And, ast.Or, ast.Not, ast.USub, ast.UAdd)
_ALLOWED += (ast.BoolOp, ast.UnaryOp, ast.BinOp, ast.Compare, ast.Call, ast.Name, ast.Constant, ast.Load)
_INSTEAD: dict[type[ast.AST], str] = {
    ast.BitAnd: "write `and` instead of `&`",
    ast.BitOr: "write `or` instead of `|`",
    ast.Invert: "write `not` instead of `~`",
    ast.Is: "write isnull(column)",
    ast.IsNot: "write notnull(column)",
    ast.Pow: "write x * x instead of a power",
    ast.NamedExpr: "write `==` to compare",
}
_QUOTED = re.compile(r"""('(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")|`([^`]*)`""")
_ELEMENT = re.compile(r"[A-Z][a-z]?")


@dataclass(frozen=True)
class Expression:
    """An expression that has been checked: only what is allowed occurs in it."""

    text: str
    tree: ast.expr
    quoted: dict[str, str]  # stand-ins of names in backticks

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an expression. Names that are none in Python stand in backticks.

        Raises:
            InputError: it is none, or holds what is not allowed.
        """
        if len(text) > MAX_LENGTH:
            raise InputError(f"expected an expression of at most {MAX_LENGTH} characters, got {len(text)}")
        source, quoted = _without_backticks(text.strip())
        try:
            tree = ast.parse(source, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            reason = error.msg if isinstance(error, SyntaxError) else str(error)
            raise InputError(
                f"cannot read the expression {_short(text)}: {reason}. It is made of {KNOWN}; equality is ==, and "
                "names of columns with spaces or other signs stand in backticks"
            ) from error
        _check_depth(tree, text)
        _check(tree, text, source)
        return cls(text, tree, quoted)

    def names(self) -> list[str]:
        """Columns that it uses."""
        called = {id(node.func) for node in ast.walk(self.tree) if isinstance(node, ast.Call)}
        found = [node.id for node in ast.walk(self.tree) if isinstance(node, ast.Name) and id(node) not in called]
        return list(dict.fromkeys(self.quoted.get(name, name) for name in found))

    def truths(self, columns: Columns) -> list[bool | None]:
        """Whether it holds in each row; None where a value is missing that would decide it.

        Raises:
            InputError: a column does not exist, or holds something else than what it is compared with.
        """
        return self._within(columns, columns.truths)

    def numbers(self, columns: Columns) -> list[float | None]:
        """Its value in each row.

        Raises:
            InputError: as `truths`.
        """
        return self._within(columns, columns.numbers)

    def _within(self, columns: Columns, convert: Callable[[Values], list[Any]]) -> list[Any]:
        try:
            for name in self.names():
                _ = columns[name]
            return convert(_Walk(columns, self.quoted).values(self.tree))
        except InputError as error:
            raise InputError(f"{_short(self.text)}: {error}") from error


def _without_backticks(text: str) -> tuple[str, dict[str, str]]:
    """The text with names in place of what stands in backticks, outside its strings."""
    stem = "column_"
    while stem in text:
        stem += "_"
    quoted: dict[str, str] = {}

    def stand_in(match: re.Match[str]) -> str:
        if match[1] is not None:
            return match[1]
        quoted[f"{stem}{len(quoted)}"] = match[2]
        return list(quoted)[-1]

    return _QUOTED.sub(stand_in, text), quoted


def _check_depth(tree: ast.expr, text: str) -> None:
    level: list[ast.AST] = [tree]
    for _ in range(MAX_DEPTH):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
        if not level:
            return
    raise InputError(f"cannot read the expression {_short(text)}: more than {MAX_DEPTH} parts within parts")


def _check(tree: ast.expr, text: str, source: str) -> None:
    """Refuse everything that is not on the list."""
    comparisons = [node for node in ast.walk(tree) if isinstance(node, ast.Compare)]
    compared = {id(node.comparators[-1]) for node in comparisons if _is_membership(node.ops[-1])}
    for node in ast.walk(tree):
        problem = _INSTEAD.get(type(node)) or ("" if isinstance(node, _ALLOWED) else "that is not allowed")
        if isinstance(node, ast.Constant):
            problem = _constant_problem(node.value)
        elif isinstance(node, ast.Call):
            problem = _call_problem(node)
        elif isinstance(node, _LISTS):
            problem = "" if id(node) in compared and node.elts else "lists stand after `in` and are not empty"
        if isinstance(node, ast.Compare) and len(node.ops) > 1 and any(_is_membership(op) for op in node.ops):
            problem = "put parentheses around the comparison with `in`"
        if problem:
            part = ast.get_source_segment(source, node) if isinstance(node, ast.expr) else None
            raise InputError(
                f"cannot use the expression {_short(text)}: {f'{_short(part)}: ' if part else ''}{problem}. "
                f"It is made of {KNOWN}"
            )


def _is_membership(op: ast.AST) -> bool:
    return isinstance(op, (ast.In, ast.NotIn))


def _constant_problem(value: Any) -> str:
    if value is None or value == "":
        return "for cells in which nothing stands write isnull(column)"
    if not isinstance(value, (bool, int, float, str)):
        return "expected a number or a text"
    if isinstance(value, int) and abs(value) > 10**300:
        return "the number is too large"
    return ""


def _call_problem(node: ast.Call) -> str:
    if not isinstance(node.func, ast.Name) or node.func.id not in FUNCTIONS:
        return f"the functions are {', '.join(FUNCTIONS)}"
    least, most = FUNCTIONS[node.func.id]
    if node.keywords or not least <= len(node.args) <= most:
        return f"{node.func.id} takes {least if least == most else f'{least} or more'} values"
    return ""


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


class _Walk:
    """Computes a checked tree, all rows at once."""

    def __init__(self, columns: Columns, quoted: dict[str, str]) -> None:
        self.columns, self.quoted, self.rows = columns, quoted, len(columns.frame)

    def values(self, node: ast.expr) -> Values:
        """What a part is."""
        match node:
            case ast.Constant(value=bool() as value):
                return Values(TRUTH, [value] * self.rows)
            case ast.Constant(value=str() as value):
                return Values(TEXT, [value] * self.rows)
            case ast.Constant(value=value):
                return Values(NUMBER, [float(value)] * self.rows)  # type: ignore[arg-type]
            case ast.Name(id=name):
                return self.columns[self.quoted.get(name, name)]
            case ast.BoolOp(op=op, values=parts):
                join = all_of if isinstance(op, ast.And) else _any
                return _rowwise(TRUTH, join, [self.columns.truths(self.values(part)) for part in parts])
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                truths = self.columns.truths(self.values(operand))
                return Values(TRUTH, [None if truth is None else not truth for truth in truths])
            case ast.UnaryOp(op=sign, operand=operand):
                change = operator.neg if isinstance(sign, ast.USub) else operator.pos
                return _computed(change, [self.columns.numbers(self.values(operand))])
            case ast.BinOp(left=left, op=op, right=right):
                sides = [self.columns.numbers(self.values(side)) for side in (left, right)]
                return _computed(_SUMS[type(op)], sides)
            case ast.Call(func=ast.Name(id=name), args=arguments):
                return self._called(name, [self.values(argument) for argument in arguments])
            case ast.Compare(left=left, ops=ops, comparators=others):
                terms = [left, *others]
                found = [self._compared(terms[i], op, terms[i + 1]) for i, op in enumerate(ops)]
                return _rowwise(TRUTH, all_of, found)
        raise InputError(f"expected {KNOWN}")  # nothing else passes the check

    def _called(self, name: str, arguments: list[Values]) -> Values:
        if name in ("isnull", "notnull"):
            return Values(TRUTH, [(cell is None) == (name == "isnull") for cell in arguments[0].cells])
        functions: dict[str, Callable[..., float]] = {"abs": abs, "min": min, "max": max}
        return _computed(functions[name], [self.columns.numbers(argument) for argument in arguments])

    def _compared(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> list[bool | None]:
        if not _is_membership(op):
            return self._pair(self.values(left), op, self.values(right))
        if isinstance(right, _LISTS):
            one = self.values(left)
            equal = [self._pair(one, ast.Eq(), self.values(item)) for item in right.elts]
            found = [_any(row) for row in zip(*equal, strict=True)]
        else:
            found = _contained(self.values(left), self.values(right))
        return found if isinstance(op, ast.In) else [None if truth is None else not truth for truth in found]

    def _pair(self, left: Values, op: ast.cmpop, right: Values) -> list[bool | None]:
        """A comparison, as texts where both are texts or a column is compared with a text; else as numbers."""
        ordered = type(op) in _ORDERS
        compare = _ORDERS[type(op)] if ordered else _EQUALS[type(op)]
        texts = [side for side in (left, right) if side.kind == TEXT]
        constant = next((side for side in texts if not side.column), None)
        other = right if constant is left else left
        if constant is not None and other.kind != TEXT and other.column and not ordered:
            sides = [constant.cells, other.texts]
        elif constant is not None and other.kind != TEXT and other.column and any(c is not None for c in other.cells):
            raise InputError(f"{other.column} holds {other.kind}: compare it with a number, without quotes")
        elif len(texts) == 2 and not (ordered and all(map(mostly_numbers, texts))):
            sides = [left.cells, right.cells]
        else:
            sides = [self.columns.numbers(left), self.columns.numbers(right)]
        return _rowwise(TRUTH, lambda pair: None if None in pair else compare(*pair), sides).cells


def _contained(part: Values, whole: Values) -> list[bool | None]:
    """Whether a text stands in the text of a column; in formulas and chemical systems, whether an element does."""
    if not whole.column or part.kind != TEXT:
        raise InputError('`in` expects a list, as in formula in ["MgO", "NaCl"], or a text in a column of texts')
    pairs = list(zip(part.cells, whole.texts, strict=True))
    if whole.column not in FORMULAS:
        return [None if None in pair else pair[0] in str(pair[1]) for pair in pairs]
    odd = next((cell for cell in part.cells if cell is not None and not _ELEMENT.fullmatch(cell)), None)
    if odd is not None:
        raise InputError(f"`in {whole.column}` asks for an element, got {odd!r}; compare whole ones with ==")
    return [None if None in pair else pair[0] in _ELEMENT.findall(str(pair[1])) for pair in pairs]


def _rowwise(kind: str, function: Callable[[Sequence[Any]], Any], sides: Sequence[Sequence[Any]]) -> Values:
    return Values(kind, [function(row) for row in zip(*sides, strict=True)])


def _computed(function: Callable[..., float], sides: Sequence[Sequence[float | None]]) -> Values:
    """Numbers from numbers; none where one is missing, or where it is divided by zero."""

    def one(row: Sequence[float | None]) -> float | None:
        if None in row:
            return None
        try:
            value = function(*row)
        except ZeroDivisionError:
            return None
        return None if math.isnan(value) else value

    return _rowwise(NUMBER, one, sides)


def all_of(row: Iterable[bool | None]) -> bool | None:
    """Whether all are true; None where that depends on one that has no value."""
    parts = list(row)
    return False if False in parts else (None if None in parts else True)


def _any(row: Iterable[bool | None]) -> bool | None:
    parts = list(row)
    return True if True in parts else (None if None in parts else False)
