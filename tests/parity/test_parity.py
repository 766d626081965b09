"""Every layer and arrangement that both frameworks have: converted both ways, compared with a translation by hand.

A ``Pair`` (pair.py) is one model written in both frameworks, with the translation of its variables written by hand.
Single layers: pairs_linear, pairs_norms, pairs_wrappers (SpectralNorm, WeightNorm, PReLU, Dropout), pairs_attention
(caches too), pairs_cells and pairs_rnn. The same layers in another arrangement: pairs_containers, pairs_names
(automatic names, transformed classes, share_scope), pairs_order, pairs_sharing (one module, variable or array in
several places), pairs_scan and pairs_nested (loops and scans on either side, along any axis), pairs_renamed_stacks,
pairs_scanned_layers (LSTM, GRU, attention and its cache inside of a scan), pairs_vmap, pairs_variables (collections
and Variable classes of one's own, sharding names, LoRA), pairs_bridges (``ToLinen``, ``ToNNX``). Whole models:
pairs_models (ResNet, ViT, VAE) and pairs_encoders.

For each pair, on random values that no initialiser would give:

* the translation by hand is right: it covers every leaf, and both models then compute the same, statistics and caches
  included (no converter in this test);
* the converter makes exactly those leaves, bit for bit, in both directions and there and back, with both models to look
  at; and with the NNX module alone where the names follow Flax's conventions;
* what has no place on the other side is refused by name, and what rules state is found without them too;
* ``verify_outputs`` notices a translation in which two leaves are exchanged.

Helpers: support.py (random values, making a pair, comparisons), paths.py and truth.py (translations by hand in short),
blocks.py and stacks.py (the parts that models repeat).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from converter import linen_to_nnx, nnx_to_linen, verify_outputs
from converter.errors import ConversionRefused
from tests.parity import (
    pairs_attention,
    pairs_bridges,
    pairs_cells,
    pairs_containers,
    pairs_encoders,
    pairs_linear,
    pairs_models,
    pairs_names,
    pairs_nested,
    pairs_norms,
    pairs_order,
    pairs_renamed_stacks,
    pairs_rnn,
    pairs_scan,
    pairs_scanned_layers,
    pairs_sharing,
    pairs_variables,
    pairs_vmap,
    pairs_wrappers,
)
from tests.parity.pair import Pair
from tests.parity.support import (
    JOIN,
    Case,
    Values,
    assert_close,
    assert_same_bits,
    by_hand,
    flat_linen,
    flat_nnx,
    on_device,
    replace_nnx,
    wrappers,
)

PAIRS: list[Pair] = [
    *pairs_linear.PAIRS,
    *pairs_norms.PAIRS,
    *pairs_wrappers.PAIRS,
    *pairs_attention.PAIRS,
    *pairs_cells.PAIRS,
    *pairs_rnn.PAIRS,
    *pairs_containers.PAIRS,
    *pairs_names.PAIRS,
    *pairs_order.PAIRS,
    *pairs_sharing.PAIRS,
    *pairs_scan.PAIRS,
    *pairs_nested.PAIRS,
    *pairs_renamed_stacks.PAIRS,
    *pairs_scanned_layers.PAIRS,
    *pairs_vmap.PAIRS,
    *pairs_variables.PAIRS,
    *pairs_bridges.PAIRS,
    *pairs_models.PAIRS,
    *pairs_encoders.PAIRS,
]
BY_NAME = {pair.name: pair for pair in PAIRS}

INVARIANT: dict[str, str] = {
    "dropout_deterministic": "no variables",
    "dropout_no_rngs": "no variables",
    "prelu": "its only variable is a scalar",
}
"""Pairs in which nothing can be mixed up, and why."""


SLOW = {
    "bidirectional_gru",
    "linen_loop_of_attention_to_nnx_scan",
    "linen_nested_scan_axis1_to_nnx_nested_list",
    "linen_scan_of_optimized_lstm_to_nnx_list",
    "linen_scan_over_time_to_nnx_rnn_of_optimized_lstm",
    "linen_scan_remat_to_nnx_list",
    "mha_decode_cache_normalize_qk",
    "model_encoder_linen_scan_to_nnx_list",
    "model_encoder_loop",
    "model_resnet_train",
    "model_vit",
    "renamed_linen_loop_of_12_to_nnx_scan",
    "renamed_linen_scan_axis1_to_nnx_list",
    "rnn_linen_lstm_to_nnx_optimized",
    "scan_axis_-1",
    "scan_of_gru",
    "scan_remat_auto_name",
    "twelve_layers_linen_scan_to_nnx_list",
    "vmap_ensemble_axis1",
}
"""Pairs that combine what quicker pairs show one by one."""

SOME = frozenset(pair.name for pair in PAIRS[::10])
"""Enough where one pair is much like another: where outputs differ, both models are run again and again."""

Condition = Callable[[Pair], object]


def each(condition: Condition = lambda pair: True, slow: Condition = lambda pair: False) -> pytest.MarkDecorator:
    """Runs a test for every pair that fulfils the condition; for some of them among the slow tests."""
    return pytest.mark.parametrize(
        "name",
        [
            pytest.param(pair.name, marks=pytest.mark.slow if pair.name in SLOW or slow(pair) else ())
            for pair in PAIRS
            if condition(pair)
        ],
    )


def has_inputs_of_init(pair: Pair) -> bool:
    """The converter is given the inputs of the call; where init needs others, the Linen module tells it nothing."""
    return pair.init_inputs is None


both_models = each(has_inputs_of_init)


@functools.cache
def case(name: str) -> Case:
    return Case(BY_NAME[name])


@functools.cache
def to_nnx(name: str) -> nnx.State:
    """The converter's translation of ``variables(0)``, with both modules to look at."""
    made = case(name)
    return linen_to_nnx(made.variables(0), made.module, **made.told)


