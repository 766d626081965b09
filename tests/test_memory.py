"""Live objects of both frameworks, translated without copying, checked leaf by leaf, and run."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.core import FrozenDict, freeze

from converter import linen_to_nnx, nnx_to_linen, verify_outputs
from converter.errors import ConversionRefused, ModelError, UsageError

X = jnp.sin(jnp.arange(8.0)).reshape(2, 4)
SEQUENCE = jnp.sin(jnp.arange(24.0)).reshape(2, 3, 4)


def rngs() -> nnx.Rngs:
    return nnx.Rngs(0, dropout=1)


def flat(tree: Any) -> dict[str, Any]:
    """The leaves of nested dicts by path."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join(str(key.key) for key in keys): leaf for keys, leaf in leaves}


def values(state: Any) -> dict[str, Any]:
    """The arrays of an ``nnx.State`` by path."""
    pairs = nnx.to_flat_state(state)
    return {"/".join(map(str, path)): v.get_value() if isinstance(v, nnx.Variable) else v for path, v in pairs}


def assert_same_objects(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    for path, value in wanted.items():
        assert found[path] is value, path


def refused(call: Any, *args: Any, **kwargs: Any) -> str:
    """The text of the refusal, which names every leaf at fault."""
    with pytest.raises(ConversionRefused) as caught:
        call(*args, **kwargs)
    return str(caught.value)


# Pairs of modules ----------------------------------------------------------------------------------------------------


class LinenModel(nn.Module):
    """What most models are made of: normalisation, dropout, a list of layers, attention."""

    def setup(self) -> None:
        self.norm = nn.BatchNorm()
        self.layers = [nn.Dense(4), nn.Dense(4)]
        self.attention = nn.MultiHeadDotProductAttention(num_heads=2)
        self.dropout = nn.Dropout(0.5)

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = self.norm(x, use_running_average=not train)
        for layer in self.layers:
            x = nn.relu(layer(x))
        return self.dropout(self.attention(x), deterministic=not train)


class NnxModel(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)])
        self.attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.norm(x)
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.dropout(self.attention(x))


def trained(seed: int = 0) -> NnxModel:
    """A model whose statistics, biases and scales are not what they were made with."""
    model = NnxModel(nnx.Rngs(seed, dropout=1))
    model.train()
    model(SEQUENCE + 1)
    model.eval()
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        shift = 0.01 * (1 + sum(map(ord, "".join(map(str, path)))) % 7)
        nnx.update(model, nnx.from_flat_state([(path, variable.replace(variable.get_value() + shift))]))
    return model


def test_a_whole_model_to_linen():
    model = trained()
    variables = nnx_to_linen(model)
    assert sorted(variables) == ["batch_stats", "params"]
    assert sorted(variables["params"]) == ["attention", "layers_0", "layers_1", "norm"]
    assert variables["params"]["layers_1"]["kernel"] is model.layers[1].kernel.get_value()
    assert variables["batch_stats"]["norm"]["mean"] is model.norm.mean.get_value()
    assert len(flat(variables)) == 16
    assert all(
        type(node) is dict for node in (variables, variables["params"], variables["params"]["attention"]["query"])
    )
    report = verify_outputs(LinenModel(), variables, model, (SEQUENCE,))
    assert report.ok


def test_a_whole_model_to_nnx():
    variables = LinenModel().init(jax.random.key(0), SEQUENCE)
    model = NnxModel(rngs())
    state = linen_to_nnx(variables, model)
    assert isinstance(state, nnx.State)
    assert len(values(state)) == 16
    assert values(state)["layers/0/kernel"] is variables["params"]["layers_0"]["kernel"]
    assert values(state)["norm/var"] is variables["batch_stats"]["norm"]["var"]
    keys = jax.random.key_data(model.dropout.rngs.key.get_value())
    nnx.update(model, state)
    np.testing.assert_array_equal(jax.random.key_data(model.dropout.rngs.key.get_value()), keys)
    model.eval()
    assert verify_outputs(LinenModel(), variables, model, (SEQUENCE,)).ok


def test_there_and_back_are_the_very_same_objects():
    model = trained()
    variables = nnx_to_linen(model)
    state = linen_to_nnx(variables, NnxModel(nnx.Rngs(5)))
    assert_same_objects(values(state), values(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))))
    again = NnxModel(nnx.Rngs(5))
    nnx.update(again, state)
    assert_same_objects(flat(nnx_to_linen(again)), flat(variables))


