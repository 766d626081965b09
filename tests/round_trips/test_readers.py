"""Every kind of output, read by all readers of the libraries themselves, and run by the models it is for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.flax
import safetensors.numpy
from flax import linen as nn
from flax import nnx, serialization
from flax.training import checkpoints
from flax.traverse_util import unflatten_dict

from converter.errors import UnsupportedCheckpoint
from fixtures import make, trees
from fixtures.cards import describe
from fixtures.models import OPTIMIZERS, PAIRS

from . import support
from .support import Leaves

try:
    from orbax.checkpoint import v1
except ImportError:  # where it has not been released yet
    from orbax.checkpoint.experimental import v1

# The readers ---------------------------------------------------------------------------------------------------------


def abstract(path: Path) -> Any:
    """What a reader that wants a target is given: the structure of the checkpoint, with arrays on this machine."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def struct(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        return np.zeros_like(leaf) if isinstance(leaf, np.ndarray) else leaf

    with ocp.PyTreeCheckpointer() as reader:
        return jax.tree.map(struct, reader.restore(path))


def standard(path: Path) -> Any:
    with ocp.StandardCheckpointer() as reader:
        return reader.restore(path)


def standard_with_target(path: Path) -> Any:
    with ocp.StandardCheckpointer() as reader:
        return reader.restore(path, abstract(path))


def pytree(path: Path) -> Any:
    with ocp.PyTreeCheckpointer() as reader:
        return reader.restore(path)


def v1_load(path: Path) -> Any:
    return v1.load(path)


def v1_load_with_target(path: Path) -> Any:
    return v1.load(path, abstract(path))


def flax_restore_checkpoint(path: Path) -> Any:
    return checkpoints.restore_checkpoint(path, target=None)


def msgpack_restore(path: Path) -> Any:
    return serialization.msgpack_restore(path.read_bytes())


def from_bytes(path: Path) -> Any:
    return serialization.from_bytes(None, path.read_bytes())


def from_bytes_with_target(path: Path) -> Any:
    held = msgpack_restore(path)
    target = jax.tree.map(lambda leaf: np.zeros_like(leaf) if isinstance(leaf, np.ndarray) else leaf, held)
    return serialization.from_bytes(target, path.read_bytes())


READERS: Mapping[str, tuple[Callable[[Path], Any], ...]] = {
    "orbax": (standard, standard_with_target, pytree, v1_load, v1_load_with_target, flax_restore_checkpoint),
    "msgpack": (msgpack_restore, from_bytes, from_bytes_with_target, flax_restore_checkpoint),
}


def numpy_load_file(path: Path) -> Any:
    return unflatten_dict(safetensors.numpy.load_file(path), sep=".")


def flax_load_file(path: Path) -> Any:
    return unflatten_dict(safetensors.flax.load_file(path), sep=".")


ALL_READERS = {**READERS, "safetensors": (numpy_load_file, flax_load_file)}

# The outputs ---------------------------------------------------------------------------------------------------------


