"""Predictors of band gap and dielectric constant, trained on published tables: those of the reward, and its judges.

The reward's are the campaign's Gaussian processes on features of the unrelaxed crystal; a random forest that sees the
composition alone, and where it is given MEGNet (gaps), judge. All are measured on the formulas of the `val` and `test`
splits, which none but MEGNet has seen.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.benchmarks.crystals import candidate_of
from flows.benchmarks.rl.hull import Energies, JudgeConfig
from flows.build import Builder
from flows.progress import of_stage
from loop.errors import InputError
from loop.io.files import write_text
from loop.screening import HullScreen
from loop.values import OK, Candidate, Evaluation, Prediction, Quantity
from surrogates.features import FeatureExtractor, default_blocks
from surrogates.gp import GPSurrogate
from surrogates.properties import GPConfig, Property

if TYPE_CHECKING:
    import pandas as pd
    from pymatgen.core import Structure

    from loop.contracts import Progress

GAP = Property("band_gap", "eV", prior_mean=1.0, prior_std=1.5)
# Electronic and not total: 3,166 crystals have a usable one against 911, the ionic part rests on soft phonons that no
# feature here tells, and the paper's figure of merit takes it.
EPS = Property("ln_eps", "1", prior_mean=1.5, prior_std=0.5)
NAMES = (GAP.name, EPS.name)
# Exact inference takes seconds here; with inducing points instead, errors are larger by some percent.
GP = GPConfig(properties=(GAP, EPS), max_labels=6000)
COLUMNS = ("cif", "band_gap", "eps_electronic", "split")
INSULATING = 0.1  # eV: below, published dielectric constants are not to be used
EPS_RANGE = (1.0, 30.0)
MEGNET_CHUNK = 1000


@dataclass(frozen=True)
class LearningConfig:
    """What the predictors learn from.

    Attributes:
        gaps: crystals of the train split for the surrogate of the gap, beside all that have a dielectric constant.
        held_out: crystals of the other splits on which gaps are judged, beside all that have a dielectric constant.
        forest_gaps: crystals of the train split for the forest of gaps.
        trees: of a forest.
    """

    gaps: int = 1500
    held_out: int = 700
    forest_gaps: int = 6000
    trees: int = 100


@dataclass(frozen=True, eq=False)
class Labelled:
    """n crystals with labels (n, 2): gap (eV) and ln of the dielectric constant, NaN where there is none."""

    candidates: list[Candidate]
    labels: np.ndarray

    @property
    def structures(self) -> list[Structure]:
        """The crystals."""
        return [candidate.structure for candidate in self.candidates]

    def evaluations(self) -> list[Evaluation]:
        """What an oracle would have answered."""
        return [
            Evaluation(
                candidate.id,
                "table@1",
                "published",
                OK,
                {p.name: Quantity(float(v), p.unit) for p, v in zip((GAP, EPS), row, strict=True) if np.isfinite(v)},
            )
            for candidate, row in zip(self.candidates, self.labels, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class Tables:
    """Published labels, split by formula."""

    frame: pd.DataFrame
    labels: np.ndarray  # (n, 2)

    @classmethod
    def read(cls, path: Path) -> Tables:
        """A CSV as `mp_le20.csv.gz`.

        Raises:
            InputError: it lacks a column.
        """
        from loop.io.crystals import read_frame

        frame, _ = read_frame(path)
        missing = [name for name in COLUMNS if name not in frame]
        if missing:
            raise InputError(f"expected the columns {', '.join(COLUMNS)} in {path}, it lacks {', '.join(missing)}")
        gap, eps = (frame[name].to_numpy(float) for name in ("band_gap", "eps_electronic"))
        sound = (gap > INSULATING) & (eps >= EPS_RANGE[0]) & (eps < EPS_RANGE[1])
        labels = np.column_stack([gap, np.log(np.where(sound, eps, np.nan))])
        return cls(frame.reset_index(drop=True), labels)

    def draw(self, gaps: int, seed: int, *, train: bool) -> Labelled:
        """All crystals of a side of the split that have a dielectric constant, and so many others with a gap."""
        side = (self.frame["split"] == "train").to_numpy() == train
        with_eps = np.flatnonzero(side & np.isfinite(self.labels[:, 1]))
        others = np.flatnonzero(side & np.isfinite(self.labels[:, 0]) & ~np.isfinite(self.labels[:, 1]))
        drawn = np.random.default_rng(seed).permutation(others)[:gaps]
        found: dict[str, tuple[Candidate, np.ndarray]] = {}
        for row in np.sort(np.concatenate([with_eps, drawn])):
            candidate = candidate_of(self.frame["cif"].iloc[row])
            if candidate is not None:
                found.setdefault(candidate.id, (candidate, self.labels[row]))
        if len(found) < 20:
            raise InputError(f"expected at least 20 labelled crystals with {train=}, found {len(found)}")
        return Labelled([pair[0] for pair in found.values()], np.array([pair[1] for pair in found.values()]))


class OnePass:
    """Energies and descriptors of crystals from one forward pass, hull first, then surrogate.

    Remembers the crystals of the last calls, up to `KEEP`.
    """

    KEEP = 4096

    def __init__(self, compute: Any) -> None:
        self._compute = compute
        self._known: dict[str, tuple[float, np.ndarray]] = {}
        self.computed = 0

    def __call__(self, structures: Sequence[Structure]) -> tuple[np.ndarray, np.ndarray]:
        """Energies (n,) in eV/atom and descriptors (n, d)."""
        from loop.values import structure_id

        ids = [structure_id(structure) for structure in structures]
        missing = {i: s for i, s in zip(ids, structures, strict=True) if i not in self._known}
        if missing:
            energies, descriptors = self._compute(list(missing.values()))
            if len(self._known) + len(missing) > self.KEEP:
                self._known = {i: self._known[i] for i in ids if i in self._known}
            self._known |= {i: (e, d) for i, e, d in zip(missing, energies, descriptors, strict=True)}
            self.computed += len(missing)
        found = [self._known[i] for i in ids]
        return np.array([e for e, _ in found]), np.array([d for _, d in found]).reshape(len(found), -1)


class PropertyBuilder(Builder):
    """A builder whose hull and whose surrogate share the potential's passes."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.one_pass = OnePass(self.measuring.potential.energies_and_descriptors)
        screen = super().screen
        self.__dict__["screen"] = HullScreen(lambda s: self.one_pass(s)[0], screen.energy_type, screen.hull)

    def extractor(self, cache: Path | None = None) -> FeatureExtractor:
        """The campaign's features but for the hull's distance, of which gaps know nothing."""
        from pymatgen.core import Structure

        width = self.one_pass([Structure(np.eye(3) * 4.2, ["Cs"], [[0, 0, 0]])])[1].shape[1]
        key = str(self.measuring.potential.energy_type)
        return FeatureExtractor(default_blocks(self.one_pass if width else None, key=key, size=width), cache)