@functools.cache
def to_linen(name: str) -> dict[str, Any]:
    """The converter's translation of ``truth(0)``, with both modules to look at."""
    made = case(name)
    return nnx_to_linen(made.nnx_module(0), **made.told)


def assert_state(made: Case, state: nnx.State, seed: int) -> None:
    """``state`` is what the translation by hand gives, in Variables such as the module has them."""
    truth, own = made.truth(seed), wrappers(made.module)
    # The masks of convolutions are plain arrays of the NNX module, which may stay where they are.
    found = {path: value for path, value in flat_nnx(state).items() if path in truth or own.get(path, True)}
    assert_same_bits(found, truth)
    around = wrappers(state)
    assert {path: around[path] for path in truth} == {path: own[path] for path in truth}


def inner_nodes(tree: Any) -> Iterator[Any]:
    if not isinstance(tree, jax.Array | np.ndarray):
        yield tree
        for child in tree.values():
            yield from inner_nodes(child)


def updated(made: Case, state: nnx.State) -> nnx.Module:
    """The module with a state put in as users do it."""
    module = nnx.clone(made.module)
    nnx.update(module, state)
    return module


# The pairs themselves ------------------------------------------------------------------------------------------------


def test_every_pair_has_a_name_of_its_own():
    assert len(BY_NAME) == len(PAIRS)
    assert BY_NAME.keys() >= SLOW


@each(slow=lambda pair: pair.name not in SOME)
def test_ground_truth(name: str):
    """The translation by hand covers every leaf, fits, and both modules then compute the same. No converter here."""
    made, pair = case(name), BY_NAME[name]
    linen, truth = made.values(0), made.truth(0)
    own = flat_nnx(made.module)

    sources = [source for joined in pair.paths for source in joined.split(JOIN)]
    assert sorted([*sources, *pair.lossy]) == sorted(linen)
    assert set(truth) == {path for path, variable in wrappers(made.module).items() if variable or path in truth}
    assert set(pair.to_nnx) <= set(pair.paths)
    assert {p: (v.shape, v.dtype) for p, v in truth.items()} == {p: (own[p].shape, own[p].dtype) for p in truth}
    if not pair.copies:
        # Then random values of one side are as good as random values of the other.
        assert sum(v.size for v in truth.values()) == sum(linen[source].size for source in sources)

    output, changed = made.linen_output()
    found, after = made.nnx_output()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(output)), "equal NaNs would prove nothing"
    assert_close(found, output, pair.tolerance)
    # What the call changed (statistics, caches) has to agree too.
    wanted = by_hand(pair, linen | changed)
    touched = [
        target
        for sources, targets in pair.paths.items()
        if not changed.keys().isdisjoint(sources.split(JOIN))
        for target in targets.split(JOIN)
    ]
    assert_close({t: after[t] for t in touched}, {t: wanted[t] for t in touched}, pair.tolerance)


