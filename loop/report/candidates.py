"""The best candidates one by one: crystal, symmetry, energies, lineage, cost, and its CIF inside the page."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from loop.history import SECOND_OPINION, History, Label
from loop.io.cif_writer import to_symmetrised_cif
from loop.properties import heading, spec_of
from loop.ranking import FIND, KNOWN_STABLE, SUSPECTS, UNJUDGED, UNSTABLE
from loop.report.columns import goal_names, unit_of
from loop.report.export import file_stem, final_structure
from loop.report.tables import energy, number
from loop.stability import IMPLAUSIBLE

SHOWN = {FIND: 40, UNJUDGED: 6, KNOWN_STABLE: 6, SUSPECTS: 6}  # cards of each part of the ranked list
NEAREST = 6  # unstable ones where nothing is stable and new
OPINION = f"{SECOND_OPINION}_"  # columns of a potential that neither rewards nor labels
EDGE = 1e-3  # of a lattice vector: atoms so near a face are drawn on the opposite one, too
BOND = 1.12  # times the sum of covalent radii
MOST_ATOMS = 400  # in a picture; of a larger cell no images on its faces are drawn


@dataclass(frozen=True)
class Card:
    """What the page shows of one candidate."""

    id: str
    rank: int
    formula: str
    tags: list[tuple[str, str]]  # class of the style sheet, word
    facts: list[tuple[str, str]]  # term, text: what a reader looks at first
    more: list[tuple[str, str]]  # shown on request
    lineage: list[str]  # from policy to label, in order
    file: str  # name of the CIF
    cif: str  # data URI
    picture: dict[str, Any] = field(default_factory=dict)  # see `picture_of`
    legend: list[tuple[str, str]] = field(default_factory=list)  # element, colour


def cards(history: History, pairs: Sequence[tuple[dict[str, Any], Label]]) -> dict[str, list[Card]]:
    """Cards by part of the ranked list, best first.

    Args:
        history: the campaign.
        pairs: rows of the ranked list with their labels.
    """
    finds = any(row["group"] == FIND for row, _ in pairs)
    shown = SHOWN if finds else SHOWN | {UNSTABLE: NEAREST}
    made: dict[str, list[Card]] = {}
    for group, most in shown.items():
        some = [pair for pair in pairs if pair[0]["group"] == group][:most]
        if some:
            made[group] = [card(history, row, label) for row, label in some]
    return made


def card(history: History, row: Mapping[str, Any], label: Label) -> Card:
    """The card of one candidate."""
    text = to_symmetrised_cif(final_structure(label))
    picture = picture_of(text)
    return Card(
        id=label.candidate.id,
        rank=row["rank"],
        formula=row["formula"],
        tags=_tags(row, label),
        facts=_facts(history, row),
        more=_more(history, row, label),
        lineage=lineage(history, row, label),
        file=f"{file_stem(row['rank'], label)}.cif",
        cif="data:chemical/x-cif;base64," + base64.b64encode(text.encode()).decode(),
        picture=picture,
        legend=[(symbol, style["colour"]) for symbol, style in picture["elements"].items()],
    )


def _tags(row: Mapping[str, Any], label: Label) -> list[tuple[str, str]]:
    tags = [("yes", "stable") if row["stable"] else ("no", "not stable")]
    tags.append(("yes" if row["new"] else "no", label.verdict))
    tags += [("warn", f"suspect: {row['suspect']}")] if row["suspect"] else []
    return [*tags, (row["arm"], row["arm"]), ("", f"round {row['round']}")]


def _facts(history: History, row: Mapping[str, Any]) -> list[tuple[str, str]]:
    stability = history.settings.stability
    facts = [(heading(name, unit_of(history, name)), _told(row, name)) for name in _objectives(history)]
    said = energy(row.get(f"{stability}_predicted"), row.get(f"{stability}_sigma"))
    facts.append((heading(stability), energy(row[stability]) + (f" (predicted {said})" if said != "–" else "")))
    facts += [("when found", f"{energy(row[f'{stability}_at_label'])}, against {mixture(row['competing_phases'])}")]
    facts.append(("symmetry", _symmetries(row)))
    facts.append(("prototype", " · ".join(filter(None, (row["prototype"], row["decoration"]))) or "–"))
    facts.append(("match", row["match"] or "none among the known crystals and this campaign's earlier ones"))
    opinions = {key: value for key, value in row.items() if key.startswith(OPINION) and value not in (None, "")}
    facts += [(f"second opinion: {_plain_name(key)}", _value(value)) for key, value in opinions.items()]
    return facts


def _objectives(history: History) -> list[str]:
    return [name for name in goal_names(history) if name != history.settings.stability]


def _told(row: Mapping[str, Any], name: str) -> str:
    """A label with what was predicted before it."""
    value = number(row.get(name), 4)
    if row.get(f"{name}_predicted") is None:
        return value
    return f"{value} (predicted {number(row[f'{name}_predicted'])} ± {number(row.get(f'{name}_sigma'), 2)})"


def _plain_name(key: str) -> str:
    name = key.removeprefix(OPINION)
    return spec_of(name).heading if spec_of(name).unit else name.replace("_", " ")


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return mixture(value)
    return number(value, 4) if isinstance(value, float) else str(value)


def mixture(decomposition: Mapping[str, float]) -> str:
    """Competing phases with their fractions of atoms, largest first."""
    parts = sorted(decomposition.items(), key=lambda item: -item[1])
    return " + ".join(f"{fraction:.2f} {name}" for name, fraction in parts) or "no phases that the ledger names"


def _symmetries(row: Mapping[str, Any]) -> str:
    steps = (("asked", "space_group_asked"), ("drawn", "space_group_proposed"), ("relaxed", "space_group"))
    return " → ".join(f"{name} {symmetry(row[key])}" for name, key in steps if row[key])


def symmetry(number: int | None) -> str:
    """Symbol and number of a space group."""
    if not number:
        return "–"
    import gemmi

    found = gemmi.find_spacegroup_by_number(int(number))
    return f"{found.hm.replace(' ', '')} ({number})" if found else str(number)


def _more(history: History, row: Mapping[str, Any], label: Label) -> list[tuple[str, str]]:
    stability = history.settings.stability
    evaluation = label.evaluation
    lattice = final_structure(label).lattice
    more = [
        ("on the campaign's hull", f"{energy(row[stability])} eV/atom; decomposes into {mixture(row['decomposition'])}")
    ]
    if (entries := evaluation.value("hull_entries")) == entries:
        sparse = evaluation.value("hull_sparse")
        more.append(("known phases", f"{entries:.0f} in the system{'; sparse: few to judge by' if sparse else ''}"))
    more.append(("energy", f"{number(row.get('energy'), 6)} eV/atom, {row['energy_type'] or '–'}"))
    cell = ", ".join(f"{value:.3f}" for value in lattice.abc), ", ".join(f"{value:.2f}" for value in lattice.angles)
    more.append(("cell as held", f"{row['n_atoms']} atoms; {cell[0]} Å; {cell[1]}°"))
    done = {"energy", "hull_entries", "hull_sparse", stability, *_objectives(history)}
    others = [(heading(name, q.unit), _quantity(q)) for name, q in evaluation.properties.items() if name not in done]
    tiers = [(f"{name}: status", " ".join(filter(None, (e.status, e.message)))) for name, e in label.tiers.items()]
    costs = [f"{number(evaluation.cost.seconds, 3)} s by {evaluation.oracle}"]
    costs += [f"{number(found.cost.seconds, 3)} s by {found.oracle}" for found in label.tiers.values()]
    note = [("message", evaluation.message)] if evaluation.message else []
    return [*more, *others, *tiers, ("cost", "; ".join(costs)), *note]


def _quantity(quantity: Any) -> str:
    spread = "" if quantity.std is None else f" ± {number(quantity.std, 2)}"
    return f"{number(quantity.value, 4)}{spread}"


def lineage(history: History, row: Mapping[str, Any], label: Label) -> list[str]:
    """How a candidate came to its label, step by step."""
    origin, pick, stability = label.candidate.origin, label.pick, history.settings.stability
    policy = f" by policy {origin.policy}" if origin.policy else ""
    likely = "" if origin.logp is None else f", log-probability {origin.logp:.2f} nats"
    asked = f" for space group {symmetry(origin.space_group)}" if origin.space_group else ""
    parent = f" from {origin.parent}" if origin.parent else ""
    steps = [f"Drawn in round {pick.round}{policy}{asked}{parent} (source: {origin.source}){likely}."]
    judged = f"Judged {pick.novelty} as drawn" + (f" ({pick.match})" if pick.match else "")
    screened = "" if pick.screen is None else f"; {energy(pick.screen)} eV/atom above the hull unrelaxed"
    steps.append(f"{judged}{screened}.")
    if stability in pick.mean:
        steps.append(f"Predicted: {energy(pick.mean[stability], pick.std[stability])} eV/atom above the hull.")
    steps.append(
        {"engine": "Chosen by the acquisition.", "shadow": "Picked at random from the same pool, as a control."}.get(
            pick.arm, "Picked at random from the untuned generator."
        )
    )
    steps.append(f"Labelled by {label.evaluation.oracle}: {label.evaluation.status}.")
    if label.novelty_relaxed:
        match = f" ({label.match_relaxed})" if label.match_relaxed else ""
        steps.append(f"Judged {label.novelty_relaxed} as relaxed{match}.")
    above = row[f"{stability}_at_label"]
    if above is not None and above < IMPLAUSIBLE:
        steps.append("Set apart: so far below the hull, an error of the potential is more likely than a crystal.")
    steps += [f"Sent up to {name} ({found.oracle}): {found.status}." for name, found in label.tiers.items()]
    return steps


# pictures -------------------------------------------------------------------------------------------------------------


def picture_of(cif: str) -> dict[str, Any]:
    """What a CIF describes, for the viewer: the cell's vectors, atoms with images on its faces, bonds, in Angstrom."""
    import gemmi

    small = gemmi.make_small_structure_from_block(gemmi.cif.read_string(cif).sole_block())
    sites = small.get_all_unit_cell_sites()
    basis = np.array(small.cell.orth.mat.tolist()).T  # rows are vectors
    symbols, points = [], []
    for site in sites:
        for image in _images(np.array(site.fract.tolist()) % 1.0, few=8 * len(sites) <= MOST_ATOMS):
            symbols.append(site.element.name)
            points.append(image @ basis)
    styles = {symbol: _style(symbol) for symbol in dict.fromkeys(symbols)}
    atoms = [[symbol, *np.round(point, 3).tolist()] for symbol, point in zip(symbols, points, strict=True)]
    return {"cell": np.round(basis, 4).tolist(), "atoms": atoms, "elements": styles, "bonds": _bonds(atoms, styles)}


