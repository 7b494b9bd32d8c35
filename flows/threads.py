"""Environment defaults that must stand before numpy, torch or Prefect are imported. What the user has set stays."""

from __future__ import annotations

import os

THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "NUMEXPR_NUM_THREADS")
DEFAULTS = {
    # OpenBLAS's own threads fight torch's: with one thread a CHGNet relaxation is 2.6 times as fast (2 cores, measured)
    # and labels run in processes side by side, one thread each
    **dict.fromkeys(THREADS, "1"),
    # matplotlib must never look for a display
    "MPLBACKEND": "Agg",
    # nothing is sent anywhere
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # Prefect's second UI asks an outside host at each page, the first asks none
    "PREFECT_SERVER_UI_V2_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    # spglib prints each try that fails to stderr; its caller is told the outcome anyway
    "SPGLIB_WARNING": "OFF",
}


def set_defaults() -> None:
    """Fill in what the environment does not say."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
