from __future__ import annotations

import pytest
from pymatgen.core import Lattice, Structure

from flows.artifacts import markdown
from flows.records import finite
from flows.rehull import Rehuller
from loop.errors import EnergyTypeError
from loop.hull import Hull, HullEntry
from loop.values import OK, Candidate, EnergyType, Evaluation, Quantity, failed

KIND = EnergyType("toy", "PBE", "none")


def crystal(*elements: str) -> Candidate:
    sites = [[i / len(elements), 0, 0] for i in range(len(elements))]
    return Candidate(Structure(Lattice.cubic(9), list(elements), sites))


def label(candidate: Candidate, energy: float, above: float, status: str = OK, kind: EnergyType = KIND) -> Evaluation:
    properties = {"energy": Quantity(energy, "eV/atom"), "e_above_hull": Quantity(above, "eV/atom")}
    return Evaluation(candidate.id, "toy@1", "s", status, properties, energy_type=kind)


@pytest.fixture
def rehull():
    """Elements at 0, and NaCl known at -1 eV/atom."""
    known = [HullEntry("Na", 0.0), HullEntry("Cl", 0.0), HullEntry("NaCl", -1.0)]
    return Rehuller(Hull(known, KIND))


def test_a_better_find_pushes_an_earlier_one_up(rehull):
    first, better, failure = crystal("Na", "Cl"), crystal("Na", "Na", "Na", "Cl"), crystal("Na", "Cl", "Cl")
    before = [label(first, -1.1, -0.1), label(better, -0.9, -0.4), label(failure, -9.0, -8.0, failed("exploded"))]
    after = rehull([first, better, failure], before)
    assert after[0].value("e_above_hull") == 0.0  # on the new hull, where it was below the old one
    assert after[0].decomposition == {"NaCl": 1.0}
    assert after[1].value("e_above_hull") == pytest.approx(0.0)
    assert after[2] == before[2]  # a failure puts nothing on the hull
    third = crystal("Na", "Na", "Cl")
    judged = rehull([first, better, third], [*before[:2], label(third, -0.8, 0.0)])[2]
    # between Na3Cl (-0.9, x = 1/4) and NaCl (-1.1, x = 1/2): at x = 1/3 the tie line is at -0.9 - 0.2 / 3
    assert judged.value("e_above_hull") == pytest.approx(-0.8 + 0.9 + 0.2 / 3)
    assert judged.decomposition == pytest.approx({"Na3Cl": 2 / 3, "NaCl": 1 / 3})


def test_the_reference_phases_of_a_system_are_told(rehull):
    """The lowest of each composition, of the system and what lies in it, without what a campaign has found."""
    rehull([crystal("Na", "Na", "Na", "Cl")], [label(crystal("Na", "Na", "Na", "Cl"), -0.9, -0.4)])
    assert {(entry.formula, entry.energy) for entry in rehull.phases("Cl-Na")} == {
        ("Na", 0.0),
        ("Cl", 0.0),
        ("NaCl", -1.0),
    }
    assert [entry.formula for entry in rehull.phases("Na")] == ["Na"]


def test_energies_of_another_type_are_refused(rehull):
    candidate = crystal("Na", "Cl")
    with pytest.raises(EnergyTypeError):
        rehull([candidate], [label(candidate, -1.0, 0.0, kind=EnergyType("other", "PBE", "none"))])


def test_markdown_and_json_without_nan():
    assert markdown([{"a": 1.23456, "b": "x"}]) == "| a | b |\n|---|---|\n| 1.235 | x |"
    assert markdown([]) == "none"
    assert finite({"a": [float("nan"), 1.0], 2: float("inf")}) == {"a": [None, 1.0], "2": None}