def _images(point: np.ndarray, *, few: bool) -> list[np.ndarray]:
    """An atom, and where it lies on a face, edge or corner its images there; fractional coordinates."""
    point = np.where(point > 1 - EDGE, point - 1, point)
    found = [point]
    for axis in range(3) if few else ():
        if abs(point[axis]) < EDGE:
            found += [image + np.eye(3)[axis] for image in found]
    return found


def _style(symbol: str) -> dict[str, Any]:
    from ase.data import atomic_numbers, covalent_radii
    from ase.data.colors import jmol_colors

    z = atomic_numbers[symbol]
    colour = "#" + "".join(f"{round(255 * part):02x}" for part in jmol_colors[z])
    radius = float(covalent_radii[z])
    return {"colour": colour, "radius": round(radius if math.isfinite(radius) else 1.5, 2)}


def _bonds(atoms: Sequence[Sequence[Any]], styles: Mapping[str, Mapping[str, Any]]) -> list[list[int]]:
    """Pairs of different elements within reach of each other; of one element where there is no other."""
    points = np.array([atom[1:] for atom in atoms], dtype=float)
    radii = np.array([styles[atom[0]]["radius"] for atom in atoms])
    kinds = np.array([atom[0] for atom in atoms])
    apart = np.linalg.norm(points[:, None] - points, axis=-1)
    near = np.triu(apart < BOND * (radii[:, None] + radii), 1)
    if len(styles) > 1:
        near &= kinds[:, None] != kinds
    return np.argwhere(near).tolist()
