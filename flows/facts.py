"""What the head of a report says of a campaign besides its ledger's events: space, potentials, hull, budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loop.history import SECOND_OPINION, History

Facts = list[tuple[str, str]]
CONDITIONS = {  # of `generator.constraints.conditions.Sampling`: words around the value
    "require": "with {}",
    "elements": "only {}",
    "exclude": "without {}",
    "chemical_system": "of the system {}",
    "formula": "of the formula {}",
    "space_groups": "in space group {}",
    "max_elements": "at most {} elements",
    "max_atoms": "at most {} atoms in the primitive cell",
    "n_atoms": "exactly {} atoms in the primitive cell",
    "sites": "with sites {}",
}
RULES = {"max_elements": "elements", "max_atoms": "atoms"}  # of the validity rules, at most


def facts_of(history: History) -> Facts:
    """Lines (term, text) from the configuration that the ledger keeps; none where it keeps none."""
    config = _mapping(history.about.get("config"))
    if not config:
        return []
    settings = history.settings
    baseline = f"{settings.round0_budget} labels in the baseline round"
    budget = f"{baseline}, then {settings.rounds} rounds of {settings.budget} labels from pools of {settings.pool}"
    lots = f"{settings.shadow_share:.0%} of them picked at random"
    found = [("Space", space(config)), ("Generator", _generator(config)), ("Potentials", _potentials(config))]
    found += [("Hull", _hull(config)), ("New against", _novelty(config)), ("Budget", f"{budget}, {lots}")]
    made_with = _mapping(history.about.get("provenance"))
    version = _mapping(made_with.get("versions")).get("discovery-loop", "")
    commit = made_with.get("commit")
    with_commit = f"discovery-loop {version}" + (f", commit {commit}" if commit else "")
    return [*found, ("Made with", with_commit.strip())] if version else found


def space_of(history: History) -> dict[str, str]:
    """The space of a campaign under its name; empty where the ledger keeps no configuration."""
    config = _mapping(history.about.get("config"))
    return {"space": space(config)} if config else {}


def space(config: Mapping[str, Any]) -> str:
    """Which crystals are looked for: conditions of the proposals, and the rules that they must pass."""
    proposals = _mapping(_mapping(config.get("generator")).get("proposals"))
    sampling = _mapping(proposals.get("sampling")) | {
        name: proposals[name] for name in ("space_groups", "max_atoms") if proposals.get(name)
    }
    if system := sampling.get("chemical_system"):
        sampling["chemical_system"] = system if isinstance(system, str) else "-".join(system)
    asked = [words.format(_listed(sampling[name])) for name, words in CONDITIONS.items() if sampling.get(name)]
    rules = _mapping(config.get("validity"))
    limits = [f"at most {rules[name]} {what}" for name, what in RULES.items() if rules.get(name)]
    limits += [f"no {name}" for name in ("radioactive", "noble_gases") if rules.get(name) is False]
    limits += [f"without {_listed(rules['exclude'])}"] if rules.get("exclude") else []
    words = "; ".join(asked) or "all chemistry that the generator knows"
    return f"{words}; rules: {', '.join(limits)}".replace("_", " ") if limits else words


def _generator(config: Mapping[str, Any]) -> str:
    section = _mapping(config.get("generator"))
    finetune = _mapping(section.get("finetune"))
    algorithm = _mapping(finetune.get("algorithm")).get("kind", "")
    if (kind := section.get("kind", "crystalformer")) != "crystalformer":
        ours = {"substitution": "ion substitution in known crystals; it learns nothing"}
        return ours.get(kind, f"{kind}, of an installed package")
    learning = f"{finetune.get('iterations')} iterations of {algorithm} a round" if algorithm else ""
    where = "the shipped checkpoint" if section.get("checkpoint") is None else f"checkpoint {section['checkpoint']}"
    return ", ".join(filter(None, (f"{kind} from {where}", learning)))


def _potentials(config: Mapping[str, Any]) -> str:
    oracle = _mapping(config.get("oracle"))
    label = _mapping(oracle.get("mlip")).get("potential") if _by_potential(oracle) else oracle["kind"]
    screen = _mapping(oracle.get("screen")).get("potential") or (label if _by_potential(oracle) else "chgnet")
    tiers = [f"{name} for the best {_mapping(oracle[name]).get('best')} of a round" for name in _tiers(oracle)]
    other = _mapping(oracle.get(SECOND_OPINION)).get("potential")
    tiers += [f"{other} gives a second opinion on what is stable"] if other else []
    return "; ".join([f"{screen} rewards and screens", f"{label} labels", *tiers])


def _by_potential(oracle: Mapping[str, Any]) -> bool:
    """Whether a potential labels, as in all ledgers that name no kind."""
    return oracle.get("kind", "mlip") == "mlip"


def _tiers(oracle: Mapping[str, Any]) -> list[str]:
    others = ("mlip", "screen", SECOND_OPINION)
    return [name for name, section in oracle.items() if name not in others and "best" in _mapping(section)]


def _hull(config: Mapping[str, Any]) -> str:
    oracle = _mapping(config.get("oracle"))
    if not _by_potential(oracle):
        return f"as {oracle['kind']} measures it"
    mlip = _mapping(oracle.get("mlip"))
    reference = mlip.get("references")
    named = f"reference phases of {reference}" if reference else "known crystals"
    return f"{named}, with energies by the potential that labels, and the campaign's own finds"


def _novelty(config: Mapping[str, Any]) -> str:
    reference = _mapping(config.get("novelty")).get("reference", "shipped")
    shipped = "the shipped table of Materials Project crystals, textbook crystals of the elements"
    known = {"shipped": shipped, "none": "nothing"}.get(reference, reference)
    return f"{known}, and what the campaign has labelled"


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}
