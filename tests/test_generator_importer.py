"""Importing published checkpoints: the right numbers arrive, and nothing in a pickle is ever run."""

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from generator.array_pickle import _Reader, read_pickle
from generator.checkpoint import load_checkpoint
from generator.importer import convert_checkpoint, import_checkpoint, published_names
from generator.likelihood import log_prob
from generator.model import CrystalFormer, ModelConfig
from generator.representation.sequence import Crystals
from generator.representation.tokens import CrystalBatch, tokenize
from loop.errors import CheckpointError
from tests.crystals import SYSTEMS

SMALL = {"layers": 2, "heads": 2, "head_size": 32, "width": 16, "embedding": 6, "first_letter_hidden": 8}


class JaxArray:
    """Pickles as a JAX array does."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __reduce__(self):
        fun, args, state = self.array.__reduce__()
        return _Global("jax._src.array", "_reconstruct_array"), (fun, args, state, {"weak_type": False})


class _Global:
    """A name that need not exist here."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    def __call__(self) -> None:
        """Never called: pickle only insists on a callable."""


class Pickler(pickle._Pickler):
    """The Python pickler, taught to write names that cannot be imported."""

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, _Global):
            self.save(obj.module)
            self.save(obj.name)
            self.write(pickle.STACK_GLOBAL)
            self.memoize(obj)
        else:
            super().save(obj, save_persistent_id)


def dumps(tree) -> bytes:
    stream = io.BytesIO()
    Pickler(stream, protocol=4).dump(tree)
    return stream.getvalue()


def published_tree(model: CrystalFormer) -> dict:
    """The parameters of a model as the published code stores them."""
    ours = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    tables = {"g_embeddings": "space_groups", "w_embeddings": "letters", "a_embeddings": "elements"}
    tree = {"~": {theirs: JaxArray(ours[f"{name}.weight"]) for theirs, name in tables.items()}}
    for name, (module, weight, bias) in published_names(model.config.layers).items():
        matrix = np.ascontiguousarray(ours[f"{name}.weight"].T)
        tree[module] = {weight: JaxArray(matrix), bias: JaxArray(ours[f"{name}.bias"])}
    return tree


@pytest.fixture
def model() -> CrystalFormer:
    torch.manual_seed(0)
    model = CrystalFormer(ModelConfig.published(**SMALL)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    return model


def test_weights_and_likelihood_survive(tmp_path, model):
    path = tmp_path / "epoch_000000.pkl"
    optimiser = [_Global("optax._src.base", "EmptyState"), {"count": JaxArray(np.array(3, np.int32))}]
    path.write_bytes(dumps({"params": published_tree(model), "opt_state": tuple(optimiser)}))
    convert_checkpoint(path, tmp_path / "ours")
    loaded = load_checkpoint(tmp_path / "ours")
    assert loaded.model.config == ModelConfig.published(**SMALL)
    assert loaded.provenance["source"] == "epoch_000000.pkl"
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, loaded.model.get_parameter(name)), name
    batch = CrystalBatch.concatenate([tokenize(make()) for make in SYSTEMS.values()])
    crystals = Crystals.from_batch(batch, model.head.weight)
    before, after = (log_prob(m, crystals, definition="published").total for m in (model, loaded.model))
    assert torch.equal(before, after)


def test_sizes_come_from_shapes(tmp_path):
    config = ModelConfig.published(**(SMALL | {"heads": 16, "head_size": 64, "fourier": 3, "lattice_components": 2}))
    path = tmp_path / "c.pkl"
    path.write_bytes(dumps({"params": published_tree(CrystalFormer(config))}))
    assert import_checkpoint(path).config == config
    assert import_checkpoint(path, heads=8).sizes["head_size"] == 128


def test_byte_order_and_fortran_order():
    array = np.arange(6, dtype=">f8").reshape(2, 3)
    for given in (array, np.asfortranarray(array), array.astype("<f4")):
        np.testing.assert_array_equal(read_pickle(dumps([JaxArray(given)]))[0].value, array)


