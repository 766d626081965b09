"""What models tell about the layers they are made of."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx

from converter.errors import ModelError
from converter.models import Model, linen_model, nnx_model, nnx_model_from_factory
from converter.paths import IntKey, format_path
from tests.models.compact import SEQUENCE, TOKENS, Compact, X


def kinds(model: Model) -> dict[str, str]:
    """The kind of each layer by its path; each path has one layer."""
    found = {format_path(layer.path): layer.kind for layer in model.layers}
    assert len(found) == len(model.layers)
    return found


def wraps(model: Model) -> dict[str, str]:
    return {format_path(layer.path): format_path(layer.wraps) for layer in model.layers if layer.wraps is not None}


def lifted(model: Model) -> set[str]:
    return set(map(format_path, model.lifted))


def stood_at(model: Model, layer: str) -> set[str]:
    """The variables of a layer, by the text of their paths below it."""
    own = {format_path(v.path) for v in model.variables}
    return {path.removeprefix(f"{layer}/") for path in own if path.startswith(f"{layer}/")}


# Linen ---------------------------------------------------------------------------------------------------------------


def test_a_layer_alone_stands_at_the_root():
    assert kinds(linen_model(nn.Dense(3), [X])) == {"": "Dense"}


def test_automatic_and_given_names():
    def body(x: Any) -> Any:
        return nn.LayerNorm()(nn.Dense(3)(nn.Dense(3, name="mid")(nn.relu(nn.Dense(3)(x)))))

    assert kinds(linen_model(Compact(body), [X])) == {
        "Dense_0": "Dense",
        "mid": "Dense",
        "Dense_1": "Dense",
        "LayerNorm_0": "LayerNorm",
    }


class Lists(nn.Module):
    def setup(self) -> None:
        self.blocks = [nn.Dense(3) for _ in range(12)]
        self.norms = {"a": nn.LayerNorm(), "b": nn.RMSNorm()}
        self.unused = nn.Dense(5)

    def __call__(self, x: Any) -> Any:
        for block in self.blocks:
            x = block(x)
        return self.norms["b"](self.norms["a"](x))


def test_lists_and_dicts_in_setup_and_no_layer_that_is_never_called():
    expected = {f"blocks_{i}": "Dense" for i in range(12)} | {"norms_a": "LayerNorm", "norms_b": "RMSNorm"}
    assert kinds(linen_model(Lists(), [X])) == expected


class DoubledCell(nn.LSTMCell):
    """The user's own name for a Flax layer."""


class OwnCell(nn.RNNCellBase):
    @nn.compact
    def __call__(self, carry: Any, x: Any) -> Any:
        carry = nn.Dense(3)(x) + carry
        return carry, carry

    @nn.nowrap
    def initialize_carry(self, rng: Any, input_shape: tuple[int, ...]) -> Any:
        return jnp.zeros((*input_shape[:-1], 3))

    @property
    def num_feature_axes(self) -> int:
        return 1


def test_derived_classes_count_as_what_they_derive_from():
    def body(x: Any) -> Any:
        return nn.RNN(OwnCell())(nn.RNN(DoubledCell(3))(x))

    found = kinds(linen_model(Compact(body), [SEQUENCE]))
    assert found["DoubledCell_0"] == "LSTMCell"
    assert "OwnCell_0" not in found
    assert found["OwnCell_0/Dense_0"] == "Dense"
    assert found["DoubledCell_0/if"] == "Dense"


def test_classes_made_by_transforms_count_as_what_they_transform():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return nn.Dense(3)(x)

    def body(x: Any) -> Any:
        x = nn.remat(nn.Dense)(3)(x)
        x = nn.jit(nn.LayerNorm)()(x)
        for _ in range(2):
            x = nn.remat(nn.jit(Block))()(x)
        return x

    assert kinds(linen_model(Compact(body), [X])) == {
        "CheckpointDense_0": "Dense",
        "JitLayerNorm_0": "LayerNorm",
        "CheckpointJitBlock_0/Dense_0": "Dense",
        "CheckpointJitBlock_1/Dense_0": "Dense",
    }


class SharesScope(nn.Module):
    def setup(self) -> None:
        self.inner = nn.Dense(3)
        nn.share_scope(self, self.inner)

    def __call__(self, x: Any) -> Any:
        return self.inner(x)


def test_a_shared_scope_is_no_level():
    def body(x: Any) -> Any:
        return SharesScope()(x)

    model = linen_model(Compact(body), [X])
    assert kinds(model) == {"SharesScope_0": "Dense"}
    assert stood_at(model, "SharesScope_0") == {"kernel", "bias"}


class SharedInSetup(nn.Module):
    def setup(self) -> None:
        self.first = nn.Dense(3)
        self.second = Compact(self.first)

    def __call__(self, x: Any) -> Any:
        return self.second(self.first(x))


def test_a_shared_layer_is_one_layer():
    assert kinds(linen_model(SharedInSetup(), [X])) == {"first": "Dense"}


