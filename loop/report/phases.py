"""Phase diagrams of the chemical systems of the best candidates, from the reference phases that a report keeps."""

from __future__ import annotations

from collections.abc import Iterable

from loop.history import Label
from loop.ranking import ranked
from loop.settings import CampaignSettings

SYSTEMS = 6  # whose diagrams a report draws
DRAWN = (2, 3)  # elements of a system that a flat diagram can show


def systems_of(labels: Iterable[Label], settings: CampaignSettings) -> list[str]:
    """Chemical systems of the best candidates with two or three elements, best first."""
    usable = [label for label in labels if label.evaluation.ok and not label.suspect(settings)]
    systems = (label.candidate.structure.chemical_system for label in ranked(usable, settings))
    return list(dict.fromkeys(system for system in systems if len(system.split("-")) in DRAWN))[:SYSTEMS]