class Evil:
    def __init__(self, function, *args) -> None:
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda flag: Evil(os.system, f"touch {flag}"), "posix.system"),
        (lambda flag: Evil(eval, f"open({str(flag)!r}, 'w')"), "builtins.eval"),
        (lambda flag: Evil(getattr, Path(flag), "touch"), "builtins.getattr"),
        (lambda flag: Evil(np.load, str(flag)), "numpy.load"),
        (lambda flag: Evil(np.fromfile, str(flag)), "fromfile"),
        (lambda flag: Evil(pickle.loads, b"cposix\nsystem\n."), "pickle.loads"),
        (lambda flag: np.float64(1.0), "scalar"),
    ],
)
def test_no_other_name_is_resolved(tmp_path, make, name):
    flag, path = tmp_path / "flag", tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps({"params": {"linear": {"w": make(flag)}}}))
    with pytest.raises(CheckpointError, match="it was not run") as error:
        import_checkpoint(path)
    assert name in str(error.value)
    assert not flag.exists()


def test_protocol_0_names_are_refused_too():
    with pytest.raises(CheckpointError, match=r"posix\.system"):
        read_pickle(b"cposix\nsystem\n(S'true'\ntR.")


def ascii_global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


@pytest.mark.parametrize(("module", "name"), _Reader.allowed)
def test_stand_ins_cannot_be_bent(module, name):
    """A pickle that sets an attribute on a stand-in itself (BUILD with slot state) is refused."""
    with pytest.raises(CheckpointError):
        read_pickle(b"\x80\x04" + ascii_global(module, name) + b"N}X\x04\x00\x00\x00bentK\x01s\x86b.")
    assert not hasattr(_Reader.allowed[module, name], "bent")


def test_dotted_names_and_object_arrays_are_refused():
    with pytest.raises(CheckpointError, match=r"numpy\.ndarray\.__init__"):
        read_pickle(b"\x80\x04\x8c\x05numpy\x94\x8c\x10ndarray.__init__\x94\x93.")
    with pytest.raises(CheckpointError, match="arrays of type 'O8'"):
        read_pickle(pickle.dumps(np.array([{}])))


def test_an_array_cannot_claim_more_than_it_holds():
    """Four bytes that say they are nine numbers."""
    empty = (
        ascii_global("numpy._core.multiarray", "_reconstruct")
        + ascii_global("numpy", "ndarray")
        + b"K\x00\x85C\x01b\x87R"
    )
    number = ascii_global("numpy", "dtype") + b"X\x02\x00\x00\x00f4\x89\x88\x87R"
    with pytest.raises(CheckpointError, match="claims shape"):
        read_pickle(b"\x80\x04" + empty + b"(K\x01K\x09\x85" + number + b"\x89C\x04abcdtb.")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x04", pickle.dumps([1, 2]), pickle.dumps({"params": 3})])
def test_damaged_files_are_one_clear_error(tmp_path, content):
    path = tmp_path / "c.pkl"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"c\.pkl"):
        import_checkpoint(path)
    with pytest.raises(CheckpointError, match="No such file"):
        import_checkpoint(tmp_path / "absent.pkl")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree.pop("linear_3"), "linear_3/w is missing"),
        (lambda tree: tree["~"].update(p_embeddings=JaxArray(np.zeros((105, 16), np.float32))), "p_embeddings"),
        (lambda tree: tree["linear"].update(b=JaxArray(np.full(8, np.nan, np.float32))), "not finite"),
        (lambda tree: tree["linear"].update(b="text"), "array of floats"),
        (lambda tree: tree["linear"].update(b=JaxArray(np.zeros(5, np.float32))), "does not fit"),
        (lambda tree: tree.pop("multi_head_attention/query"), "missing"),
    ],
)
def test_other_networks_are_refused(tmp_path, model, change, message):
    tree = published_tree(model)
    change(tree)
    path = tmp_path / "c.pkl"
    path.write_bytes(dumps({"params": tree}))
    with pytest.raises(CheckpointError, match=message):
        convert_checkpoint(path, tmp_path / "ours")
