"""All parts that can be asked for by name, and what the configuration's schema says of them."""

from __future__ import annotations

from typing import Any

from loop.registry import GeneratorKind, NoOptions, OracleKind, Registry

ORACLES = Registry(
    "oracles",
    OracleKind,
    {"mlip": "flows.kinds:MLIP", "dft": "flows.kinds:DFT", "handoff": "flows.kinds:HANDOFF"},
)
GENERATORS = Registry(
    "generators",
    GeneratorKind,
    {"crystalformer": "flows.kinds:CRYSTALFORMER", "substitution": "flows.kinds:SUBSTITUTION"},
)


def registries() -> dict[str, Registry[Any]]:
    """Registry of each sort of part."""
    from loop.reward_sources import REWARDS
    from oracles.potentials.base import POTENTIALS
    from surrogates.acquisition import ACQUISITIONS

    found: tuple[Registry[Any], ...] = (POTENTIALS, ORACLES, GENERATORS, ACQUISITIONS, REWARDS)
    return {registry.sort: registry for registry in found}


def with_names(schema: dict[str, Any]) -> dict[str, Any]:
    """The configuration's JSON schema with the names that are registered here, and the options that go with each.

    A part that cannot be loaded is left out.
    """
    found = registries()
    places = {
        "GeneratorSection": ("kind", found["generators"]),
        "OracleSection": ("kind", found["oracles"]),
        "AcquisitionConfig": ("strategy", found["acquisitions"]),
        "Term": ("source", found["rewards"]),
    }
    for section, (key, registry) in places.items():
        _name(schema, schema["$defs"][section], key, registry)
    schema["$defs"]["MlipConfig"]["properties"]["potential"]["examples"] = found["potentials"].names()
    return schema


def _name(schema: dict[str, Any], section: dict[str, Any], key: str, registry: Registry[Any]) -> None:
    """Say in a section which names its key may have, and what `options` then are."""
    from pydantic import TypeAdapter

    from loop.errors import ConfigError

    choices: list[dict[str, Any]] = []
    names: list[str] = []
    for entry in registry.entries():
        try:
            kind = registry.load(entry)
        except ConfigError:  # `doctor` names it
            continue
        if isinstance(kind, OracleKind) and not kind.labels:
            continue
        of = NoOptions if entry.name == "mlip" else kind.options  # whose section stands by itself
        options = TypeAdapter(of).json_schema(ref_template="#/$defs/{model}")
        schema["$defs"] |= options.pop("$defs", {})
        names.append(entry.name)
        then = {"properties": {"options": {**options, "additionalProperties": False}}}
        choices.append({"if": {"properties": {key: {"const": entry.name}}, "required": [key]}, "then": then})
    section["properties"][key]["enum"] = names
    section["allOf"] = choices