# The converter -------------------------------------------------------------------------------------------------------


@both_models
def test_to_nnx(name: str):
    made = case(name)
    state = to_nnx(name)
    assert_state(made, state, 0)
    assert_close(made.call(updated(made, state)), made.linen_output()[0], BY_NAME[name].tolerance)


@both_models
def test_to_linen(name: str):
    # Plain dicts, which hold the very bits that the ground truth has been run with.
    variables = to_linen(name)
    assert_same_bits(flat_linen(variables), case(name).values(0))
    assert all(type(node) is dict for node in inner_nodes(variables))


@each(has_inputs_of_init, slow=lambda pair: not pair.by_convention)
def test_round_trip(name: str):
    """There and back; what comes from the converter goes into it again, and does not change the module it looks at.

    ``test_to_nnx`` shows that the converter makes the same module as the translation by hand, which ``to_linen`` is
    given: so the way from Linen and back is walked as well.
    """
    made = case(name)
    module = made.nnx_module(0)
    before = flat_nnx(module)
    assert_state(made, linen_to_nnx(to_linen(name), module, **made.told), 0)
    assert_same_bits(flat_nnx(module), before)


@each(lambda pair: pair.by_convention)
def test_by_convention(name: str):
    """The names follow Flax's conventions, so that the NNX module alone is enough."""
    made = case(name)
    assert_state(made, linen_to_nnx(made.variables(1), made.module), 1)
    assert_same_bits(flat_linen(nnx_to_linen(made.nnx_module(1))), made.values(1))


@each(lambda pair: pair.lossy)
def test_lossy(name: str):
    """A value that the other side has no place for is refused by name. A zero, which changes nothing, converts."""
    made, pair = case(name), BY_NAME[name]
    for models in (made.models, {}) if pair.by_convention else (made.models,):
        with pytest.raises(ConversionRefused) as refused:
            linen_to_nnx(made.variables(0, lossy=True), made.module, **models)
        for path in pair.lossy:
            assert path.partition("/")[2] in str(refused.value)
        assert_state(made, linen_to_nnx(made.variables(0), made.module, **models), 0)


@each(lambda pair: pair.rules)
def test_found_without_rules(name: str):
    """Names and shapes allow for several arrangements; the calls of both models tell which one is meant."""
    made = case(name)
    assert_state(made, linen_to_nnx(made.variables(0), made.module, **made.models), 0)
    assert_same_bits(flat_linen(nnx_to_linen(made.nnx_module(0), **made.models)), made.values(0))


# The verification ----------------------------------------------------------------------------------------------------


def mixed_up(made: Case) -> Values:
    """The NNX leaves with two of them exchanged, as a wrong rule would do it.

    Where leaves are combined (gates, layers of a stack) it is two of those; else the first two of one shape, dtype and
    collection. Where no two could be confused, the first leaf is turned around along all of its axes.
    """
    linen, truth = made.values(0), made.truth(0)
    for sources, targets in made.pair.paths.items():
        if JOIN in sources:
            first, second = sources.split(JOIN)[:2]
            return by_hand(made.pair, linen | {first: linen[second], second: linen[first]})
        if JOIN in targets and not made.pair.copies:
            first, second = targets.split(JOIN)[:2]
            return truth | {first: truth[second], second: truth[first]}
    for first, second in itertools.combinations(made.pair.paths, 2):
        if kind(first, linen[first]) == kind(second, linen[second]):
            return by_hand(made.pair, linen | {first: linen[second], second: linen[first]})
    return truth | {first: on_device(np.flip(truth[first])) for first in itertools.islice(truth, 1)}


def kind(path: str, array: Any) -> tuple[Any, ...]:
    return path.partition("/")[0], array.shape, array.dtype


@each(lambda pair: pair.name not in INVARIANT, slow=lambda pair: pair.name not in SOME)
def test_wrong_rules_are_caught(name: str):
    made = case(name)
    module = replace_nnx(made.module, mixed_up(made))
    models = made.models
    report = verify_outputs(models.pop("linen_module"), made.variables(0), module, **models)
    assert not report.ok
