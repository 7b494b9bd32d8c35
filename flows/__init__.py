"""The composition root: configuration to concrete objects, the Prefect flow and the command line."""

import warnings

from flows.threads import set_defaults

try:
    from loop.lazy import attach
except ImportError as error:
    import loop

    raise ImportError(
        f"discovery-loop needs its package `loop`, but a file or folder of that name comes first: "
        f"{getattr(loop, '__file__', None) or next(iter(loop.__path__))}. Rename it, or start Python in another folder."
    ) from error

set_defaults()
# pymatgen says so of noble gases and of the heaviest elements whenever a formula is reduced
warnings.filterwarnings("ignore", message="No Pauling electronegativity")

__getattr__, __dir__, __all__ = attach(
    "flows",
    {
        "build": ["Builder", "open_campaign"],
        "config": ["CampaignConfig", "read_config", "stored_config"],
        "outcome": ["summarise", "write_results"],
        "plain": ["open_history", "run_campaign"],
    },
)
