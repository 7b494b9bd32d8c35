"""The syntax of CIF: data blocks, and their items under one spelling of the names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import gemmi

from loop.errors import InputError

UNKNOWN = frozenset({"?", "."})
_QUOTES = frozenset({"'", '"', ";"})
_SITE_TAGS = frozenset({f"_atom_site_{kind}_x" for kind in ("fract", "cartn")} | {"_atom_site_label"})
_PLACE = re.compile(r"^string:(\d+)\S*(?: in data_\S*)?: ?(.*)$", re.DOTALL)


class Items:
    """The items of one data block by name: lower case, and '_' for the '.' of DDLm and mmCIF names."""

    def __init__(self, block: gemmi.cif.Block) -> None:
        self.name = block.name
        self._values: dict[str, list[str]] = {}
        for item in block:
            pair: Any = item.pair
            loop: Any = item.loop
            if pair is not None:
                self._add(pair[0], [pair[1]])
            elif loop is not None:
                tags, values = loop.tags, loop.values
                for column, tag in enumerate(tags):
                    self._add(tag, values[column :: len(tags)])

    def _add(self, tag: str, values: list[str]) -> None:
        name = _spelling(tag)
        self._values[name] = values if name not in self._values else self._values[name] + values

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def names(self) -> Iterable[str]:
        """The names of all items."""
        return self._values

    def column(self, name: str) -> list[str] | None:
        """All values of an item, unquoted; None where the block has none."""
        values = self._values.get(name)
        return None if values is None else [_unquoted(v) if v[:1] in _QUOTES else v for v in values]

    def known(self, *names: str) -> list[str]:
        """The values of the first of these items that has any besides '?' and '.', without those."""
        for name in names:
            values = self._values.get(name)
            if values is None:
                continue
            found = [text for value in values if (text := _unquoted(value).strip()) and text not in UNKNOWN]
            if found:
                return found
        return []

    def text(self, *names: str) -> str | None:
        """The one value that these items have; None where none is known.

        Raises:
            InputError: one of them has two values that differ.
        """
        found = self.known(*names)
        if len(found) > 1 and len(set(found)) > 1:
            raise InputError(f"expected one value of {names[0]}, found {found[0]!r} and {found[1]!r}")
        return found[0] if found else None

    def number(self, *names: str) -> float | None:
        """The one number that these items have, without its uncertainty; None where none is known or it is no number.

        Raises:
            InputError: one of them has two values that differ.
        """
        text = self.text(*names)
        if text is None:
            return None
        value = gemmi.cif.as_number(text)
        return None if value != value else value


@lru_cache(maxsize=10_000)
def _spelling(tag: str) -> str:
    return tag.lower().replace(".", "_")


def _unquoted(value: str) -> str:
    return gemmi.cif.as_string(value) if value[:1] in _QUOTES else value


def read_document(text: str) -> gemmi.cif.Document:
    """The data blocks of a CIF.

    Raises:
        InputError: the text breaks the syntax; the message tells the line.
    """
    text = text.removeprefix("\ufeff").rstrip("\x00\x1a \t\r\n")  # 1A: the end mark of DOS
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text:
        raise InputError("expected a CIF, the text is empty")
    try:
        return gemmi.cif.read_string(text)
    except (ValueError, RuntimeError, IndexError) as error:
        raise InputError(f"expected a CIF, {_syntax(text, str(error))}") from error


def _syntax(text: str, message: str) -> str:
    """In our words what gemmi says of a text."""
    if "\n" not in text and "\\n" in text:
        return r"its line breaks are written as \n: write line breaks"
    if not re.search(r"^\s*data_", text, re.IGNORECASE | re.MULTILINE):
        return "the text has no data block (a line data_NAME)"
    found = _PLACE.match(message)
    if found is None:
        return "the text breaks its syntax"
    what = found[2].strip()
    if text.startswith("#\\#CIF_2.0"):
        what = f"{what}; of CIF 2.0, long strings, lists and tables are not read"
    return f"line {found[1]} breaks its syntax" + ("" if what in ("", "parse error") else f": {what}")


def has_atoms(items: Items) -> bool:
    """Whether a data block lists atoms."""
    return not _SITE_TAGS.isdisjoint(items.names())


def crystal_items(text: str) -> Items:
    """Items of the one data block that lists atoms; blocks without atoms (``data_global``) are passed over.

    Raises:
        InputError: the text is no CIF, or not exactly one of its blocks lists atoms.
    """
    document = read_document(text)
    blocks = [items for items in map(Items, document) if has_atoms(items)]
    if len(blocks) == 1:
        return blocks[0]
    names = ", ".join(block.name for block in blocks[:5])
    if blocks:
        raise InputError(f"expected one crystal, found {len(blocks)} data blocks with atoms ({names}): give one each")
    raise InputError(
        f"expected atoms (_atom_site_fract_x, _y, _z), none of the file's data blocks ({len(document)}) lists any"
    )
