"""The composition root: configuration to concrete objects, the Prefect flow and the command line."""

from flows.threads import set_defaults

set_defaults()