def test_a_cell_in_compact_belongs_to_the_parent():
    def body(x: Any) -> Any:
        return nn.RNN(nn.OptimizedLSTMCell(3))(x)

    model = linen_model(Compact(body), [SEQUENCE])
    assert kinds(model)["OptimizedLSTMCell_0"] == "OptimizedLSTMCell"
    assert "hi/kernel" in stood_at(model, "OptimizedLSTMCell_0")


@pytest.mark.parametrize("wrapper", [nn.SpectralNorm, nn.WeightNorm])
def test_what_a_wrapper_wraps(wrapper: Any):
    name, more = wrapper.__name__, {"update_stats": False} if wrapper is nn.SpectralNorm else {}

    class InSetup(nn.Module):
        def setup(self) -> None:
            self.dense = nn.Dense(3)
            self.sn = wrapper(nn.Dense(3))

        def __call__(self, x: Any) -> Any:
            return self.sn(self.dense(x), **more)

    setup = linen_model(InSetup(), [X])
    assert kinds(setup) == {"dense": "Dense", "sn": name, "sn/layer_instance": "Dense"}
    assert wraps(setup) == {"sn": "sn/layer_instance"}

    compact = linen_model(Compact(lambda x: wrapper(nn.Dense(3))(nn.Dense(3)(x), **more)), [X])
    assert kinds(compact)[f"{name}_0"] == name
    # The layer is made before the other one, as Python evaluates it, and belongs to the parent.
    assert wraps(compact) == {f"{name}_0": "Dense_0"}
    assert lifted(compact) == lifted(setup) == set()


class Tied(nn.Module):
    tie: bool

    def setup(self) -> None:
        self.emb = nn.Embed(5, 3)
        self.other = nn.Embed(5, 3)

    def __call__(self, ids: Any) -> Any:
        x = self.emb(ids) + self.other(ids)
        return self.emb(self.emb.attend(x).argmax(-1)) if self.tie else x


def test_an_embedding_that_attends():
    def attending(model: Model) -> dict[str, bool]:
        return {format_path(layer.path): layer.attends for layer in model.layers}

    assert attending(linen_model(Tied(True), [TOKENS])) == {"emb": True, "other": False}
    assert attending(linen_model(Tied(False), [TOKENS])) == {"emb": False, "other": False}


# Lifted --------------------------------------------------------------------------------------------------------------


class Step(nn.Module):
    @nn.compact
    def __call__(self, x: Any, _: Any) -> Any:
        own = self.param("own", nn.initializers.zeros, (3,))
        return nn.BatchNorm(use_running_average=True)(nn.Dense(3)(x)) + own, None


def scanned(step: Any, length: int = 3, **axes: int) -> Any:
    return nn.scan(step, variable_axes=axes or {"params": 0}, split_rngs={"params": True}, length=length)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_variables_inside_a_scan(axis: int):
    def body(x: Any) -> Any:
        return scanned(Step, params=axis, batch_stats=0)()(nn.Dense(3)(x), None)[0]

    model = linen_model(Compact(body), [X])
    inside = {format_path(v.path) for v in model.variables if v.path[0] == "ScanStep_0"}
    assert lifted(model) == inside
    assert len(inside) == 7
    assert kinds(model) == {
        "Dense_0": "Dense",
        "ScanStep_0/Dense_0": "Dense",
        "ScanStep_0/BatchNorm_0": "BatchNorm",
    }


def test_what_a_scan_broadcasts_is_not_lifted():
    def body(x: Any) -> Any:
        block = nn.scan(
            Step, variable_axes={"batch_stats": 0}, variable_broadcast="params", split_rngs={"params": False}, length=3
        )
        return block()(x, None)[0]

    found = lifted(linen_model(Compact(body), [X]))
    assert found == {"ScanStep_0/BatchNorm_0/mean", "ScanStep_0/BatchNorm_0/var"}


def test_variables_inside_vmap_and_none_in_dense_general():
    def body(x: Any) -> Any:
        ensemble = nn.vmap(
            nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None, axis_size=3
        )
        return nn.DenseGeneral((3, 3))(ensemble(3)(x))

    model = linen_model(Compact(body), [X])
    assert lifted(model) == {"VmapDense_0/kernel", "VmapDense_0/bias"}
    assert kinds(model) == {"VmapDense_0": "Dense", "DenseGeneral_0": "DenseGeneral"}


