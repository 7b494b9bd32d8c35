"""The surrogates as a campaign needs them: inputs scaled by typical crystals, and trained on what is known already."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np

from flows.known_labels import KnownLabels
from loop.errors import ConfigError
from loop.values import PRODUCT, Candidate, Evaluation
from surrogates.features import FeatureExtractor
from surrogates.gp import GPSurrogate
from surrogates.product import ProductSurrogate
from surrogates.properties import GPConfig, Property


class WithKnownLabels:
    """A surrogate that knows what predictions are for, and what was known before the campaign. To be mixed in."""

    labels: np.ndarray
    _typical: Callable[[], Sequence[Candidate]] | None = None
    """Unlabelled crystals from which the input scaling is taken before the first fit: among a few labelled ones many
    columns are constant or ill-scaled."""
    _known: KnownLabels | None = None
    """Labels that were there before the campaign; every fit learns from them, too."""

    def teach(self, typical: Callable[[], Sequence[Candidate]] | None, known: KnownLabels | None) -> Self:
        """Give both; returns itself."""
        self._typical, self._known = typical, known
        return self

    def fit(
        self,
        candidates: Sequence[Candidate],
        evaluations: Sequence[Evaluation],
        *,
        picked_at_random: Collection[str] = frozenset(),
    ) -> dict[str, float]:
        """Learn from all labels so far and from those known before; returns metrics of the fit."""
        if self._typical is not None:
            self.adapt(self._typical())  # type: ignore[attr-defined]
            self._typical = None
        if self._known is None:
            return super().fit(candidates, evaluations, picked_at_random=picked_at_random)  # type: ignore[misc]
        before, labels = self._known.candidates, self._known.evaluations
        if not len(
            self.labels
        ):  # by themselves at first: what they make of the campaign's first labels is worth knowing
            super().fit(before, labels)  # type: ignore[misc]
        metrics = super().fit([*before, *candidates], [*labels, *evaluations], picked_at_random=picked_at_random)  # type: ignore[misc]
        return metrics | {"known": float(len(labels))}

    def load(self, path: Path) -> None:
        """Take over what `save` wrote; the scaling comes along.

        Raises:
            CheckpointError: missing, damaged, or made with other features.
        """
        super().load(path)  # type: ignore[misc]
        self._typical = None


class CampaignSurrogate(WithKnownLabels, GPSurrogate):
    """Implements `loop.contracts.Surrogate`: one process per property."""

    def __init__(
        self,
        extractor: FeatureExtractor,
        config: GPConfig,
        typical: Callable[[], Sequence[Candidate]] | None = None,
        known: KnownLabels | None = None,
    ) -> None:
        super().__init__(extractor, config)
        self.teach(typical, known)


class CampaignProductSurrogate(WithKnownLabels, ProductSurrogate):
    """Implements `loop.contracts.Surrogate`: one process per property, and a product predicted by two models."""


AnyCampaignSurrogate = CampaignSurrogate | CampaignProductSurrogate


def product_of(properties: Sequence[Property]) -> Property | None:
    """The product among what is predicted.

    Raises:
        ConfigError: there are several, or its factors are not two others that are predicted, too.
    """
    products = [prop for prop in properties if PRODUCT in prop.name]
    if not products:
        return None
    names = {prop.name for prop in properties if prop not in products and prop.scale != "soft"}
    factors = products[0].name.split(PRODUCT)
    if len(products) > 1 or len(factors) != 2 or len(set(factors) & names) != 2 or products[0].scale != "linear":
        asked = ", ".join(prop.name for prop in products)
        raise ConfigError(
            "surrogate.gp.properties: expected at most one product, on a linear scale, of two properties that are "
            f"predicted, too, on linear or log scales; got {asked} beside {', '.join(sorted(names)) or 'none'}"
        )
    return products[0]


def campaign_surrogate(extractor: FeatureExtractor, config: GPConfig) -> AnyCampaignSurrogate:
    """The surrogate that a campaign's properties ask for.

    Raises:
        ConfigError: see `product_of`.
    """
    product = product_of(config.properties)
    if product is None:
        return CampaignSurrogate(extractor, config)
    plain = replace(config, properties=tuple(prop for prop in config.properties if prop is not product))
    return CampaignProductSurrogate(extractor, plain, product, product.name.split(PRODUCT), alone=False)
