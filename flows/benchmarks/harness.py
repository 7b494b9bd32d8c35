"""What the benchmarks share: the shape of a record, and the list from which verbs with the usual options are made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from flows.records import write_record

REQUIRED = ("benchmark", "protocol", "settings", "results")  # results/schema.json says what each holds


@dataclass(frozen=True)
class Benchmark:
    """A measurement whose verb has the usual options: --output, --set, and where it has them --data and --seeds.

    Attributes:
        name: of the verb and of the record.
        help: of the verb.
        module: where its `run` and its configuration are, below ``flows.benchmarks``.
        config: name of the frozen dataclass of its settings.
        data: it needs a table of crystals with labels; `run` takes it first.
        seeds: its settings have `seeds`.
    """

    name: str
    help: str
    module: str
    config: str
    data: bool = True
    seeds: bool = True

    @property
    def settings(self) -> type[Any]:
        """Class of its settings."""
        return getattr(self._module, self.config)

    @property
    def run(self) -> Callable[..., dict[str, Any]]:
        """``run([data,] output, settings, progress)``, which returns the record."""
        return self._module.run

    @property
    def _module(self) -> Any:
        return import_module(f"flows.benchmarks.{self.module}")


BENCHMARKS = (
    Benchmark(
        "quickstart",
        "The quickstart's campaign over several seeds: finds per label, engine against chance and untuned generator.",
        "quickstart",
        "QuickstartConfig",
        data=False,
    ),
    Benchmark(
        "pool",
        "Simulated campaigns on a table with hidden labels: strategies against chance and a random forest.",
        "pool.run",
        "PoolConfig",
    ),
    Benchmark(
        "gate",
        "How good the best 20 are when a tenth or a fifth of a table is labelled, against labelling all.",
        "pool.gate",
        "GateConfig",
    ),
    Benchmark(
        "ladder",
        "Two fidelities of a property: who gets the costly one, by rank, by chance, and by the surrogate of the step.",
        "pool.ladder",
        "LadderConfig",
    ),
    Benchmark(
        "hull",
        "Closed-loop discovery on ternary phase diagrams: chance, generator, ranking and the engine; needs no data.",
        "hull.run",
        "HullConfig",
        data=False,
    ),
    Benchmark(
        "demand",
        "Whether a hull on demand equals the complete hull, and what share of its phases is computed.",
        "oracles.demand",
        "DemandConfig",
        seeds=False,
    ),
    Benchmark(
        "selection",
        "Time and memory to choose a batch from 100,000 candidates whose features are cached; needs no data.",
        "pool.selection",
        "SelectionConfig",
        data=False,
        seeds=False,
    ),
    Benchmark(
        "rediscovery",
        "Real crystals that the generator never saw, found again among samples that count as new: base and tuned.",
        "generator.rediscovery",
        "RediscoveryConfig",
    ),
    Benchmark(
        "prompts",
        "Given a chemical system: crystals near another potential's hull per relaxation; told, masks alone, chance.",
        "generator.prompts",
        "PromptsConfig",
        seeds=False,
    ),
    Benchmark(
        "dielectric",
        "Gap times dielectric constant, labels hidden: the closed loop against the published protocol and chance.",
        "dielectric.simulated",
        "DielectricConfig",
    ),
)


def write_benchmark(output: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Write ``record.json`` of a benchmark with what it was made with; returns what a reader of the file gets.

    Raises:
        ValueError: the record lacks what every record of a benchmark holds.
    """
    missing = [name for name in REQUIRED if name not in record]
    if missing:
        raise ValueError(f"a record of a benchmark needs {', '.join(REQUIRED)}; this one lacks {', '.join(missing)}")
    return write_record(output, record)


def files_of(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Files of a record, with their checksums."""
    from loop.io.files import sha256  # brings pymatgen: too slow for the list of verbs

    return [{"file": path.name, "sha256": sha256(path)} for path in paths]
