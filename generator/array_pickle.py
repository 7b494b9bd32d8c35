"""A pickle reader that can build nothing but arrays of plain numbers and plain containers.

A pickle is a program. This reader gives it nothing to call but stand-ins; any other name that it asks for ends the
reading with an error that says which name it was. Never use another one for files from outside.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from loop.errors import CheckpointError

_DTYPES = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}


class _Number:
    """Stands for `numpy.dtype`: a kind and size of plain numbers."""

    def __init__(self, code: str, *_: Any) -> None:
        if code not in _DTYPES:
            raise CheckpointError(f"the checkpoint holds arrays of type {code!r}; plain numbers were expected")
        self.code = code
        self.order = "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise CheckpointError("the checkpoint holds an array of an unknown type; plain numbers were expected")
        self.order = state[1]


class PickledArray:
    """Stands for an array while the pickle is read: filled by `__setstate__`, checked, turned into numpy by `value`."""

    def __init__(self, *_: Any) -> None:
        self.value: np.ndarray = np.zeros(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, number, fortran, content = state
        if not (isinstance(number, _Number) and isinstance(content, bytes) and isinstance(shape, tuple)):
            raise CheckpointError("the checkpoint holds an array that is not one of plain numbers")
        flat = np.frombuffer(content, np.dtype(number.order + number.code))
        if any(not isinstance(size, int) or size < 0 for size in shape) or math.prod(shape) != flat.size:
            raise CheckpointError(f"the checkpoint holds an array of {flat.size} numbers that claims shape {shape}")
        self.value = flat.reshape(shape, order="F" if fortran else "C")


class _JaxArray(PickledArray):
    """Stands for the function that rebuilds a JAX array from the parts of a numpy array."""

    def __init__(self, fun: Any, args: Any, state: tuple[Any, ...], aval: Any) -> None:  # noqa: ARG002
        super().__init__()
        self.__setstate__(state)


class _Record(tuple[Any, ...]):
    """Stands for the NamedTuples of the optimiser."""

    __slots__ = ()

    def __new__(cls, *fields: Any) -> _Record:
        return super().__new__(cls, fields)

    def __setstate__(self, state: Any) -> None:
        raise CheckpointError("the checkpoint's optimiser state is not the one of CrystalFormer v0.4")


class _Refused(Exception):  # noqa: N818
    """Carries the name of a global out of the C unpickler."""


class _Reader(pickle.Unpickler):
    """Resolves the names that a published checkpoint needs to stand-ins, and no other.

    All stand-ins are classes with a `__setstate__`, so that a pickle cannot set attributes on the stand-ins themselves.
    """

    allowed: ClassVar[Mapping[tuple[str, str], Any]] = {
        ("jax._src.array", "_reconstruct_array"): _JaxArray,
        ("numpy", "ndarray"): PickledArray,
        ("numpy", "dtype"): _Number,
        ("numpy._core.multiarray", "_reconstruct"): PickledArray,
        ("numpy.core.multiarray", "_reconstruct"): PickledArray,
        ("optax._src.base", "EmptyState"): _Record,
        ("optax._src.transform", "ScaleByAdamState"): _Record,
        ("optax._src.transform", "ScaleByScheduleState"): _Record,
    }

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in of a global."""
        try:
            return self.allowed[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None


def read_pickle(data: bytes, name: str = "the checkpoint") -> Any:
    """Plain containers and arrays of a pickle.

    Raises:
        CheckpointError: the pickle names a global outside the list above, or is damaged.
    """
    try:
        return _Reader(io.BytesIO(data)).load()
    except _Refused as error:
        raise CheckpointError(
            f"{name} asks for {error}, which no CrystalFormer checkpoint needs: it was not run. "
            "Expected a v0.4 checkpoint (arrays and plain containers); get it again from its publisher."
        ) from None
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from error
    except Exception as error:  # a damaged pickle can fail in any way
        raise CheckpointError(f"{name} is damaged or no checkpoint: {type(error).__name__}: {error}") from error
