"""The composition root: configuration to concrete objects, the Prefect flow and the command line."""

import warnings

from flows.threads import set_defaults

set_defaults()
# pymatgen says so of noble gases and of the heaviest elements whenever a formula is reduced
warnings.filterwarnings("ignore", message="No Pauling electronegativity")