def test_boxes_do_not_matter():
    init = nn.with_partitioning(nn.initializers.zeros, ("in", "out"))

    class Boxed(nn.Module):
        @nn.compact
        def __call__(self, x: Any, _: Any) -> Any:
            return nn.Dense(3, kernel_init=init)(x), None

    def body(x: Any) -> Any:
        block = nn.scan(
            Boxed,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return block()(nn.Dense(3, kernel_init=init)(x), None)[0]

    model = linen_model(Compact(body), [X])
    assert lifted(model) == {"ScanBoxed_0/Dense_0/kernel", "ScanBoxed_0/Dense_0/bias"}
    assert {format_path(path) for path in model.boxed} == {"ScanBoxed_0/Dense_0/kernel", "Dense_0/kernel"}


def test_setup_with_variables_is_tried_out_by_linen_without_being_recorded():
    class Inner(nn.Module):
        def setup(self) -> None:
            self.dense = nn.Dense(3)
            self.w = self.param("w", nn.initializers.zeros, (7,))

        def __call__(self, x: Any) -> Any:
            return self.dense(x) + self.w.sum()

    class Outer(nn.Module):
        def setup(self) -> None:
            self.inner = nn.remat(Inner)()
            self.w = self.param("w", nn.initializers.zeros, (3,))

        def __call__(self, x: Any) -> Any:
            return self.inner(x) + self.w

    model = linen_model(Outer(), [X])
    assert kinds(model) == {"inner/dense": "Dense"}
    assert lifted(model) == set()


def test_recording_traces_once_and_leaves_nothing_behind():
    calls = []

    def body(x: Any) -> Any:
        calls.append(x)
        return nn.Dense(3)(x)

    linen_model(Compact(body), [X])
    assert len(calls) == 1
    with pytest.raises(ModelError, match="initialising the Linen model"):
        linen_model(Compact(lambda x: x.no_such_thing), [X])
    assert not nn.module._global_interceptor_stack


# NNX -----------------------------------------------------------------------------------------------------------------


class DerivedCell(nnx.LSTMCell):
    """The user's own name for a Flax layer."""


class Mixed(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(12)])
        self.named = nnx.Dict({"a": nnx.LayerNorm(3, rngs=rngs)})
        self.rnn = nnx.RNN(DerivedCell(3, 3, rngs=rngs), rngs=rngs)
        self.stack = nnx.Sequential(nnx.Linear(3, 3, rngs=rngs), nnx.relu, nnx.Dropout(0.5, rngs=rngs))


@pytest.mark.parametrize("abstract", [True, False])
def test_the_layers_of_an_nnx_module(abstract: bool):
    model = nnx_model_from_factory(Mixed) if abstract else nnx_model(Mixed(nnx.Rngs(0)))
    found = kinds(model)
    assert {path: kind for path, kind in found.items() if not path.startswith("rnn/")} == {
        **{f"layers/{i}": "Linear" for i in range(12)},
        "named/a": "LayerNorm",
        "rnn": "RNN",
        "stack": "Sequential",
        "stack/layers/0": "Linear",
        "stack/layers/2": "Dropout",
    }
    assert found["rnn/cell"] == "LSTMCell"
    assert found["rnn/cell/if_"] == "Linear"
    items = [layer.path[1] for layer in model.layers if layer.path[:1] == ("layers",)]
    assert all(isinstance(item, IntKey) for item in items)
    assert model.lifted == frozenset()


def test_a_shared_module_stands_where_the_state_has_it():
    class Shares(nnx.Module):
        def __init__(self) -> None:
            self.z = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
            self.a = nnx.Sequential(self.z)

    model = nnx_model(Shares())
    assert kinds(model) == {"a": "Sequential", "a/layers/0": "Linear"}
    assert {v.path[:-1] for v in model.variables} == {("a", "layers", "0")}


class OwnNnxCell(nnx.RNNCellBase):
    def __init__(self) -> None:
        self.dense = nnx.Linear(3, 3, rngs=nnx.Rngs(0))


def test_the_users_own_modules_are_no_layers():
    assert kinds(nnx_model(OwnNnxCell())) == {"dense": "Linear"}


@pytest.mark.parametrize("wrapper", [nnx.SpectralNorm, nnx.WeightNorm])
@pytest.mark.parametrize("name", ["dense", "zz"])
def test_what_an_nnx_wrapper_wraps(wrapper: Any, name: str):
    class Shares(nnx.Module):
        def __init__(self) -> None:
            rngs = nnx.Rngs(0)
            setattr(self, name, nnx.Linear(3, 3, rngs=rngs))
            self.sn = wrapper(getattr(self, name), rngs=rngs)

    # Of the two places of the layer, the state has the one that comes first in the alphabet.
    place = {"dense": "dense", "zz": "sn/layer_instance"}[name]
    model = nnx_model(Shares())
    assert kinds(model) == {"sn": wrapper.__name__, place: "Linear"}
    assert wraps(model) == {"sn": place}


@pytest.mark.parametrize(
    ("kv_heads", "kind"), [(None, "MultiHeadAttention"), (2, "MultiHeadAttention"), (1, "GroupedQueryAttention")]
)
def test_fewer_heads_for_keys_are_another_kind(kv_heads: int | None, kind: str):
    more = {} if kv_heads is None else {"num_kv_heads": kv_heads}
    try:
        attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=nnx.Rngs(0), **more)
    except TypeError:
        pytest.skip("this version of Flax has no num_kv_heads")
    assert kinds(nnx_model(attention))[""] == kind
