"""Which collection an NNX variable belongs to: who may say so, and who is asked first."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from converter.models import Model, ModelVariable
from converter.paths import PathGlob, format_path, parse_path
from converter.rules.variable_types import assign_collections
from converter.training_state import Held, Part, Slot, TrainingState
from converter.tree import array_spec
from tests.building import ZERO, leaf_of, prng_key


def state_of(variables: dict[str, Any], mirrors: tuple[str, ...] = (), source: str = "") -> TrainingState:
    """Variables by path, and parameters that the optimizer keeps a moment for."""
    leaves = []
    for text, value in variables.items():
        path = parse_path(text)
        leaves.append((Slot(Part.VARIABLES, path=path), Held(parse_path(source + text), leaf_of(value))))
    for text in mirrors:
        path = parse_path(text)
        held = Held(("opt_state", "0", "mu", *path), leaf_of(ZERO))
        leaves.append((Slot(Part.OPT_STATE, path=path, prefix=("0", "mu")), held))
    return TrainingState(leaves)


def model_of(framework: Any, *variables: str) -> Model:
    """A model definition from texts such as ``params:layers_0/kernel``."""
    found = []
    for text in variables:
        collection, _, path = text.partition(":")
        found.append(ModelVariable(collection, parse_path(path), array_spec("float32"), parse_path(path)))
    return Model(framework, None, tuple(found))


def decided(state: TrainingState, *told: tuple[str, str], **models: Model) -> dict[str, str]:
    """The collection of every variable by its path."""
    assigned = assign_collections(state, [(PathGlob(glob), name) for glob, name in told], **models)
    assert [slot.path for slot in assigned] == [slot.path for slot in state]
    assert list(assigned.values()) == list(state.values())
    return {format_path(slot.path): slot.collection for slot in assigned if slot.part is Part.VARIABLES}


# Each authority alone ------------------------------------------------------------------------------------------------


def test_names_of_flax_layers():
    names = ["up/kernel", "up/bias", "norm/scale", "embed/embedding", "prelu/negative_slope", "norm/mean", "norm/var"]
    names += ["attention/cached_key", "attention/cached_value", "attention/cache_index"]
    assert decided(state_of(dict.fromkeys(names, ZERO))) == {
        **dict.fromkeys(names[:5], "params"),
        **dict.fromkeys(names[5:7], "batch_stats"),
        **dict.fromkeys(names[7:], "cache"),
    }


def test_mean_and_var_count_only_together():
    found = decided(state_of(dict.fromkeys(["a/mean", "b/var", "c/mean", "d/c/var", "mean", "var"], ZERO)))
    assert found == {
        "a/mean": "",
        "b/var": "",
        "c/mean": "",
        "d/c/var": "",
        "mean": "batch_stats",
        "var": "batch_stats",
    }


def test_what_nobody_tells_stays_undecided():
    assert decided(state_of({"pos_embed": ZERO, "count": np.int32(0)})) == {"pos_embed": "", "count": ""}


def test_the_optimizer_keeps_moments_of_parameters_only():
    state = state_of({"pos_embed": ZERO, "count": np.int32(0)}, mirrors=("pos_embed",))
    assert decided(state) == {"pos_embed": "params", "count": ""}


def test_random_state_is_told_by_key_and_count():
    state = state_of(
        {
            "rngs/key": prng_key(),
            "rngs/count": np.uint32(0),
            "raw/key": np.zeros(2, np.uint32),
            "raw/count": np.uint32(0),
            "query/key": ZERO,
            "query/count": np.uint32(0),
            "alone/key": prng_key(),
            "signed/key": prng_key(),
            "signed/count": np.int32(0),
        }
    )
    assert decided(state) == {
        "rngs/key": "RngKey",
        "rngs/count": "RngCount",
        "raw/key": "RngKey",
        "raw/count": "RngCount",
        "query/key": "",
        "query/count": "",
        "alone/key": "",
        "signed/key": "",
        "signed/count": "",
    }


def test_the_nnx_model_knows_its_types():
    model = model_of("nnx", "Count:count", "LoRAParam:lora/a", "batch_stats:mean")
    state = state_of({"count": ZERO, "lora/a": ZERO, "mean": ZERO, "elsewhere": ZERO})
    assert decided(state, nnx_model=model) == {
        "count": "Count",
        "lora/a": "LoRAParam",
        "mean": "batch_stats",
        "elsewhere": "",
    }


def test_the_linen_model_knows_where_the_same_path_stands():
    model = model_of("linen", "counter:count", "params:layers_0/w", "params:both", "ema:both")
    state = state_of({"count": ZERO, "layers/0/w": ZERO, "both": ZERO})
    assert decided(state, linen_model=model) == {"count": "counter", "layers/0/w": "params", "both": ""}


def test_the_user_may_name_paths_of_the_file_or_of_the_model():
    state = state_of({"net/a": ZERO, "net/b": ZERO, "c": ZERO}, source="model/")
    assert decided(state, ("net/*", "one"), ("model/c", "two")) == {"net/a": "one", "net/b": "one", "c": "two"}


def test_the_first_pattern_counts():
    state = state_of({"a/b": ZERO, "a/c": ZERO})
    assert decided(state, ("a/b", "first"), ("a/*", "second")) == {"a/b": "first", "a/c": "second"}


# Their order ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("removed", range(6))
def test_the_order_of_authorities(removed: int):
    """Every authority has another opinion about one leaf; without the first few, the next one is believed."""
    path = "rngs/key"
    authorities = ["told", "NnxModel", "RngKey", "linen_model", "params", ""]
    told = [(path, "told")] if removed < 1 else []
    nnx_model = model_of("nnx", f"NnxModel:{path}") if removed < 2 else None
    value = prng_key() if removed < 3 else ZERO
    linen_model = model_of("linen", f"linen_model:{path}") if removed < 4 else None
    mirrors = (path,) if removed < 5 else ()
    state = state_of({path: value, "rngs/count": np.uint32(0)}, mirrors)
    found = decided(state, *told, nnx_model=nnx_model, linen_model=linen_model)
    assert found[path] == authorities[removed]


def test_moments_tell_more_than_names():
    """A parameter called ``mean`` beside one called ``var``, both trained."""
    assert decided(state_of({"mean": ZERO, "var": ZERO}, mirrors=("mean", "var"))) == {
        "mean": "params",
        "var": "params",
    }


def test_a_linen_model_tells_more_than_moments():
    model = model_of("linen", "lora:a")
    assert decided(state_of({"a": ZERO}, mirrors=("a",)), linen_model=model) == {"a": "lora"}


# What follows the variables ------------------------------------------------------------------------------------------


def test_mirrors_follow_their_variables():
    state = state_of({"a": ZERO, "b/kernel": ZERO}, mirrors=("a", "b/kernel", "gone/kernel"))
    assigned = assign_collections(state, [(PathGlob("a"), "lora")])
    mirrors = {format_path(slot.path): slot.collection for slot in assigned if slot.is_mirror}
    assert mirrors == {"a": "lora", "b/kernel": "params", "gone/kernel": "params"}


def test_leaves_that_mirror_nothing_have_no_collection():
    leaves = [
        (Slot(Part.STEP), Held(("step",), leaf_of(1))),
        (Slot(Part.OPT_STATE, prefix=("0", "count")), Held(("opt_state", "0", "count"), leaf_of(ZERO))),
        (Slot(Part.EXTRA, prefix=("epoch",)), Held(("epoch",), leaf_of(3))),
    ]
    assert list(assign_collections(TrainingState(leaves), [(PathGlob("**"), "params")])) == [slot for slot, _ in leaves]
