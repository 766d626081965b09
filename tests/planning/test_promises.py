"""Every source leaf ends up somewhere or is dropped by a stated rule, every target leaf is filled once, and back again
everything is as it was: for random training states, in both directions."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from converter.paths import IndexKey, Path, PathGlob, format_path
from converter.planning.plan import Plan
from converter.planning.planner import make_plan
from converter.planning.request import Request
from converter.tree import LeafKind, Tree
from converter.verification.values import value_difference
from tests.building import contents, leaf_of, prng_key, texts

TOP = st.sampled_from(["Dense_0", "layers_0", "layers_10", "attention", "cell", "if", "net"])
INSIDE = st.sampled_from(["Dense_0", "query", "value", "if", "mu", "layers_0", "norm"])
PARAMETERS = st.sampled_from(["kernel", "bias", "scale", "embedding", "value", "pos_embed", "w"])
GATES = ["ii", "if", "ig", "io", "hi", "hf", "hg", "ho"]
# Training states are large values: explaining a failure would take minutes.
some = settings(max_examples=80, phases=[phase for phase in Phase if phase is not Phase.explain])

DTYPES = st.sampled_from(["float32", "bfloat16", "float8_e4m3fn", "int4", "int8", "uint32", "bool"])


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    """Small arrays that differ from each other."""
    from converter.dtypes import numpy_dtype

    shape = draw(st.lists(st.integers(0, 3), max_size=2))
    bits = draw(st.integers(0, 2**31))
    return np.random.default_rng(bits).integers(0, 2, shape).astype(numpy_dtype(draw(DTYPES)))


def apart(paths: list[Path]) -> list[Path]:
    """The paths without those above others: a leaf has nothing below it."""
    above = {path[:depth] for path in paths for depth in range(len(path))}
    return [path for path in dict.fromkeys(paths) if path not in above]


@dataclass(frozen=True)
class Training:
    """A training state as Linen has it, in parts.

    Attributes:
      params: every parameter.
      others: variables of other collections, by collection and path.
      optimizer: the rest of the path in the optax state, and the path of the parameter for mirrors.
      extras: fields the user added; with a parameter's path for mirrors.
    """

    params: dict[Path, Any]
    others: dict[tuple[str, Path], Any]
    optimizer: dict[tuple[Path, Path], Any]
    extras: dict[tuple[Path, Path], Any]
    step: Any

    @property
    def trains(self) -> bool:
        return self.step is not None


@st.composite
def trainings(draw: st.DrawFn) -> Training:
    paths = st.tuples(TOP, st.lists(INSIDE, max_size=2), PARAMETERS).map(lambda p: (p[0], *p[1], p[2]))
    # Where all parameters were called value, a pure dict could not be told from an nnx.State.
    params = apart([("head", "kernel"), *draw(st.lists(paths, max_size=5))])
    if draw(st.booleans()):
        params += [("lstm", gate, "kernel") for gate in GATES]
    norms = draw(st.lists(st.sampled_from(["norm_a", "norm_b"]), unique=True))
    others: dict[tuple[str, Path], Any] = {}
    for norm in norms:
        others |= {("batch_stats", (norm, name)): draw(arrays()) for name in ("mean", "var")}
    if draw(st.booleans()):
        others["cache", ("attention_0", "cache_index")] = np.int32(3)
    if draw(st.booleans()):
        others["counter", ("visits",)] = np.int32(draw(st.integers(0, 9)))
    optimizer: dict[tuple[Path, Path], Any] = {}
    extras: dict[tuple[Path, Path], Any] = {}
    step = None
    if draw(st.booleans()):
        step = draw(st.sampled_from([5, np.int32(6)]))
        ways = st.sampled_from(["0/mu", "0/nu", "2/trace", "1/inner_state/0/mu", "inner_states/adam/0/mu", "acc_grads"])
        for way in draw(st.lists(ways, unique=True, max_size=3)):
            keys = tuple(IndexKey(key) if key.isdigit() else key for key in way.split("/"))
            for path in params:
                optimizer[keys, path] = draw(st.one_of(arrays(), st.none())) if draw(st.booleans()) else draw(arrays())
            optimizer[(*keys[:-1], "count"), ()] = np.int32(1)
        if draw(st.booleans()):
            extras |= {(("ema_params",), path): draw(arrays()) for path in params if draw(st.booleans())}
        if draw(st.booleans()):
            extras |= {(("epoch",), ()): 3, (("note",), ()): "grüße", (("sampling_key",), ()): prng_key(7)}
    return Training({path: draw(arrays()) for path in params}, others, optimizer, extras, step)


@st.composite
def bundled_trainings(draw: st.DrawFn) -> tuple[Training, Any]:
    """A training state, and an NNX bundle that has room for all of it: only a dict has room for extra fields."""
    training, bundle = draw(trainings()), draw(st.sampled_from(["dict", "tuple", "model-and-optimizer"]))
    return training if bundle == "dict" else replace(training, extras={}), bundle


def gate(path: Path, old: str, new: str) -> Path:
    """The path with the gate of the one complete LSTM cell called otherwise."""
    return (path[0], new, *path[2:]) if path[0] == "lstm" and path[1] == old else path


def linen_tree(training: Training) -> Tree:
    leaves: list[tuple[Path, Any]] = []
    if training.trains:
        leaves.append((("step",), training.step))
    leaves += [(("params", *path), value) for path, value in training.params.items()]
    leaves += [((collection, *path), value) for (collection, path), value in training.others.items()]
    leaves += [(("opt_state", *way, *path), value) for (way, path), value in training.optimizer.items()]
    leaves += [((*way, *path), value) for (way, path), value in training.extras.items()]
    return Tree((path, leaf_of(value)) for path, value in leaves)


def nnx_tree(training: Training, suffix: str | None, model: Path, optimizer: Path) -> Tree:
    """The same as NNX holds it, with the gates of the LSTM cell as NNX calls them and a stream of random numbers."""

    def plain(path: Path) -> Path:
        return tuple(map(str, gate(path, "if", "if_")))

    prefix = model if training.trains else ()
    leaves = [((*prefix, *plain(path)), value) for path, value in training.params.items()]
    leaves += [((*prefix, *path), value) for (_, path), value in training.others.items()]
    leaves += [((*prefix, "dropout", "rngs", "key"), prng_key()), ((*prefix, "dropout", "rngs", "count"), np.uint32(2))]
    if training.trains:
        leaves.append(((*optimizer, "step"), np.uint32(training.step)))
    for (way, path), value in training.optimizer.items():
        leaves.append(((*optimizer, "opt_state", *map(str, way), *(plain(path) if path else ())), value))
    leaves += [((*way, *(plain(path) if path else ())), value) for (way, path), value in training.extras.items()]
    return Tree(((*path, suffix) if suffix else path, leaf_of(value)) for path, value in leaves)


def told(training: Training) -> tuple[tuple[PathGlob, str], ...]:
    """The collection of every variable whose name does not tell it, for both directions."""
    found = []
    for collection, path in [*training.others, *(("params", path) for path in training.params)]:
        found.append((PathGlob(format_path(gate(path, "if", "if_"))), collection))
    return tuple(found)


def full(tree: Tree) -> list[Path]:
    return [path for path, leaf in tree.items() if leaf.spec.kind is not LeafKind.EMPTY]


def assert_complete(plan: Plan, tree: Tree, suffix: str | None = None) -> None:
    """Each source leaf is used once or dropped, each target leaf is made once, and the plan can be carried out."""
    assert plan.problems == ()
    used = [held.source for step in plan.steps for held in step.sources]
    places = [*used, *(drop.source for drop in plan.drops), *(entry.source for entry in plan.ignored)]
    assert max(Counter(places).values()) == 1
    sources = [path[:-1] if suffix and path[-1] == suffix else path for path in tree]
    assert sorted(places) == sorted(sources)
    assert all(drop.reason for drop in plan.drops)
    targets = [step.target for step in plan.steps]
    assert len(set(targets)) == len(targets) == len(plan.tree())


def assert_same(found: Tree, wanted: dict[str, Any]) -> None:
    """The same paths and, bit for bit, the same values; counters may have become arrays."""
    values = contents(found)
    assert sorted(values) == sorted(wanted)
    for path, value in wanted.items():
        if path.split("/")[-1] == "step" or path.endswith("step/value"):
            assert int(values[path]) == int(value)
        else:
            assert value_difference(value, values[path]) is None


SUFFIXES = st.sampled_from(["value", None])
STYLES = {"value": "state", None: "pure"}
PLACES: dict[str, tuple[Path, Path]] = {
    "dict": (("model",), ("optimizer",)),
    "tuple": (("0",), ("1",)),
    "model-and-optimizer": (("model",), ()),
}


@some
@given(bundled_trainings(), SUFFIXES)
def test_linen_to_nnx_uses_every_leaf_once(bundled: tuple[Training, Any], suffix: Any):
    training, bundle = bundled
    tree = linen_tree(training)
    request = Request("nnx", nnx_style=STYLES[suffix], nnx_bundle=bundle, collections=told(training))
    plan = make_plan(tree, request)
    assert_complete(plan, tree)
    assert plan.drops == ()


@some
@given(bundled_trainings(), SUFFIXES)
def test_nnx_to_linen_uses_every_leaf_once(bundled: tuple[Training, Any], suffix: Any):
    training, bundle = bundled
    tree = nnx_tree(training, suffix, *PLACES[bundle])
    plan = make_plan(tree, Request("linen", collections=told(training)))
    assert_complete(plan, tree, suffix)
    assert [drop.source[-1] for drop in plan.drops] == ["key", "count"]


@some
@given(trainings(), st.data())
def test_dropped_leaves_are_listed_and_no_others_are_lost(training: Training, data: st.DataObject):
    tree = linen_tree(training)
    chosen = data.draw(st.lists(st.sampled_from(full(tree)), unique=True, max_size=3))
    others = [path for path in full(tree) if path[0] not in ("opt_state", "ema_params") and path not in chosen]
    kept = data.draw(st.lists(st.sampled_from(others), unique=True, max_size=2)) if others else []
    request = Request(
        "nnx",
        collections=told(training),
        params_only=data.draw(st.booleans()),
        drop=tuple(PathGlob(text) for text in texts(chosen)),
        keep=tuple(PathGlob(text) for text in texts(kept)),
    )
    plan = make_plan(tree, request)
    empty = [path for path in tree if path not in full(tree)]
    used = [held.source for step in plan.steps for held in step.sources]
    gone = [drop.source for drop in plan.drops]
    assert [problem for problem in plan.problems if used or "nothing is left" not in problem] == []
    assert sorted(path for path in [*used, *gone] if path not in empty) == sorted(full(tree))
    assert set(chosen) <= set(gone)
    assert not set(kept) & set(gone)


@some
@given(bundled_trainings(), SUFFIXES)
def test_linen_to_nnx_and_back_is_the_identity(bundled: tuple[Training, Any], suffix: Any):
    training, bundle = bundled
    source = linen_tree(training)
    request = Request("nnx", nnx_style=STYLES[suffix], nnx_bundle=bundle, collections=told(training))
    there = make_plan(source, request)
    assert there.problems == ()
    back = make_plan(there.tree(), Request("linen", collections=told(training)))
    assert back.problems == back.drops == ()
    assert_same(back.tree(), contents(source))


@some
@given(bundled_trainings(), SUFFIXES)
def test_nnx_to_linen_and_back_is_the_identity(bundled: tuple[Training, Any], suffix: Any):
    training, bundle = bundled
    source = nnx_tree(training, suffix, *PLACES[bundle])
    there = make_plan(source, Request("linen", collections=told(training)))
    assert there.problems == ()
    request = Request("nnx", nnx_style=STYLES[suffix], nnx_bundle=bundle, collections=told(training))
    back = make_plan(there.tree(), request)
    assert back.problems == back.drops == ()
    dropped = {format_path((*drop.source, suffix) if suffix else drop.source) for drop in there.drops}
    wanted = {path: value for path, value in contents(source).items() if path not in dropped}
    assert_same(back.tree(), wanted)


@some
@given(trainings(), SUFFIXES)
def test_random_state_survives_the_round_trip_where_it_is_kept(training: Training, suffix: Any):
    source = nnx_tree(training, suffix, *PLACES["dict"])
    keep = (PathGlob("**/rngs/*"),)
    there = make_plan(source, Request("linen", collections=told(training), keep=keep))
    assert there.problems == there.drops == ()
    request = Request("nnx", nnx_style=STYLES[suffix], collections=(*told(training), *_rng_collections()), keep=keep)
    back = make_plan(there.tree(), request)
    assert back.problems == back.drops == ()
    assert_same(back.tree(), contents(source))


def _rng_collections() -> tuple[tuple[PathGlob, str], ...]:
    return tuple((PathGlob(f"**/rngs/{name}"), kind) for name, kind in (("key", "RngKey"), ("count", "RngCount")))


@some
@given(trainings(), SUFFIXES, st.sampled_from(["tuple", "model-and-optimizer"]))
@example(Training({("up", "kernel"): np.ones(2)}, {}, {}, {(("epoch",), ()): 3}, 5), "value", "tuple")
@example(Training({("up", "kernel"): np.ones(2)}, {}, {}, {(("epoch",), ()): 3}, 5), None, "model-and-optimizer")
def test_what_has_no_place_in_a_bundle_is_refused_or_comes_back(training: Training, suffix: Any, bundle: Any):
    """An ``nnx.ModelAndOptimizer`` and a pair of states know no extra fields."""
    source = linen_tree(training)
    request = Request("nnx", nnx_style=STYLES[suffix], nnx_bundle=bundle, collections=told(training))
    there = make_plan(source, request)
    if there.problems:
        assert training.extras
        return
    back = make_plan(there.tree(), Request("linen", collections=told(training)))
    assert back.problems == back.drops == ()
    assert_same(back.tree(), contents(source))


@some
@given(trainings())
def test_a_plan_is_the_same_every_time(training: Training):
    request = Request("nnx", collections=told(training))
    first, second = (make_plan(linen_tree(training), request) for _ in range(2))
    assert first.to_json() == second.to_json()
    assert first.text() == second.text()
