"""Measures crystals: potentials, relaxation, elastic properties, reference phases."""

try:
    from loop.lazy import attach
except ImportError as error:
    import loop

    raise ImportError(
        f"discovery-loop needs its package `loop`, but a file or folder of that name comes first: "
        f"{getattr(loop, '__file__', None) or next(iter(loop.__path__))}. Rename it, or start Python in another folder."
    ) from error

__getattr__, __dir__, __all__ = attach(
    "oracles",
    {
        "properties.bulk": ["BulkConfig"],
        "properties.elastic": ["ElasticConfig"],
        "mlip": ["MlipConfig", "PotentialOracle"],
        "properties.phonons": ["PhononConfig"],
        "potentials.base": ["Potential"],
        "potentials.loading": ["load_potential"],
        "references.crystals": ["ReferenceCrystals", "load_reference_crystals"],
        "references.energies": ["build_references"],
        "references.table": ["References", "load_references"],
        "relax": ["RelaxConfig", "Relaxed"],
    },
)
