"""The ranked list: stable candidates first, each group by the objective."""

from __future__ import annotations

import math

from loop.history import Label
from loop.settings import CampaignSettings


def ranked(labels: list[Label], settings: CampaignSettings) -> list[Label]:
    """Best first: stable by the objective, then the others by stability, then failures.

    Ties go by id, so that the same labels give the same list.
    """
    return sorted(labels, key=lambda label: _sort_key(label, settings))


def _sort_key(label: Label, settings: CampaignSettings) -> tuple[int, float, float, str]:
    stability = label.evaluation.value(settings.stability)
    if not label.evaluation.ok or math.isnan(stability):
        return 2, 0.0, 0.0, label.candidate.id
    objective = label.evaluation.value(settings.objective)
    badness = math.inf if math.isnan(objective) else (-objective if settings.maximise else objective)
    if label.is_stable(settings):
        return 0, badness, stability, label.candidate.id
    return 1, stability, badness, label.candidate.id
