"""A potential in a process of its own: ``python worker.py``, spoken to over its standard input and output.

Imports nothing of this program: the interpreter that runs it may live in another environment. It needs numpy, ASE and
the potential's own packages. A message is a JSON object, then the arrays that it names, each after its length in
bytes; nothing is ever unpickled from a pipe. Units: eV, Angstrom, eV/A^3 (positive under tension).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import struct
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

_LENGTH = struct.Struct("<Q")
LONGEST = 2**33  # bytes of a part: more than any answer has, less than what a torn stream would claim

Crystal = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Atomic numbers (n,), Cartesian positions (n, 3) in A, lattice vectors as rows (3, 3) in A."""


def send(stream: IO[bytes], message: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> None:
    """Write one message."""
    arrays = arrays or {}
    parts = [json.dumps({**message, "arrays": list(arrays)}).encode()]
    for array in arrays.values():
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        parts.append(buffer.getvalue())
    stream.write(b"".join(_LENGTH.pack(len(part)) + part for part in parts))
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read one message.

    Raises:
        EOFError: the other side closed the stream, or died in the middle.
    """
    message = json.loads(_part(stream))
    return message, {name: np.load(io.BytesIO(_part(stream)), allow_pickle=False) for name in message.pop("arrays", [])}


def _part(stream: IO[bytes]) -> bytes:
    (length,) = _LENGTH.unpack(_exactly(stream, _LENGTH.size))
    if length > LONGEST:
        raise EOFError(f"a message of {length} bytes")
    return _exactly(stream, length)


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if data is None or len(data) < size:
        raise EOFError("the stream ended")
    return data


def pack(crystals: Sequence[Crystal]) -> dict[str, np.ndarray]:
    """Crystals as arrays of a message."""
    return {
        "sizes": np.array([len(numbers) for numbers, _, _ in crystals]),
        "numbers": np.concatenate([numbers for numbers, _, _ in crystals]),
        "positions": np.concatenate([positions for _, positions, _ in crystals]),
        "cells": np.array([cell for _, _, cell in crystals]),
    }


def unpack(arrays: Mapping[str, np.ndarray]) -> list[Crystal]:
    """Inverse of `pack`."""
    ends = np.cumsum(arrays["sizes"])[:-1]
    numbers, positions = np.split(arrays["numbers"], ends), np.split(arrays["positions"], ends)
    return list(zip(numbers, positions, arrays["cells"], strict=True))


class Backend(Protocol):
    """A potential."""

    about: dict[str, Any]  # elements (symbols), versions, device

    def compute(self, crystals: Sequence[Crystal], gradients: bool) -> dict[str, np.ndarray]:
        """Arrays energy (k,) in eV, forces (all atoms, 3), stress (k, 3, 3) and features (k, d), those it has.

        `lonely` (k,), where it has that, marks crystals with an atom that has no neighbour: it knows nothing of these.
        """
        ...


class AseBackend:
    """Any ASE calculator, one crystal at a time."""

    def __init__(self, job: dict[str, Any]) -> None:
        import importlib
        from importlib.metadata import version

        module, _, name = job["path"].partition(":")
        self._make = getattr(importlib.import_module(module), name)
        self._options = job["options"]
        lacking = {"energy", "forces", "stress"} - set(self._calculator().implemented_properties)
        if lacking:
            raise ValueError(f"it gives no {', '.join(sorted(lacking))}, which relaxation needs")
        self.about = {"versions": {"ase": version("ase")}, "device": "cpu"}
        if job["path"] == "ase.calculators.emt:EMT":  # the only one whose table of elements is known
            self.about["elements"] = sorted(importlib.import_module(module).parameters)

    def _calculator(self) -> Any:
        return self._make(**self._options)

    def compute(self, crystals: Sequence[Crystal], gradients: bool) -> dict[str, np.ndarray]:
        """Energies, and with gradients forces and stresses."""
        from ase import Atoms

        energy, forces, stress = [], [], []
        for numbers, positions, cell in crystals:
            atoms = Atoms(numbers=numbers, positions=positions, cell=cell, pbc=True, calculator=self._calculator())
            energy.append(float(atoms.get_potential_energy()))
            if gradients:
                forces.append(np.array(atoms.get_forces(), dtype=float))
                stress.append(np.array(atoms.get_stress(voigt=False), dtype=float))
        found = {"energy": np.array(energy)}
        return found | ({"forces": np.concatenate(forces), "stress": np.array(stress)} if gradients else {})


class SevenNetBackend:
    """SevenNet, several crystals a forward pass. Its checkpoint is a pickle: the caller has checked its checksum."""

    MOST_EDGES = 800  # of a forward pass on a CPU; larger ones are a tenth slower (measured)
    MOST_EDGES_ON_GPU = 100_000  # a guess, not measured
    MOST_EDGES_OF_ONE = 120_000  # some 100 kB of memory each; 500 atoms of iron have 34,000

    def __init__(self, job: dict[str, Any]) -> None:
        from importlib.metadata import version

        import torch
        from ase.data import chemical_symbols

        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            import sevenn._keys as keys
            from sevenn.util import model_from_checkpoint

            model: Any
            model, config = model_from_checkpoint(job["checkpoint"])
        torch.set_num_threads(job["threads"])
        self._torch, self._keys = torch, keys
        self._device, self._dtype = job["device"], getattr(torch, job["dtype"])
        self._cutoff = float(config["cutoff"])
        model.eval().to(device=self._device, dtype=self._dtype)
        model.requires_grad_(False)
        model.set_is_batch_data(True)
        self._model = model
        self._known = dict(model.type_map)
        self._head: int | None = None
        if job.get("head"):  # of a checkpoint with several; the package reads it from another kind of data than ours
            self._head, model.eval_modal_map = model.modal_map[job["head"]], False
        self.about = {
            "elements": sorted(chemical_symbols[z] for z in self._known),
            "versions": {name: version(name) for name in ("sevenn", "e3nn", "torch")},
            "device": self._device,
        }

    def compute(self, crystals: Sequence[Crystal], gradients: bool) -> dict[str, np.ndarray]:
        """Energies and features, and with gradients forces and stresses."""
        graphs = [self._graph(*crystal) for crystal in crystals]
        parts = [self._forward(batch, gradients) for batch in self._batches(graphs)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _graph(self, numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray) -> dict[str, Any]:
        from matscipy.neighbours import neighbour_list

        first, second, vectors = neighbour_list("ijD", pbc=[True] * 3, cell=cell, positions=positions,
                                                cutoff=self._cutoff)  # fmt: skip
        if len(first) > self.MOST_EDGES_OF_ONE:
            raise ValueError(f"{len(first)} pairs of neighbours, more than {self.MOST_EDGES_OF_ONE}: too dense")
        return {"numbers": numbers, "first": first, "second": second, "vectors": vectors,
                "volume": abs(np.linalg.det(cell)), "lonely": _lonely(numbers, first)}  # fmt: skip

    def _batches(self, graphs: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
        most = self.MOST_EDGES_ON_GPU if self._device.startswith("cuda") else self.MOST_EDGES
        batch: list[dict[str, Any]] = []
        for graph in graphs:
            if batch and sum(len(g["first"]) for g in batch) + len(graph["first"]) > most:
                yield batch
                batch = []
            batch.append(graph)
        yield batch

    def _forward(self, graphs: list[dict[str, Any]], gradients: bool) -> dict[str, np.ndarray]:
        keys, torch = self._keys, self._torch
        sizes = np.array([len(graph["numbers"]) for graph in graphs])
        data = self._data(graphs, sizes)
        kept: dict[str, Any] = {}
        with torch.set_grad_enabled(gradients):
            data = self._model._preprocess(data)
            if not gradients:
                data[keys.EDGE_VEC].requires_grad_(False)
            for name, module in self._model._modules.items():
                if name == "reduce_input_to_hidden":
                    kept["nodes"] = data[keys.NODE_FEATURE]
                if gradients or name != "force_output":
                    data = module(data)
        nodes = np.split(_array(kept["nodes"]), np.cumsum(sizes)[:-1])
        found = {
            "energy": _array(data[keys.PRED_TOTAL_ENERGY]).reshape(-1),
            "features": np.array([part.mean(axis=0) for part in nodes]),
            "lonely": np.array([graph["lonely"] for graph in graphs]),
        }
        if gradients and keys.PRED_FORCE in data:  # a batch without a single pair has none
            xx, yy, zz, xy, yz, zx = -_array(data[keys.PRED_STRESS]).T
            rows = np.array([[xx, xy, zx], [xy, yy, yz], [zx, yz, zz]])
            found |= {"forces": _array(data[keys.PRED_FORCE]), "stress": rows.transpose(2, 0, 1)}
        elif gradients:
            found |= {"forces": np.zeros((sizes.sum(), 3)), "stress": np.zeros((len(sizes), 3, 3))}
        return found

    def _data(self, graphs: list[dict[str, Any]], sizes: np.ndarray) -> dict[str, Any]:
        keys, starts = self._keys, np.concatenate([[0], np.cumsum(sizes)[:-1]])
        edges = [np.array([g["first"], g["second"]], dtype=np.int64) + start
                 for g, start in zip(graphs, starts, strict=True)]  # fmt: skip
        whole = {"dtype": self._torch.int64, "device": self._device}
        real = {"dtype": self._dtype, "device": self._device}
        numbers = self._torch.tensor(np.concatenate([g["numbers"] for g in graphs]), **whole)
        heads = {} if self._head is None else {keys.MODAL_TYPE: self._torch.full((len(sizes),), self._head, **whole)}
        return heads | {
            keys.ATOMIC_NUMBERS: numbers,
            keys.NODE_FEATURE: numbers,
            keys.EDGE_IDX: self._torch.tensor(np.concatenate(edges, axis=1), **whole),
            keys.EDGE_VEC: self._torch.tensor(np.concatenate([g["vectors"] for g in graphs]), **real),
            keys.CELL_VOLUME: self._torch.tensor([g["volume"] for g in graphs], **real),
            keys.NUM_ATOMS: self._torch.tensor(sizes, **whole),
            keys.BATCH: self._torch.tensor(np.repeat(np.arange(len(sizes)), sizes), **whole),
        }


def _lonely(numbers: np.ndarray, first: np.ndarray) -> bool:
    """Whether atoms without neighbours make the energy meaningless.

    Not where no atom of an element's crystal has one (caesium, noble gases): what the model learned of that element's
    atom alone is the energy of these crystals, which its training set held.
    """
    single = len(first) == 0 and len(np.unique(numbers)) == 1
    return not single and len(np.unique(first)) < len(numbers)


def _array(tensor: Any) -> np.ndarray:
    result: np.ndarray = tensor.detach().double().cpu().numpy()
    return result


BACKENDS: dict[str, Callable[[dict[str, Any]], Backend]] = {"ase": AseBackend, "sevennet": SevenNetBackend}


def serve(jobs: IO[bytes], answers: IO[bytes]) -> None:
    """Load what the first message asks for, then answer until the stream ends."""
    job, _ = receive(jobs)
    try:
        backend: Backend = BACKENDS[job["backend"]](job)
    except Exception as error:  # whatever an import or a constructor raises is told to the other side
        send(answers, {"error": f"{type(error).__name__}: {error}"})
        return
    send(answers, backend.about)
    while True:
        job, arrays = receive(jobs)
        began = time.thread_time()
        try:
            found = backend.compute(unpack(arrays), job["gradients"])
        except Exception as error:  # a failure is this batch's, not the worker's
            send(answers, {"error": f"{type(error).__name__}: {error}"})
        else:
            send(answers, {"processor_seconds": time.thread_time() - began}, found)


def main() -> None:
    """Entry point: standard output belongs to the messages, and what libraries print goes to standard error."""
    if sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
        del sys.path[0]  # the folder of this script holds modules of common names
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with contextlib.suppress(EOFError, BrokenPipeError):  # the parent is gone
        serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
