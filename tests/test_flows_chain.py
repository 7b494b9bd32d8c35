"""Generate, relax, likelihood: what is scored is the crystal in the file, never the one that was drawn."""

from __future__ import annotations

import io
import os

import ase.io
import numpy as np
import pandas as pd
import pytest
import torch
from pymatgen.core import Structure
from typer.testing import CliRunner

from flows.cli import app
from flows.models import load_model
from generator.likelihood import log_prob
from generator.representation.sequence import Crystals
from generator.representation.tokens import CrystalBatch, tokenize
from tests.readers import of_atoms

MANY = int(os.environ.get("CHAIN_CRYSTALS", "200"))  # of the slow test; some 1.5 s per crystal on one core
PART = 100  # crystals at once
PARTS = ("logp_w", "logp_a", "logp_xyz", "logp_l", "logp")


def verb(*arguments: object) -> pd.DataFrame:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.stderr
    return pd.read_csv(str(arguments[-1]), keep_default_na=False, na_values=[""])


def canonical(texts: list[str], seed: int) -> np.ndarray:
    """Log-probabilities (n, 5) of crystals as ASE reads them, atoms in another order and other images."""
    model, rng, tokens = load_model(None, "cpu", "float32").model.eval(), np.random.default_rng(seed), []
    for text in texts:
        read = of_atoms(ase.io.read(io.StringIO(text), format="cif"))
        order = rng.permutation(len(read))
        places = read.frac_coords[order] + rng.integers(-1, 2, (len(read), 3))
        moved = Structure(read.lattice, [read.species[atom] for atom in order], places)
        tokens.append(tokenize(moved, max_sites=model.config.slots - 1))
    with torch.no_grad():
        terms = log_prob(model, Crystals.from_batch(CrystalBatch.concatenate(tokens), model.head.weight))
    parts = torch.stack([terms.w, terms.a, terms.xyz, terms.l], 1).double().numpy()
    return np.column_stack([parts, parts.sum(1)])


@pytest.mark.parametrize("n", [16, pytest.param(MANY, marks=pytest.mark.slow)])
def test_the_likelihood_is_that_of_the_crystal_in_the_file(n, tmp_path):
    compared = changed = 0
    for seed in range(-(-n // PART)):
        drawn, relaxed = tmp_path / f"{seed}.csv", tmp_path / f"{seed}r.csv"
        made = verb("generate", "--n", min(PART, n - seed * PART), "--seed", seed, "--output", drawn)
        after = verb("relax", "--max-steps", 2, "-i", drawn, "-o", relaxed)
        assert "tokens" not in after
        before = verb("likelihood", "-i", drawn, "-o", tmp_path / "b.csv")
        np.testing.assert_allclose(before["logp"], made["logp_drawn"], atol=1e-3)
        there = after["cif"].notna()
        fresh = verb("likelihood", "-i", relaxed, "-o", tmp_path / "l.csv")[there]
        after.rename(columns={"input_tokens": "tokens"}).to_csv(relaxed, index=False)  # as if a user had kept them
        stale = verb("likelihood", "-i", relaxed, "-o", tmp_path / "s.csv")[there]
        good = (fresh["status"] == "ok").to_numpy()
        assert (stale["status"] == fresh["status"]).all()
        scored, restored = fresh[good], stale[good]
        expected = canonical(after["cif"][there][good].tolist(), seed)
        assert set(scored["description"]) <= {"canonical"}
        np.testing.assert_allclose(scored[list(PARTS)], expected, atol=2e-3)
        other = (restored["description"] == "canonical").to_numpy()  # the others did not move: their tokens hold
        np.testing.assert_allclose(restored.loc[other, list(PARTS)], expected[other], atol=2e-3)
        steps = after["steps"][there][good].to_numpy()
        assert (steps[~other] == 0).all()
        compared, changed = compared + len(scored), changed + int((steps > 0).sum())
    print(f"{compared} of {n} crystals compared, {changed} of them changed by relaxation")
    assert changed > 0.7 * compared > 0.5 * n