class TableSurrogate(GPSurrogate):
    """Gaussian processes of the tables. Asked by a reward for one property after the other, predict a batch once."""

    _last: tuple[tuple[str, ...], Prediction] | None = None

    def predict(self, candidates: Sequence[Candidate]) -> Prediction:
        """Mean and standard deviation, (n, 2)."""
        ids = tuple(candidate.id for candidate in candidates)
        if self._last is None or self._last[0] != ids:
            self._last = ids, super().predict(candidates)
        return self._last[1]


def train_surrogates(
    builder: PropertyBuilder, tables: Tables, config: LearningConfig, folder: Path, progress: Progress | None
) -> tuple[TableSurrogate, dict[str, Any]]:
    """The reward's surrogates and their errors, trained once: a later call takes them from the folder."""
    surrogate = TableSurrogate(builder.extractor(), GP)
    told = folder / "held_out.json"
    if told.exists():
        surrogate.load(folder / "surrogates")
        return surrogate, json.loads(told.read_text(encoding="utf-8"))
    train, held_out = (tables.draw(n, 0, train=side) for n, side in ((config.gaps, True), (config.held_out, False)))
    cached = builder.extractor(folder / "features")
    cached([*train.candidates, *held_out.candidates], progress)
    learning = TableSurrogate(cached, GP)
    fit = learning.fit(train.candidates, train.evaluations())
    found = learning.evaluate(held_out.candidates, held_out.evaluations())
    kept = ("n", "mae", "rmse", "coverage50", "coverage90", "ence", "spearman")
    about: dict[str, Any] = {}
    mean = learning.predict(held_out.candidates).mean
    for column, name in enumerate(NAMES):
        about[name] = {"labels": fit[f"{name}/labels"], "held_out_formulas": _formulas(held_out, column)}
        about[name] |= {key: round(found[f"{name}/{key}"], 4) for key in kept}
        about[name]["r2"] = errors(held_out.labels[:, column], mean[:, column])["r2"]
    learning.save(folder / "surrogates")
    surrogate.load(folder / "surrogates")
    write_text(told, json.dumps(about, indent=1) + "\n")
    return surrogate, about