def test_the_source_is_not_changed():
    model = trained()
    before = values(nnx.state(model))
    variables = nnx_to_linen(model)
    variables["params"]["layers_0"]["kernel"] = None
    assert_same_objects(values(nnx.state(model)), before)
    given = LinenModel().init(jax.random.key(0), SEQUENCE)
    leaves = flat(given)
    linen_to_nnx(given, model)
    assert_same_objects(flat(given), leaves)


def test_the_linen_model_may_be_given_too():
    model = trained()
    checked = nnx_to_linen(model, linen_module=LinenModel(), inputs=[jax.ShapeDtypeStruct((2, 3, 4), jnp.float32)])
    assert_same_objects(flat(checked), flat(nnx_to_linen(model)))
    state = linen_to_nnx(checked, model, linen_module=LinenModel(), inputs=["float32[2,3,4]"])
    assert_same_objects(values(state), values(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))))


# Single layers -------------------------------------------------------------------------------------------------------


LAYERS: dict[str, Any] = {
    "Linear": lambda: (nnx.Linear(4, 3, rngs=rngs()), nn.Dense(3), X),
    "Linear without bias": lambda: (nnx.Linear(4, 3, use_bias=False, rngs=rngs()), nn.Dense(3, use_bias=False), X),
    "Linear in bfloat16": lambda: (
        nnx.Linear(4, 3, param_dtype=jnp.bfloat16, rngs=rngs()),
        nn.Dense(3, param_dtype=jnp.bfloat16),
        X.astype(jnp.bfloat16),
    ),
    "LinearGeneral": lambda: (nnx.LinearGeneral((4,), (2, 3), rngs=rngs()), nn.DenseGeneral((2, 3)), X),
    "Conv": lambda: (nnx.Conv(4, 2, (2,), rngs=rngs()), nn.Conv(2, (2,)), SEQUENCE),
    "Embed": lambda: (nnx.Embed(5, 3, rngs=rngs()), nn.Embed(5, 3), jnp.array([[0, 4, 2]])),
    "LayerNorm": lambda: (nnx.LayerNorm(4, rngs=rngs()), nn.LayerNorm(), X),
    "BatchNorm": lambda: (
        nnx.BatchNorm(4, use_running_average=True, rngs=rngs()),
        nn.BatchNorm(use_running_average=True),
        X,
    ),
    "PReLU": lambda: (nnx.PReLU(), nn.PReLU(), X),
    "attention": lambda: (
        nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs()),
        nn.MultiHeadDotProductAttention(2),
        SEQUENCE,
    ),
    "Sequential": lambda: (
        nnx.Sequential(nnx.Linear(4, 3, rngs=rngs()), nnx.relu, nnx.Linear(3, 2, rngs=rngs())),
        nn.Sequential([nn.Dense(3), nn.relu, nn.Dense(2)]),
        X,
    ),
    "RNN of LSTM cells": lambda: (
        nnx.RNN(nnx.LSTMCell(4, 3, rngs=rngs()), rngs=rngs()),
        nn.RNN(nn.LSTMCell(3)),
        SEQUENCE,
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_there_run_equal_and_come_back(name: str):
    layer, linen, x = LAYERS[name]()
    variables = nnx_to_linen(layer, linen_module=linen, inputs=[x])
    assert verify_outputs(linen, variables, layer, (x,)).ok
    wanted = jax.eval_shape(linen.init, jax.random.key(0), x)
    found = {path: (leaf.shape, leaf.dtype) for path, leaf in flat(variables).items()}
    assert found == {path: (leaf.shape, leaf.dtype) for path, leaf in flat(wanted).items()}
    state = linen_to_nnx(variables, layer)
    assert_same_objects(values(state), values(nnx.state(layer, nnx.Not(nnx.RngState))))


@pytest.mark.parametrize("name", LAYERS)
def test_freshly_initialised_linen_layers_run_equal_in_nnx(name: str):
    layer, linen, x = LAYERS[name]()
    variables = linen.init(jax.random.key(3), x)
    nnx.update(layer, linen_to_nnx(variables, layer))
    assert verify_outputs(linen, variables, layer, (x,)).ok


def test_the_gate_of_lstm_cells_is_renamed():
    cell = nnx.LSTMCell(4, 3, rngs=rngs())
    variables = nnx_to_linen(cell)
    assert variables["params"]["if"]["kernel"] is cell.if_.kernel.get_value()
    assert "if_" not in variables["params"]
    assert values(linen_to_nnx(variables, cell))["if_/kernel"] is cell.if_.kernel.get_value()


def test_the_cache_of_attention_is_a_collection():
    layer = nnx.MultiHeadAttention(2, 4, decode=True, rngs=rngs())
    layer.init_cache((2, 3, 4))
    layer(SEQUENCE[:, :1])
    variables = nnx_to_linen(layer)
    assert sorted(variables) == ["cache", "params"]
    assert int(variables["cache"]["cache_index"]) == 1
    linen = nn.MultiHeadDotProductAttention(2, decode=True)
    report = verify_outputs(linen, variables, layer, (SEQUENCE[:, 1:2],), linen_kwargs={"mutable": ["cache"]})
    assert report.ok
    found = values(linen_to_nnx(variables, layer))
    assert_same_objects({name: found[name] for name in variables["cache"]}, variables["cache"])


def test_dropout_has_nothing_to_translate():
    assert nnx_to_linen(nnx.Dropout(0.5, rngs=rngs())) == {}
    assert values(linen_to_nnx({}, nnx.Dropout(0.5, rngs=rngs()))) == {}
    assert values(linen_to_nnx({"params": {}}, nnx.Dropout(0.5, rngs=rngs()))) == {}


def test_items_of_dicts_and_lists_have_joined_names():
    linear = nnx.Linear(1, 1, use_bias=False, rngs=rngs())

    class Net(nnx.Module):
        def __init__(self) -> None:
            self.d = nnx.Dict(a=nnx.clone(linear), b=nnx.List([nnx.clone(linear), nnx.clone(linear)]))
            self.layers = nnx.List([nnx.clone(linear) for _ in range(11)])
            self.layer_1 = nnx.clone(linear)

    net = Net()
    variables = nnx_to_linen(net)
    names = {"d_a", "d_b_0", "d_b_1", "layer_1", *(f"layers_{n}" for n in range(11))}
    assert set(variables["params"]) == names
    for n in range(11):
        assert variables["params"][f"layers_{n}"]["kernel"] is net.layers[n].kernel.get_value()
    assert_same_objects(values(linen_to_nnx(variables, net)), values(nnx.state(net)))


def test_an_item_and_an_attribute_do_not_become_one():
    class Net(nnx.Module):
        def __init__(self) -> None:
            self.layers = nnx.List([nnx.Linear(1, 1, use_bias=False, rngs=rngs())])
            self.layers_0 = nnx.Linear(1, 1, use_bias=False, rngs=nnx.Rngs(7))

    text = refused(nnx_to_linen, Net())
    assert "layers_0/kernel" in text
    assert "layers/0/kernel" in text


# Variables of all kinds ----------------------------------------------------------------------------------------------


class Count(nnx.Variable):
    """A Variable that has no collection: its class name is one."""


class Custom(nnx.Module):
    """A parameter with a name of its own, one that is called like statistics, and a counter."""

    def __init__(self) -> None:
        self.pos_embed = nnx.Param(jnp.ones((2, 3)))
        self.mean = nnx.Param(jnp.ones(3))
        self.var = nnx.Param(jnp.ones(3))
        self.scale = nnx.BatchStat(jnp.ones(3))
        self.count = Count(jnp.array(4))


def test_types_tell_the_collections_of_a_module():
    module = Custom()
    assert_same_objects(
        flat(nnx_to_linen(module)),
        {
            "params/pos_embed": module.pos_embed.get_value(),
            "params/mean": module.mean.get_value(),
            "params/var": module.var.get_value(),
            "batch_stats/scale": module.scale.get_value(),
            "Count/count": module.count.get_value(),
        },
    )


def test_types_tell_the_collections_of_a_state():
    """Names are asked only where there is no type."""
    module = Custom()
    assert_same_objects(flat(nnx_to_linen(nnx.state(module))), flat(nnx_to_linen(module)))


def test_types_come_back():
    module = Custom()
    state = linen_to_nnx(nnx_to_linen(module), Custom())
    assert {".".join(map(str, path)): type(v) for path, v in nnx.to_flat_state(state)} == {
        "pos_embed": nnx.Param,
        "mean": nnx.Param,
        "var": nnx.Param,
        "scale": nnx.BatchStat,
        "count": Count,
    }
    assert_same_objects(values(state), values(nnx.state(module)))


class LinenCustom(nn.Module):
    """The same with a collection that has the name of the class."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        pos_embed = self.param("pos_embed", nn.initializers.ones, (2, 3))
        mean, var = (self.param(name, nn.initializers.ones, (3,)) for name in ("mean", "var"))
        scale = self.variable("batch_stats", "scale", jnp.ones, 3)
        count = self.variable("Count", "count", lambda: jnp.array(0))
        return x @ pos_embed * scale.value + mean + var + count.value


def test_collections_of_ones_own_fit_the_class_of_that_name():
    variables = nnx_to_linen(Custom(), linen_module=LinenCustom(), inputs=["float32[1,2]"])
    assert int(variables["Count"]["count"]) == 4
    LinenCustom().apply(variables, jnp.ones((1, 2)))


class Lora(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.base_module = nnx.Linear(4, 3, rngs=rngs)
        self.lora_a = nnx.LoRAParam(jnp.ones((4, 2)))
        self.lora_b = nnx.LoRAParam(jnp.ones((2, 3)))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.base_module(x) + x @ self.lora_a[...] @ self.lora_b[...]


class LinenLora(nn.Module):
    """LoRA as it is written in Linen: plain parameters."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        a = self.param("lora_a", nn.initializers.normal(), (4, 2))
        b = self.param("lora_b", nn.initializers.normal(), (2, 3))
        return nn.Dense(3, name="base_module")(x) + x @ a @ b


def test_lora_has_a_collection_of_its_own():
    module = Lora(rngs())
    variables = nnx_to_linen(module)
    assert set(variables) == {"params", "LoRAParam"}
    assert set(variables["LoRAParam"]) == {"lora_a", "lora_b"}
    state = linen_to_nnx(variables, module)
    assert type(state["lora_a"]) is nnx.LoRAParam
    assert_same_objects(values(state), values(nnx.state(module)))


def test_lora_parameters_of_linen_become_lora_parameters():
    variables = LinenLora().init(jax.random.key(0), X)
    module = Lora(rngs())
    state = linen_to_nnx(variables, module)
    assert type(state["lora_b"]) is nnx.LoRAParam
    nnx.update(module, state)
    assert verify_outputs(LinenLora(), variables, module, (X,)).ok


def test_lora_parameters_become_parameters_of_the_linen_model():
    module = Lora(rngs())
    variables = nnx_to_linen(module, linen_module=LinenLora(), inputs=[X])
    assert set(variables) == {"params"}
    assert verify_outputs(LinenLora(), variables, module, (X,)).ok


class Nested(nnx.Module):
    """One Variable that holds several arrays."""

    def __init__(self) -> None:
        self.table = nnx.Param({"u": jnp.ones(2), "v": jnp.zeros((2, 3))})


def test_a_variable_may_hold_several_arrays():
    module = Nested()
    held = module.table.get_value()
    variables = nnx_to_linen(module)
    assert_same_objects(flat(variables), {"params/table/u": held["u"], "params/table/v": held["v"]})
    state = linen_to_nnx(variables, Nested())
    assert state["table"].get_value()["u"] is held["u"]
    assert state["table"].get_value()["v"] is held["v"]


def test_arrays_that_are_no_variables_stay_with_the_module():
    masked = nnx.Conv(1, 1, (2,), mask=jnp.ones((2, 1, 1)), rngs=rngs())
    variables = nnx_to_linen(masked)
    assert set(variables["params"]) == {"kernel", "bias"}
    assert set(values(linen_to_nnx(variables, masked))) == {"kernel", "bias"}


def test_an_array_that_is_no_variable_is_no_parameter_whatever_its_name():
    class Scaled(nnx.Module):
        def __init__(self) -> None:
            self.scale = nnx.data(jnp.ones(3))

    assert nnx_to_linen(Scaled()) == {}


def test_what_every_call_makes_anew_is_left_out():
    class Sowing(nnx.Module):
        def __init__(self) -> None:
            self.w = nnx.Param(jnp.ones(2))

        def __call__(self) -> None:
            self.sow(nnx.Intermediate, "seen", self.w[...])

    module = Sowing()
    module()
    assert set(nnx_to_linen(module)) == {"params"}


def test_typed_keys_are_handed_through():
    class Keyed(nnx.Module):
        def __init__(self) -> None:
            self.noise = nnx.Cache(jax.random.split(jax.random.key(0), 3))

    module = Keyed()
    variables = nnx_to_linen(module)
    assert variables["cache"]["noise"] is module.noise.get_value()
    assert values(linen_to_nnx(variables, module))["noise"] is variables["cache"]["noise"]
    raw = {"cache": {"noise": jax.random.key_data(variables["cache"]["noise"])}}
    assert "expected key<threefry2x32>[3] by the model, found uint32[3,2]" in refused(linen_to_nnx, raw, module)


# Containers and boxes ------------------------------------------------------------------------------------------------


def test_frozen_dicts_are_taken():
    variables = freeze(nn.Dense(3).init(jax.random.key(0), X))
    assert isinstance(variables, FrozenDict)
    state = linen_to_nnx(variables, nnx.Linear(4, 3, rngs=rngs()))
    assert values(state)["kernel"] is variables["params"]["kernel"]


def test_keys_of_a_bridge_may_be_numbers():
    layers = nnx.Dict(layers=nnx.List([nnx.Linear(4, 4, rngs=rngs()) for _ in range(2)]))
    kernels = [layer.kernel.get_value() for layer in layers.layers]
    variables = {"params": {"layers": {n: {"kernel": kernels[n], "bias": jnp.zeros(4)} for n in range(2)}}}
    assert values(linen_to_nnx(variables, layers))["layers/1/kernel"] is kernels[1]


class Boxed(nn.Module):
    """A kernel in a box of either kind."""

    wrap: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(3, name="up", kernel_init=self.wrap(nn.initializers.lecun_normal(), ("embed", "mlp")))(x)


class Sharded(nnx.Module):
    """The same, annotated as NNX does."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        kernel_init = nnx.with_partitioning(nnx.initializers.lecun_normal(), ("embed", "mlp"))
        self.up = nnx.Linear(4, 3, kernel_init=kernel_init, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.up(x)


def sharded() -> Sharded:
    with nnx.use_eager_sharding(False):
        return Sharded(rngs())


@pytest.mark.parametrize("wrap", [nn.with_partitioning, nn.with_logical_partitioning])
def test_boxes_are_taken_off_and_metadata_is_put_on_again(wrap: Any):
    variables = Boxed(wrap).init(jax.random.key(0), X)
    box = variables["params"]["up"]["kernel"]
    module = sharded()
    state = linen_to_nnx(variables, module)
    kernel = state["up"]["kernel"]
    assert kernel.get_value() is box.value
    assert kernel.get_metadata() == module.up.kernel.get_metadata()
    assert ("embed", "mlp") in kernel.get_metadata().values()
    nnx.update(module, state)
    assert verify_outputs(Boxed(wrap), variables, module, (X,)).ok


def test_the_linen_side_gets_plain_arrays():
    module = sharded()
    variables = nnx_to_linen(module, linen_module=Boxed(nn.with_partitioning), inputs=[X])
    assert variables["params"]["up"]["kernel"] is module.up.kernel.get_value()
    assert verify_outputs(Boxed(nn.with_partitioning), variables, module, (X,)).ok


def test_metadata_of_variables_is_preserved():
    module = nnx.Dict(w=nnx.Param(jnp.ones(3), note="kept", on_what=("a", "b")))
    state = linen_to_nnx({"params": {"w": jnp.zeros(3)}}, module)
    assert state["w"].get_metadata() == module.w.get_metadata()
    assert state["w"].get_metadata()["note"] == "kept"
    np.testing.assert_array_equal(module.w[...], jnp.ones(3))


# Under transformations -----------------------------------------------------------------------------------------------


def test_both_directions_work_on_tracers():
    layer, dense = nnx.Linear(4, 3, rngs=rngs()), nn.Dense(3)
    graph, state = nnx.split(layer)

    @jax.jit
    def through_linen(state: nnx.State, x: jax.Array) -> jax.Array:
        return dense.apply(nnx_to_linen(state), x)

    @jax.jit
    def through_nnx(variables: Any, x: jax.Array) -> jax.Array:
        return nnx.merge(graph, linen_to_nnx(variables, layer))(x)

    @jax.jit
    def module_through_linen(state: nnx.State, x: jax.Array) -> jax.Array:
        return dense.apply(nnx_to_linen(nnx.merge(graph, state), linen_module=dense, inputs=[x]), x)

    wanted = jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, X)
    np.testing.assert_array_equal(through_linen(state, X), wanted)
    np.testing.assert_array_equal(through_nnx(nnx_to_linen(layer), X), wanted)
    np.testing.assert_array_equal(module_through_linen(state, X), wanted)


def test_gradients_flow_through():
    layer, dense = nnx.Linear(4, 3, rngs=rngs()), nn.Dense(3)
    state = nnx.state(layer)
    gradient = jax.grad(lambda state: dense.apply(nnx_to_linen(state), X).sum())(state)
    np.testing.assert_array_equal(gradient["bias"].get_value(), jnp.full(3, 2.0))


def test_abstract_modules_are_enough():
    abstract = nnx.eval_shape(lambda: NnxModel(rngs()))
    variables = LinenModel().init(jax.random.key(0), SEQUENCE)
    state = linen_to_nnx(variables, abstract)
    assert_same_objects(values(state), values(linen_to_nnx(variables, NnxModel(rngs()))))
    rest = nnx.state(abstract)
    names = [path for path, value in values(rest).items() if isinstance(value, jax.ShapeDtypeStruct)]
    assert len(names) == 16 + 2


def test_abstract_modules_have_abstract_variables():
    variables = nnx_to_linen(nnx.eval_shape(lambda: NnxModel(rngs())))
    shapes = jax.eval_shape(LinenModel().init, jax.random.key(0), SEQUENCE)
    assert {path: leaf.shape for path, leaf in flat(variables).items()} == {
        path: leaf.shape for path, leaf in flat(shapes).items()
    }


# What is refused -----------------------------------------------------------------------------------------------------


def dense_variables(**changes: Any) -> Any:
    leaves = {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)} | changes
    return {"params": {name: value for name, value in leaves.items() if value is not None}}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"kernel": jnp.ones((3, 4))}, "params/kernel: expected float32[4,3] by the model, found float32[3,4]"),
        ({"bias": jnp.ones((3, 1))}, "params/bias: expected float32[3] by the model, found float32[3,1]"),
        ({"bias": jnp.ones(3, jnp.bfloat16)}, "params/bias: bfloat16[3] in the checkpoint, float32[3] in the model"),
        ({"bias": None}, "params/bias: expected float32[3] by the NNX model, found nothing of that name"),
        ({"extra": jnp.ones(2)}, "params/extra: float32[2] in the checkpoint, no such variable in the NNX model"),
        ({"bias": 0.0}, "params/bias: expected float32[3] by the model, found float"),
    ],
)
def test_wrong_leaves_are_refused_for_nnx(changes: Any, problem: str):
    text = refused(linen_to_nnx, dense_variables(**changes), nnx.Linear(4, 3, rngs=rngs()))
    assert problem in text
    assert "1 problem:" in text


@pytest.mark.parametrize(
    ("linen", "problem"),
    [
        (nn.Dense(2), "params/kernel: expected float32[4,2] by the model, found float32[4,3]"),
        (nn.Dense(3, param_dtype=jnp.bfloat16), "params/bias: float32[3] in the checkpoint, bfloat16[3] in the model"),
        (nn.DenseGeneral((3, 1)), "params/bias: expected float32[3,1] by the model, found float32[3]"),
    ],
)
def test_wrong_leaves_are_refused_for_linen(linen: Any, problem: str):
    assert problem in refused(nnx_to_linen, nnx.Linear(4, 3, rngs=rngs()), linen_module=linen, inputs=[X])


def test_a_bias_that_linen_lacks_has_to_be_zero():
    module = nnx.Linear(4, 3, rngs=rngs())
    models = {"linen_module": nn.Dense(3, use_bias=False), "inputs": [X]}
    assert_same_kernel(nnx_to_linen(module, **models), module)
    module.bias.set_value(jnp.ones(3))
    assert "bias: float32[3]" in refused(nnx_to_linen, module, **models)


def assert_same_kernel(variables: Any, module: nnx.Linear) -> None:
    assert list(variables["params"]) == ["kernel"]
    assert (variables["params"]["kernel"] == module.kernel[...]).all()


def test_all_wrong_leaves_are_refused_together():
    variables = LinenModel().init(jax.random.key(0), SEQUENCE)
    variables["params"]["layers_0"] = {"kernel": jnp.ones((4, 5)), "scale": jnp.ones(4)}
    variables["params"]["norm"]["bias"] = jnp.ones(4, jnp.int32)
    del variables["batch_stats"]
    variables["counter"] = {"count": jnp.array(0)}
    text = refused(linen_to_nnx, variables, NnxModel(rngs()))
    for word in (
        "layers_0/kernel",
        "layers/0/bias",
        "layers_0/scale",
        "norm/bias: int32[4]",
        "norm/mean",
        "norm/var",
        "counter/count",
    ):
        assert word in text
    assert "7 problems" in text


def test_the_variables_of_another_linen_model_are_refused():
    """The Linen module is checked if it is given."""
    variables = dense_variables()
    text = refused(linen_to_nnx, variables, nnx.Linear(4, 3, rngs=rngs()), linen_module=nn.Dense(2), inputs=[X])
    assert "params/kernel" in text


@pytest.mark.parametrize(
    "variables",
    [
        dense_variables()["params"],
        {"Dense_0": dense_variables()["params"]},
        freeze({"Dense_0": dense_variables()["params"]}),
        [dense_variables()],
        None,
        jnp.ones(3),
    ],
)
def test_a_forgotten_params_key_is_named(variables: Any):
    with pytest.raises(UsageError) as caught:
        linen_to_nnx(variables, nnx.Linear(4, 3, rngs=rngs()))
    assert "{'params': params}" in caught.value.advice


def test_the_state_of_an_optimizer_is_refused():
    module = nnx.Linear(4, 3, rngs=rngs())
    optimizer = nnx.Optimizer(module, optax.adam(0.1), wrt=nnx.Param)
    for state in (
        nnx.state(optimizer),
        nnx.state((module, optimizer)),
        nnx.state(nnx.ModelAndOptimizer(module, optax.sgd(0.1))),
    ):
        with pytest.raises(UsageError, match="belongs to an optimizer") as caught:
            nnx_to_linen(state)
        assert "converter.convert" in caught.value.advice


def test_modules_of_the_wrong_framework_are_refused():
    with pytest.raises(ModelError, match=r"expected an nnx\.Module, found Dense"):
        linen_to_nnx(dense_variables(), nn.Dense(3))
    with pytest.raises(ModelError, match="expected a Linen module, found Linear"):
        nnx_to_linen(nnx.Linear(4, 3, rngs=rngs()), linen_module=nnx.Linear(4, 3, rngs=rngs()), inputs=[X])


def test_a_linen_module_needs_inputs():
    with pytest.raises(UsageError, match="the inputs are missing"):
        nnx_to_linen(nnx.Linear(4, 3, rngs=rngs()), linen_module=nn.Dense(3))


def test_inputs_that_do_not_fit_the_linen_module():
    with pytest.raises(ModelError, match="initialising the Linen model LinenModel failed"):
        nnx_to_linen(trained(), linen_module=LinenModel(), inputs=[])


# Outputs -------------------------------------------------------------------------------------------------------------


def test_equal_outputs():
    layer = nnx.Linear(4, 3, rngs=rngs())
    report = verify_outputs(nn.Dense(3), nnx_to_linen(layer), layer, (X,))
    assert report.ok
    assert report.verified
    assert report.outputs is not None
    (output,) = report.outputs.outputs
    assert (output.name, output.spec, output.bitwise) == ("output", "float32[2,3]", True)
    assert "both models run on float32[2,4]" in report.text()
    assert report.to_json()["outputs"]["outputs"][0]["bitwise"] is True


def test_two_leaves_of_the_same_shape_in_each_others_place_are_seen():
    model = trained()
    for one, other in (("query", "key"), ("query", "value")):
        variables = nnx_to_linen(model)
        attention = variables["params"]["attention"]
        attention[one], attention[other] = attention[other], attention[one]
        report = verify_outputs(LinenModel(), variables, model, (SEQUENCE,))
        assert not report.ok, (one, other)
        assert "DIFFERENT" in report.text()
    variables = nnx_to_linen(model)
    params = variables["params"]
    params["layers_0"], params["layers_1"] = params["layers_1"], params["layers_0"]
    assert not verify_outputs(LinenModel(), variables, model, (SEQUENCE,)).ok


def test_inputs_can_be_described():
    layer = nnx.Linear(4, 3, rngs=rngs())
    for described in ("float32[2,4]", jax.ShapeDtypeStruct((2, 4), jnp.float32)):
        report = verify_outputs(nn.Dense(3), nnx_to_linen(layer), layer, (described,))
        assert report.ok
        assert report.outputs is not None
        assert report.outputs.inputs == ("float32[2,4]",)
        assert report.outputs.outputs[0].scale > 0


@pytest.mark.parametrize("mutable", [["batch_stats"], "batch_stats", True, []])
def test_mutated_collections_are_not_outputs(mutable: Any):
    layer = nnx.BatchNorm(4, rngs=rngs(), use_running_average=not mutable)
    variables = nnx_to_linen(layer)
    linen = nn.BatchNorm(use_running_average=not mutable)
    assert verify_outputs(linen, variables, layer, (X,), linen_kwargs={"mutable": mutable}).ok


def test_keyword_arguments_of_both_calls():
    model = trained()
    variables = nnx_to_linen(model)
    report = verify_outputs(LinenModel(), variables, model, (SEQUENCE,), linen_kwargs={"train": False}, nnx_kwargs={})
    assert report.ok
    with pytest.raises(ModelError, match="calling the Linen model failed"):
        verify_outputs(LinenModel(), variables, model, (SEQUENCE,), linen_kwargs={"training": False})
    with pytest.raises(ModelError, match="calling the NNX model failed"):
        verify_outputs(LinenModel(), variables, model, (SEQUENCE,), nnx_kwargs={"train": False})


class LinenReturning(nn.Module):
    """Returns whatever it is told to."""

    outputs: Any

    def __call__(self, x: jax.Array) -> Any:
        return self.outputs()


class NnxReturning(nnx.Module):
    def __init__(self, outputs: Any) -> None:
        self.outputs = outputs

    def __call__(self, x: jax.Array) -> Any:
        return self.outputs()


def compared(left: Any, right: Any) -> Any:
    return verify_outputs(LinenReturning(lambda: left), {}, NnxReturning(lambda: right), (X,))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (jnp.ones((2, 3)), jnp.ones((3, 2))),
        (jnp.ones(3), (jnp.ones(3),)),
        ({"a": jnp.ones(3)}, {"b": jnp.ones(3)}),
        ((jnp.ones(3), jnp.ones(2)), (jnp.ones(3),)),
        (jnp.ones(3), None),
        (jnp.ones(()), jnp.ones(1)),
    ],
)
def test_different_structures_are_seen(left: Any, right: Any):
    report = compared(left, right)
    assert not report.ok
    assert report.outputs.problem.startswith("the models return different structures: Linen ")
    assert report.outputs.problem in report.text()


def test_outputs_of_pytrees_are_named():
    tree = {"logits": jnp.ones((2, 3)), "hidden": (jnp.zeros(2), jnp.arange(3))}
    report = compared(tree, tree)
    assert report.ok
    assert [output.name for output in report.outputs.outputs] == ["hidden/0", "hidden/1", "logits"]
    changed = {**tree, "hidden": (jnp.zeros(2), jnp.arange(3) + 1)}
    report = compared(tree, changed)
    assert [output.name for output in report.outputs.outputs if not output.ok] == ["hidden/1"]


NAN, INF = jnp.array([jnp.nan, 1.0]), jnp.array([jnp.inf, 1.0])


@pytest.mark.parametrize(
    ("left", "right", "ok"),
    [
        (jnp.arange(3), jnp.arange(3), True),
        (jnp.arange(3), jnp.array([0, 1, 3]), False),
        (jnp.array([True, False]), jnp.array([True, False]), True),
        (jnp.array([True, False]), jnp.array([True, True]), False),
        (jnp.uint32(2**32 - 1), jnp.uint32(2**32 - 2), False),
        (NAN, NAN, True),
        (NAN, jnp.ones(2), False),
        (jnp.ones(2), NAN, False),
        (INF, INF, True),
        (INF, -INF, False),
        (INF, jnp.ones(2), False),
        (NAN, INF, False),
        (jnp.zeros(2), -jnp.zeros(2), True),
        (jnp.zeros(2), jnp.full(2, 1e-20), False),
        (jnp.array([1.0, 1j]), jnp.array([1.0, 1j]), True),
        (jnp.array([1.0, 1j]), jnp.array([1.0, -1j]), False),
        (jnp.zeros((0, 3)), jnp.zeros((0, 3)), True),
        (1.5, 1.5, True),
        (1.5, 2.5, False),
    ],
)
def test_outputs_of_all_kinds(left: Any, right: Any, ok: bool):
    assert compared(left, right).ok is ok


def test_a_module_that_returns_keys_can_be_compared():
    assert compared(jax.random.key(0), jax.random.key(0)).ok
    assert not compared(jax.random.key(0), jax.random.key(1)).ok


def test_the_nnx_module_is_called_in_the_mode_it_is_in():
    layer = nnx.Dropout(0.5, rngs=rngs())
    assert not verify_outputs(nn.Dropout(0.5, deterministic=True), {}, layer, (jnp.ones(64),)).ok
    layer.eval()
    assert verify_outputs(nn.Dropout(0.5, deterministic=True), {}, layer, (jnp.ones(64),)).ok
