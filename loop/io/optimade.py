"""Structures as OPTIMADE resources, in JSON lines as optimade-maker and the OPTIMADE tools read them."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Sequence
from math import gcd
from typing import Any

from pymatgen.core import Structure

API_VERSION = "1.2.0"
PREFIX = "_discovery_loop_"


def to_json_lines(entries: Sequence[tuple[str, Structure, dict[str, Any]]]) -> str:
    """One header line, then a resource a line, from (id, structure, further values)."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    lines = [{"x-optimade": {"meta": {"api_version": API_VERSION}}}]
    lines += [resource(identifier, structure, values, now) for identifier, structure, values in entries]
    return "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)


def resource(identifier: str, structure: Structure, values: dict[str, Any], modified: str) -> dict[str, Any]:
    """An ordered structure as the specification's `structures` entry (specs.optimade.org/v1.2.0).

    Further values get the prefix of this program, and the lower case that the specification asks of names.
    """
    symbols = [site.specie.symbol for site in structure]  # without oxidation states
    counts = Counter(symbols)
    divisor = gcd(*counts.values())
    elements = sorted(counts)
    # in the order of the sites: where there are as many species as sites, pymatgen takes the ones for the others
    present = list(dict.fromkeys(symbols))
    attributes = {
        "elements": elements,
        "nelements": len(elements),
        "elements_ratios": [counts[element] / len(structure) for element in elements],
        "chemical_formula_descriptive": structure.composition.element_composition.reduced_formula,
        "chemical_formula_reduced": "".join(f"{e}{_count(counts[e] // divisor)}" for e in elements),
        "chemical_formula_anonymous": _anonymous(sorted((n // divisor for n in counts.values()), reverse=True)),
        "dimension_types": [1, 1, 1],
        "nperiodic_dimensions": 3,
        "lattice_vectors": structure.lattice.matrix.tolist(),
        "cartesian_site_positions": structure.cart_coords.tolist(),
        "nsites": len(structure),
        "species_at_sites": symbols,
        "species": [{"name": e, "chemical_symbols": [e], "concentration": [1.0]} for e in present],
        "structure_features": [],
        "last_modified": modified,
    }
    own = {f"{PREFIX}{re.sub('[^a-z0-9_]', '_', name.lower())}": value for name, value in values.items()}
    return {"type": "structures", "id": identifier, "attributes": attributes | own}


def _count(number: int) -> str:
    return str(number) if number > 1 else ""


def _anonymous(counts: list[int]) -> str:
    """Such as A2B of [2, 1]; two letters from the 27th element on do not occur in crystals of this program."""
    return "".join(f"{chr(ord('A') + place)}{_count(count)}" for place, count in enumerate(counts))