def _formulas(labelled: Labelled, column: int) -> int:
    rows = np.flatnonzero(np.isfinite(labelled.labels[:, column]))
    return len({labelled.candidates[row].formula for row in rows})


def errors(labels: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Mean absolute error, coefficient of determination and number, of what both have."""
    both = np.isfinite(labels) & np.isfinite(predicted)
    y, error = labels[both], predicted[both] - labels[both]
    r2 = 1 - float((error**2).sum() / ((y - y.mean()) ** 2).sum())
    return {"n": int(both.sum()), "mae": round(float(np.abs(error).mean()), 4), "r2": round(r2, 4)}


@dataclass
class IndependentPredictors:
    """Predictors that the reward has nothing to do with: forests of the composition, and MEGNet where it is given."""

    forests: list[Any]
    megnet: Energies | None
    about: dict[str, Any]

    @classmethod
    def train(
        cls, tables: Tables, config: LearningConfig, judge: JudgeConfig, folder: Path, progress: Progress | None
    ) -> IndependentPredictors:
        """Train the forests on the train split, and measure all on the other ones."""
        from sklearn.ensemble import RandomForestRegressor

        train, held_out = (
            tables.draw(n, 1, train=side) for n, side in ((config.forest_gaps, True), (config.held_out, False))
        )
        X, inputs = (composition(part.structures) for part in (train, held_out))
        megnet = None
        if judge.model is not None:
            megnet = Energies(judge, folder / "megnet.json", script="megnet_gaps.py", chunk=MEGNET_CHUNK)
        forests: list[RandomForestRegressor] = []
        about: dict[str, dict[str, Any]] = {}
        for column, name in enumerate(NAMES):
            rows = np.isfinite(train.labels[:, column])
            forest = RandomForestRegressor(config.trees, min_samples_leaf=2, max_features=1 / 3, random_state=0)
            forests.append(forest.fit(X[rows], train.labels[rows, column]))
            about[f"forest_{name}"] = {"labels": int(rows.sum())}
            about[f"forest_{name}"] |= errors(held_out.labels[:, column], forest.predict(inputs))
        if megnet is not None:
            gaps = megnet(held_out.structures, of_stage(progress, "MEGNet"))
            about["megnet_band_gap"] = {"labels": "of the published model"}
            about["megnet_band_gap"] |= errors(held_out.labels[:, 0], gaps)
        return cls(forests, megnet, about)

    def __call__(self, structures: Sequence[Structure], progress: Progress | None = None) -> dict[str, np.ndarray]:
        """Columns of judgements, (n,) each."""
        if not structures:
            return {}
        X = composition(structures)
        found = {f"forest_{name}": forest.predict(X) for name, forest in zip(NAMES, self.forests, strict=True)}
        if self.megnet is not None:
            found["megnet_band_gap"] = self.megnet(structures, of_stage(progress, "MEGNet"))
        return found


def composition(structures: Sequence[Structure]) -> np.ndarray:
    """Statistics of the elements, (n, d): nothing that depends on where the atoms are."""
    from surrogates.blocks import CompositionBlock, ElementBlock

    return np.column_stack([block.compute(structures) for block in (CompositionBlock(), ElementBlock())])