def card(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((make.CHECKPOINTS / name / "card.json").read_text())
    return found


def to_nnx(name: str, suffix: str, **where: Any) -> Leaves:
    return support.linen_to_nnx(support.flat(card(name)["leaves"]), card(name)["dialect"], suffix=suffix, **where)


def to_linen(name: str, **where: Any) -> Leaves:
    leaves = support.flat(card(name)["leaves"])
    return support.nnx_to_linen(leaves, collection=support.collection_by_name, **where)


TRAIN_STATE, TRAINED = "linen_train_state_adamw_schedule_mlp_standard", "nnx_mlp_model_optimizer_standard"
BUNDLED = {"model": "model/", "optimizer": "optimizer/"}
ADAMW = {"optimizer": OPTIMIZERS["adamw_schedule"]}

OUTPUTS: Mapping[str, tuple[str, str, dict[str, Any], Callable[[], Leaves]]] = {
    "variables": ("nnx_encoder_v1", "linen", {}, lambda: to_linen("nnx_encoder_v1")),
    "variables with a cache": ("nnx_cache_standard", "linen", {}, lambda: to_linen("nnx_cache_standard")),
    "params": (
        "nnx_lstm_standard",
        "linen",
        {"linen_style": "params"},
        lambda: {
            path.removeprefix("params/"): leaf
            for path, leaf in to_linen("nnx_lstm_standard", names=support.LSTM_TO_LINEN).items()
        },
    ),
    "train state": (TRAINED, "linen", ADAMW, lambda: to_linen(TRAINED, **BUNDLED)),
    "train state of an optimizer alone": (
        "nnx_optimizer_multi_transform_standard",
        "linen",
        {},
        lambda: to_linen("nnx_optimizer_multi_transform_standard", model=None),
    ),
    "state": ("linen_frozen_standard", "nnx", {}, lambda: to_nnx("linen_frozen_standard", "/value")),
    "pure dict": (
        "linen_frozen_msgpack",
        "nnx",
        {"nnx_style": "pure"},
        lambda: to_nnx("linen_frozen_msgpack", ""),
    ),
    "model and optimizer": (TRAIN_STATE, "nnx", {}, lambda: to_nnx(TRAIN_STATE, "/value")),
    "tuple": (
        TRAIN_STATE,
        "nnx",
        {"nnx_bundle": "tuple"},
        lambda: to_nnx(TRAIN_STATE, "/value", model="0/", optimizer="1/"),
    ),
    "ModelAndOptimizer": (
        TRAIN_STATE,
        "nnx",
        {"nnx_bundle": "model-and-optimizer"},
        lambda: to_nnx(TRAIN_STATE, "/value", optimizer=""),
    ),
    "keys": ("linen_keys_standard", "nnx", {}, lambda: to_nnx("linen_keys_standard", "/value")),
}
"""Source, framework, options, and what the output holds; states and keys go to Orbax only."""

ORBAX_ONLY = ("keys",)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Makes an output when it is first asked for."""
    directory = tmp_path_factory.mktemp("outputs")

    def path_of(name: str, format: str) -> Path:
        source, framework, options, _ = OUTPUTS[name]
        path = directory / f"{name.replace(' ', '_')}.{format}"
        if not path.exists():
            root = make.CHECKPOINTS / source / card(source)["root"]
            support.convert(root, path, framework, to_format=format, **options)
        return path

    return path_of


def _combinations() -> Iterator[tuple[str, str, Callable[[Path], Any]]]:
    for name in OUTPUTS:
        for format, readers in ALL_READERS.items():
            if name not in ORBAX_ONLY or format == "orbax":
                for reader in readers:
                    yield name, format, reader


@pytest.mark.parametrize(
    ("name", "format", "reader"), list(_combinations()), ids=lambda part: getattr(part, "__name__", part)
)
def test_every_reader_reads_every_output(
    name: str, format: str, reader: Callable[[Path], Any], output: Callable[[str, str], Path]
) -> None:
    expected = OUTPUTS[name][3]()
    if format != "orbax":
        expected = {path.removesuffix("/value"): leaf for path, leaf in expected.items()}
    support.assert_equal(support.flat(describe(reader(output(name, format)))), expected)


# Into models ---------------------------------------------------------------------------------------------------------


def linen_outputs(model: str, variables: Any) -> Any:
    pair = PAIRS[model]
    outputs = pair.linen().apply(variables, *pair.inputs(), mutable=list(pair.mutable))
    return outputs[0] if isinstance(outputs, tuple) else outputs


MODELS = {"encoder": "linen_encoder_v1", "transformer_list": "linen_transformer_list_standard"}
"""Models with batch statistics, a list (``blocks/0``) and dropout, and checkpoints of them."""


@pytest.mark.parametrize("model", MODELS)
def test_a_state_fits_the_abstract_model(model: str, tmp_path: Path) -> None:
    """As the guides of Flax restore: into ``nnx.state(nnx.eval_shape(…))``. Random state is that of a new model."""
    source = make.CHECKPOINTS / MODELS[model] / card(MODELS[model])["checkpoint"]
    report = support.convert(source, tmp_path / "state", "nnx", nnx_model=PAIRS[model].nnx)
    graph, target = nnx.split(nnx.eval_shape(PAIRS[model].nnx))
    with ocp.StandardCheckpointer() as reader:
        state = reader.restore(tmp_path / "state", target)
    module = nnx.merge(graph, state)
    expected = linen_outputs(model, support.restored(source))
    np.testing.assert_array_equal(module(*PAIRS[model].inputs()), expected)
    own, fresh = nnx.state(module, nnx.RngState), nnx.state(PAIRS[model].nnx(), nnx.RngState)
    assert describe(own) == describe(fresh)
    filled = {path for path in support.flat(describe(fresh)) if path}
    assert filled
    assert {"/".join(step.target) for step in report.plan.filled} == filled
    module(*PAIRS[model].inputs(), train=True)  # draws dropout masks


@pytest.mark.parametrize(
    ("model", "format"),
    [("encoder", "msgpack"), ("transformer_list", "orbax"), ("transformer_list", "safetensors")],
)
def test_a_pure_dict_fills_a_model(model: str, format: str, tmp_path: Path) -> None:
    """``nnx.replace_by_pure_dict``, after ``nnx.restore_int_paths`` made the keys of lists numbers again."""
    source = make.CHECKPOINTS / MODELS[model] / card(MODELS[model])["checkpoint"]
    options = {"to_format": format, "nnx_style": "pure", "nnx_model": PAIRS[model].nnx()}
    report = support.convert(source, tmp_path / "pure", "nnx", **options)
    assert ("random state is not written: the NNX model keeps its own" in report.plan.notes) == (format != "orbax")
    held = flax_load_file(tmp_path / "pure") if format == "safetensors" else support.restored(tmp_path / "pure")
    pure = nnx.restore_int_paths(held)
    module = PAIRS[model].nnx()
    before = describe(nnx.state(module, nnx.RngState))
    state = nnx.state(module)
    nnx.replace_by_pure_dict(state, pure)
    nnx.update(module, state)
    expected = linen_outputs(model, support.restored(source))
    np.testing.assert_array_equal(module(*PAIRS[model].inputs()), expected)
    assert describe(nnx.state(module, nnx.RngState)) == before


@pytest.mark.parametrize(
    ("model", "source", "format"),
    [
        ("encoder", "nnx_encoder_v1", "orbax"),
        ("encoder", "nnx_encoder_v1", "msgpack"),
        ("transformer_list", "nnx_transformer_list_standard", "msgpack"),
        ("lstm", "nnx_lstm_standard", "orbax"),
        ("decoder", "nnx_cache_standard", "orbax"),
        ("encoder", "nnx_encoder_v1", "safetensors"),
        ("lstm", "nnx_lstm_standard", "safetensors"),
    ],
)
def test_linen_variables_fit_the_model(model: str, source: str, format: str, tmp_path: Path) -> None:
    """Restored into the very structure that ``module.init`` makes, and applied."""
    pair = PAIRS[model]
    root, path = make.CHECKPOINTS / source / "checkpoint", tmp_path / "variables"
    support.convert(root, path, "linen", to_format=format, nnx_model=pair.nnx())
    fresh = jax.eval_shape(pair.linen().init, jax.random.key(4), *pair.init_arguments())
    if format == "msgpack":
        variables = serialization.from_bytes(fresh, path.read_bytes())
    elif format == "safetensors":
        variables = flax_load_file(path)
    else:
        with ocp.StandardCheckpointer() as reader:
            variables = reader.restore(path, fresh)
    assert jax.tree.structure(variables) == jax.tree.structure(fresh)
    expected = trees.nnx_model(model)(*pair.inputs())
    np.testing.assert_array_equal(linen_outputs(model, variables), expected)


@pytest.mark.parametrize("model", ["mlp_partitioned", "mlp_logical"])
def test_boxed_variables_fit_the_model(model: str, tmp_path: Path) -> None:
    """The boxes of the Linen model are there again, so that its own variables are the target."""
    pair = PAIRS[model]
    root = make.CHECKPOINTS / "nnx_mlp_standard" / "checkpoint"
    support.convert(root, tmp_path / "variables", "linen", linen_model=pair.linen, inputs=pair.inputs)
    fresh = pair.linen().init(jax.random.key(4), *pair.inputs())
    with ocp.StandardCheckpointer() as reader:
        variables = reader.restore(tmp_path / "variables", fresh)
    assert jax.tree.structure(variables) == jax.tree.structure(fresh)
    assert isinstance(variables["params"]["up"]["kernel"], nn.Partitioned)
    np.testing.assert_array_equal(linen_outputs(model, variables), trees.nnx_model("mlp")(*pair.inputs()))


# Every kind of leaf --------------------------------------------------------------------------------------------------

DTYPES = (
    *("bool", "int2", "int4", "int8", "int16", "int32", "uint8", "uint16", "uint32"),
    *("float16", "bfloat16", "float32", "complex64", "float4_e2m1fn", "float8_e3m4", "float8_e4m3b11fnuz"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
)
"""What JAX makes arrays of and Orbax can store."""

MSGPACK_ONLY = ("uint2", "uint4", "float8_e4m3")
"""What TensorStore has no type for."""


def array_of(dtype: str) -> jax.Array:
    """Four numbers that every type holds, and in the complex case imaginary ones; not their own reverse."""
    numbers = np.array([1.0, 0.0, 1.0, 1.0], np.float32)
    if dtype == "complex64":
        numbers = numbers + np.array([0, 1, 2, 3]) * 1j
    return jnp.asarray(numbers.reshape(2, 2).astype(numpy_dtype(dtype)))


def numpy_dtype(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name, name))


def every_leaf() -> dict[str, Any]:
    """Linen variables with every dtype, as a matrix and as a 0-d array, odd bits, and every other kind of leaf."""
    odd = np.frombuffer(np.array([0x7FC00001, 0xFF800000, 0x80000000, 0x00000001], np.uint32).tobytes(), np.float32)
    return {
        "params": {dtype: {"matrix": array_of(dtype), "number": array_of(dtype)[0, 1]} for dtype in DTYPES},
        "odd": {"bits": odd, "wide_float": np.array([np.pi, -0.0]), "wide_int": np.array([2**40, -1])},
        "python": {"int": -3, "big": 2**40, "float": 0.1, "nan": float("nan"), "yes": True, "no": False, "text": "ß\n"},
        "nothing": {"none": None, "dict": {}, "list": []},
        "pairs": {"list": [jnp.arange(2), jnp.arange(3)], "tuple": (jnp.ones(1), 2)},
    }


@pytest.fixture(scope="module")
def odd_outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same leaves in NNX, from either format in either format."""
    directory = tmp_path_factory.mktemp("leaves")
    with ocp.PyTreeCheckpointer() as saver:
        saver.save(directory / "from_orbax", every_leaf())
    (directory / "from_msgpack").write_bytes(serialization.to_bytes(every_leaf()))
    outputs = {}
    for source in ("from_orbax", "from_msgpack"):
        for format in READERS:
            outputs[f"{source} to {format}"] = directory / f"{source}_{format}"
            report = support.convert(directory / source, outputs[f"{source} to {format}"], "nnx", to_format=format)
            assert [entry.source[0] for entry in report.plan.ignored] == ["nothing"] * 3
    return outputs


@pytest.mark.parametrize("source", ["from_orbax", "from_msgpack"])
@pytest.mark.parametrize(
    ("format", "reader"),
    # StandardCheckpointer accepts no text in a target, nor in a tree to save.
    [(format, reader) for format, readers in READERS.items() for reader in readers if reader != standard_with_target],
    ids=lambda part: getattr(part, "__name__", part),
)
def test_every_kind_of_leaf_arrives(
    source: str, format: str, reader: Callable[[Path], Any], odd_outputs: dict[str, Path]
) -> None:
    path = odd_outputs[f"{source} to {format}"]
    suffix = "/value" if format == "orbax" else ""
    expected = support.linen_to_nnx(support.flat(describe(every_leaf())), "linen_variables", suffix=suffix)
    found = support.flat(describe(reader(path)))
    nan = f"nan{suffix}"
    assert str(found.pop(nan)) == str(expected.pop(nan))
    support.assert_equal(found, expected)


@pytest.mark.parametrize("dtype", MSGPACK_ONLY)
def test_what_tensorstore_cannot_store_is_refused(dtype: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(serialization.to_bytes({"params": {"x": {"kernel": array_of(dtype)}}}))
    with pytest.raises(UnsupportedCheckpoint, match=f"kernel.*{dtype}.*TensorStore cannot store"):
        support.convert(source, tmp_path / "orbax", "nnx", to_format="orbax")
    support.convert(source, tmp_path / "msgpack", "nnx", to_format="msgpack")
    expected = support.flat(describe({"x": {"kernel": array_of(dtype)}}))
    support.assert_equal(support.read(tmp_path / "msgpack"), expected)


@pytest.mark.parametrize("reader", READERS["orbax"], ids=lambda reader: reader.__name__)
def test_typed_keys_stay_typed(reader: Callable[[Path], Any], tmp_path: Path) -> None:
    """Through both frameworks, scalar and array, of two implementations; and they draw the same numbers."""
    root = make.CHECKPOINTS / "linen_keys_standard" / "checkpoint"
    support.convert(root, tmp_path / "nnx", "nnx")
    collections = {"kernel": "params", "bias": "params", "*": "rngs"}
    support.convert(tmp_path / "nnx", tmp_path / "linen", "linen", collections=collections)
    found = reader(tmp_path / "linen")["rngs"]
    for name, key in trees.prng_keys()["rngs"].items():
        assert found[name].dtype == key.dtype
        assert found[name].shape == key.shape
        if name in ("key", "rbg"):
            np.testing.assert_array_equal(jax.random.bits(found[name], (2,)), jax.random.bits(key, (2,)))
