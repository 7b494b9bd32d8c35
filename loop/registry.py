"""Parts of a campaign by name: ours, and those that installed packages add by entry points, with no line changed here.

A package adds one in its pyproject.toml:

    [project.entry-points."discovery_loop.oracles"]     # or .potentials, .generators, .acquisitions, .rewards
    my-oracle = "my_package:ORACLE"

Our own parts stand in tables of the same `importlib.metadata.EntryPoint` objects and are loaded in the same way; they
are not read from the installed metadata, so that a source tree always sees its own.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, fields
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from loop.contracts import Generator
from loop.errors import ConfigError, DiscoveryLoopError

PREFIX = "discovery_loop."
OURS = "discovery-loop"


@dataclass(frozen=True)
class NoOptions:
    """Of a part that has no settings."""


@dataclass(frozen=True)
class OracleKind:
    """What an entry point of ``discovery_loop.oracles`` leads to.

    Attributes:
        build: makes the oracle (`loop.contracts.Oracle`) of its options.
        measures: names of the properties that labels hold under given options; see `loop.properties` for units.
        options: frozen dataclass of its settings, which a user gives as ``oracle.options``.
        parallel: `build` can be pickled, and evaluations may be spread over processes that each build the oracle.
        labels: False for what only hands crystals to people (`loop.tiers.HandOff`).
    """

    build: Callable[[Any], Any]
    measures: Callable[[Any], Collection[str]]
    options: type = NoOptions
    parallel: bool = False
    labels: bool = True


@dataclass(frozen=True)
class GeneratorRequest:
    """What a generator is made of.

    Attributes:
        options: instance of the kind's options.
        conditions: what is asked of proposals (`generator.constraints.conditions.Sampling`); what a generator cannot
            keep it refuses by a `loop.errors.ConfigError`.
        section: all of the configuration's ``generator`` section.
    """

    options: Any
    conditions: Any
    section: Any


@dataclass(frozen=True)
class GeneratorKind:
    """What an entry point of ``discovery_loop.generators`` leads to.

    Attributes:
        build: makes the generator.
        options: frozen dataclass of its settings, which a user gives as ``generator.options``.
        learns: its `learn` does something; else no reward is computed for it.
    """

    build: Callable[[GeneratorRequest], Generator]
    options: type = NoOptions
    learns: bool = True


Kind = TypeVar("Kind")


class Registry(Generic[Kind]):
    """Parts of one sort.

    Args:
        sort: what they are, as the end of the entry-point group: ``oracles``.
        kind: class that an entry point leads to. Where only its first field has no default, a function is enough.
        ours: names of our own parts, and where each is, as ``module:attribute``.
    """

    def __init__(self, sort: str, kind: type[Kind], ours: Mapping[str, str]) -> None:
        self.sort, self.kind, self.group = sort, kind, PREFIX + sort
        self._ours = {name: EntryPoint(name, value, self.group) for name, value in ours.items()}
        self._loaded: dict[EntryPoint, Kind] = {}

    @property
    def ours(self) -> list[str]:
        """Names of our own parts."""
        return list(self._ours)

    def entries(self) -> list[EntryPoint]:
        """All of them, ours first; a name may occur twice, which `get` refuses."""
        return [*self._ours.values(), *sorted(self._foreign())]

    def names(self) -> list[str]:
        """What may be asked for."""
        return list(dict.fromkeys(entry.name for entry in self.entries()))

    def __contains__(self, name: object) -> bool:
        """Whether something is registered under a name; it may still not load."""
        return name in self._ours or any(entry.name == name for entry in self._foreign())

    def get(self, name: str) -> Kind:
        """The part of a name.

        Raises:
            ConfigError: nothing, or more than one thing, is registered under it, or the package that adds it is broken.
        """
        if name in self._ours:
            return self.load(self._ours[name])
        found = [entry for entry in self._foreign() if entry.name == name]
        if not found:
            known = self.names()
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ConfigError(
                f"expected one of {', '.join(known)}, got {name!r}{hint}. Packages add others by entry points of "
                f"{self.group}: is yours installed?"
            )
        if len(found) > 1:
            owners = " and ".join(sorted(distribution(entry) for entry in found))
            raise ConfigError(f"{name!r} of {self.group} is registered by {owners}: uninstall one of them")
        return self.load(found[0])

    def load(self, entry: EntryPoint) -> Kind:
        """What an entry point leads to.

        Raises:
            ConfigError: it cannot be imported, or leads to something else; names its package.
        """
        if entry not in self._loaded:
            with blaming(entry):
                found = entry.load()
            self._loaded[entry] = self._as_kind(entry, found)
        return self._loaded[entry]

    def options(self, name: str, given: Mapping[str, Any]) -> Any:
        """A part's settings, checked.

        Raises:
            ConfigError: no such part, an unknown setting, or a value of another type; a line each.
        """
        kind = self.get(name)
        return read_options(kind.options, given, f"{self.sort} {name!r}")  # type: ignore[attr-defined]

    @contextmanager
    def blaming(self, name: str) -> Iterator[None]:
        """Turn what a part raises while it is made into one message that names its package."""
        entry = self._ours.get(name) or next((entry for entry in self._foreign() if entry.name == name), None)
        if entry is None:
            yield
            return
        with blaming(entry):
            yield

    def _foreign(self) -> list[EntryPoint]:
        return [entry for entry in entry_points(group=self.group) if distribution(entry).split()[0] != OURS]

    def _as_kind(self, entry: EntryPoint, found: Any) -> Kind:
        if isinstance(found, self.kind):
            return found
        needed = [item for item in fields(self.kind) if item.default is MISSING and item.default_factory is MISSING]  # type: ignore[arg-type]
        if len(needed) == 1 and callable(found):
            return self.kind(found)  # type: ignore[call-arg]
        raise ConfigError(
            f"{entry.name!r} of {self.group}, added by {distribution(entry)}, leads to {type(found).__name__} "
            f"({entry.value}): expected a {self.kind.__module__}.{self.kind.__name__}"
        )


def distribution(entry: EntryPoint) -> str:
    """Name and version of the package that an entry point belongs to; our own for our tables."""
    if entry.dist is None:
        return OURS
    return f"{entry.dist.name} {entry.dist.version}"


@contextmanager
def blaming(entry: EntryPoint) -> Iterator[None]:
    """Turn any error into one that names the package of an entry point; ours, and those meant for users, pass."""
    try:
        yield
    except DiscoveryLoopError:
        raise
    except Exception as error:
        if distribution(entry) == OURS:
            raise
        raise ConfigError(
            f"{entry.name!r} of {entry.group} is broken: the package {distribution(entry)} ({entry.value}) raises "
            f"{type(error).__name__}: {error}. Mend, update or uninstall that package."
        ) from error


def read_options(kind: type, given: Mapping[str, Any], what: str) -> Any:
    """Settings as an instance of a dataclass.

    Raises:
        ConfigError: an unknown setting, or a value of another type; a line each.
    """
    from pydantic import TypeAdapter, ValidationError

    known = [item.name for item in fields(kind)]
    wrong = []
    for name in (name for name in given if name not in known):
        close = difflib.get_close_matches(str(name), known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        wrong.append(f"options.{name}: unknown key{hint} (known here: {', '.join(known) or 'none'})")
    try:
        made: Any = TypeAdapter(kind).validate_python({name: given[name] for name in known if name in given})
    except ValidationError as error:
        for problem in error.errors():
            key = ".".join(map(str, ("options", *problem["loc"])))
            text = problem["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
            wrong.append(f"{key}: {text}, got {problem['input']!r}")
    if wrong:
        raise ConfigError(f"{what}: " + "; ".join(wrong))
    return made


def as_mapping(options: Any) -> dict[str, Any]:
    """Settings with every default written out, for the record."""
    return asdict(options)
