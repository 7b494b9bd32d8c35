"""The errors users meet. Each message says what was expected, what came, and what to do."""


class DiscoveryLoopError(Exception):
    """Base of all errors that the command line prints as one message without a traceback."""


class ConfigError(DiscoveryLoopError, ValueError):
    """A configuration file or value cannot be used. A `ValueError`, so that pydantic says under which key it lies."""


class InputError(DiscoveryLoopError):
    """An input file is missing, unreadable or holds no usable crystal."""

    kind = "unreadable"


class DisorderedError(InputError):
    """The crystal has partial occupancies or sites without an element."""

    kind = "disordered"


class ImplausibleError(InputError):
    """What was read is no crystal: atoms overlap, the cell is flat, ... `kind` names which, and begins the message."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(kind, message)
        self.kind = kind

    def __str__(self) -> str:
        return ": ".join(self.args)


class CheckpointError(DiscoveryLoopError):
    """A checkpoint is missing, damaged or belongs to another model."""


class EnergyTypeError(DiscoveryLoopError):
    """Energies of different types were about to be compared."""


class UnsupportedElementError(DiscoveryLoopError):
    """A crystal holds an element that the potential or the hull does not know."""


class StoreError(DiscoveryLoopError):
    """The ledger cannot be opened, or holds something that contradicts the request."""


class PotentialError(DiscoveryLoopError):
    """A potential gives wrong numbers on this machine, or cannot be loaded."""


class EngineError(DiscoveryLoopError):
    """A DFT engine is absent, or cannot be run."""
