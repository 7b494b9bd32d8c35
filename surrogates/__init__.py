"""Predicts oracle outcomes with uncertainty: features, Gaussian processes, calibration, acquisition."""

try:
    from loop.lazy import attach
except ImportError as error:
    import loop

    raise ImportError(
        f"discovery-loop needs its package `loop`, but a file or folder of that name comes first: "
        f"{getattr(loop, '__file__', None) or next(iter(loop.__path__))}. Rename it, or start Python in another folder."
    ) from error

__getattr__, __dir__, __all__ = attach(
    "surrogates",
    {
        "acquisition": ["AcquisitionConfig", "PoolAcquisition"],
        "features": ["FeatureExtractor", "default_blocks"],
        "gp": ["GPSurrogate"],
        "properties": ["GPConfig", "Property"],
        "utility": ["Constraint", "Objective"],
    },
)
