"""A table of reference phases with the relaxed energies of a chemical space, so that its users compute none.

``python -m oracles.references.settle TABLE.csv.gz --potential sevennet --elements B C N Ti ... --largest 3`` relaxes
every known crystal that lies on a hull of these elements, by the default settings, and writes it into the table of that
potential. What was relaxed is kept in the ledger of phases, so that a run that was cut off continues.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loop.io.files import write_bytes, write_text
from oracles.references.phase_ledger import relaxation
from oracles.references.table import References, _load, json_path, load_references, shipped_tables
from oracles.relax import RelaxConfig

if TYPE_CHECKING:
    import pandas as pd

    from oracles.references.hull_on_demand import DemandHull


def merged(table: pd.DataFrame, hull: DemandHull) -> pd.DataFrame:
    """Rows of a table and those of the crystals that a hull computed, sorted by formula and id.

    Args:
        table: columns `oracles.references.table.COLUMNS`; its elements stay.
        hull: of the same potential; a relaxation that did not end (a busy machine has timeouts) settles nothing.
    """
    import pandas as pd

    points = dict(zip(table["id"], table["unrelaxed"], strict=True)) | hull.points
    relaxed = {id: done.value("energy") for id, done in hull.computed.items() if done.ok}
    known = {id: hull.source.known(id).formula for id in {*hull.points, *relaxed} if " " not in id}
    rows = [
        {"formula": formula, "id": id, "held_out": 0, "energy_per_atom": relaxed.get(id, points.get(id)),
         "relaxed": int(np.isfinite(relaxed.get(id, np.nan))), "unrelaxed": points.get(id, relaxed.get(id))}
        for id, formula in known.items()
    ]  # fmt: skip
    added = pd.DataFrame(rows, columns=list(table.columns)).dropna()
    both = pd.concat([table[~table["id"].isin(added["id"])], added])
    return both.sort_values(["formula", "id"], ignore_index=True)


def write(output: Path, table: pd.DataFrame, meta: Mapping[str, Any], config: RelaxConfig, **about: Any) -> References:
    """Write a table with its JSON: `meta` as it was, the settings of the relaxations, and `about`."""
    text = table.to_csv(index=False, float_format="%.5f", lineterminator="\n").encode()
    counts = {"rows": len(table), "relaxed": int(table["relaxed"].sum()), "relaxation": relaxation(config)}
    write_bytes(output, gzip.compress(text, mtime=0))
    write_text(json_path(output), json.dumps({**meta, **counts, **about}, indent=2) + "\n")
    _load.cache_clear()
    return load_references(output)


def main() -> int:
    """Entry point."""
    import pandas as pd

    from oracles.potentials.loading import load_potential
    from oracles.references.hull_on_demand import demand_hull

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path)
    parser.add_argument("--potential", default="sevennet")
    parser.add_argument("--elements", nargs="+", required=True)
    parser.add_argument("--largest", type=int, help="elements in one phase")
    parser.add_argument("--ledger", help="of phases; by default that of this user's work")
    arguments = parser.parse_args()
    config = RelaxConfig()
    own = load_references(arguments.table)
    others = [table for table in shipped_tables() if table.energy_type != own.energy_type]
    hull = demand_hull(
        load_potential(arguments.potential), config, ledger=arguments.ledger, tables=[own, *others],
        progress=lambda done, total: print(f"relaxed {done} of {total}", file=sys.stderr),
    )  # fmt: skip
    hull.settle(arguments.elements, arguments.largest)
    table = pd.read_csv(arguments.table, keep_default_na=False)
    meta = json.loads(json_path(arguments.table).read_text(encoding="utf-8"))
    space = {"elements": sorted(arguments.elements), "largest": arguments.largest}
    settled = [each for each in meta.get("settled", []) if each != space]
    write(arguments.table, merged(table, hull), meta, config, settled=[*settled, space])
    return 0


if __name__ == "__main__":
    sys.exit(main())
