"""Checkpoints whose variables differ between the frameworks: with rules, with models, with a template.

The fixtures hold the same values on both sides, translated by hand in fixtures/unlike_trees.py. Whatever tells the
converter which variable is which, it has to arrive at the leaves of the other side.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax.training import train_state

import converter
from converter.errors import ConversionRefused
from fixtures import make
from fixtures.models import adamw_schedule
from fixtures.unlike import UNLIKE

from . import support
from .support import Leaves

RULES = make.CHECKPOINTS.parent / "rules"
CARDS = {path.parent.name: json.loads(path.read_text()) for path in sorted(make.CHECKPOINTS.glob("*/card.json"))}


class Case(NamedTuple):
    """A checkpoint of each framework with the same values; the rule file that says how, and the models of both."""

    linen: str
    nnx: str
    rules: str = ""
    linen_model: str = ""
    nnx_model: str = ""

    def __str__(self) -> str:
        return f"{self.linen}-{self.nnx}"

    def root(self, framework: str) -> Path:
        name = getattr(self, framework)
        return Path(make.CHECKPOINTS / name / CARDS[name]["root"])

    def models(self, *sides: str) -> dict[str, Any]:
        linen = UNLIKE[self.linen_model]
        both = {"nnx_model": UNLIKE[self.nnx_model].nnx, "linen_model": linen.linen, "inputs": linen.inputs}
        return {name: both[name] for name in sides}

    def expected(self, framework: str) -> Leaves:
        """The leaves of this side, without random state."""
        leaves = support.full(support.flat(CARDS[getattr(self, framework)]["leaves"]))
        return {path: leaf for path, leaf in leaves.items() if "rngs/" not in path}


def _maxtext() -> Iterator[Case]:
    for linen in ("scanned", "unscanned"):
        for nnx_side, target in (("unscanned", "list"), ("scanned", "scanned")):
            yield Case(
                f"linen_maxtext_{linen}_standard",
                f"nnx_maxtext_{nnx_side}_standard",
                f"maxtext_{linen}_to_{target}.toml",
                f"maxtext_{linen}",
                f"maxtext_{nnx_side}",
            )


MAXTEXT = list(_maxtext())
VIT = Case("linen_vit_msgpack", "nnx_vit_standard", "vit.toml", "vit", "vit")
LAYERS = [
    Case(f"linen_{model}_standard", f"nnx_{model}_standard", "", model, model) for model in ("recurrent", "normalised")
]


def both_ways(*cases: Case, quick: tuple[int, ...]) -> pytest.MarkDecorator:
    """Every case to both frameworks. Those of MaxText are much alike: only the numbered tests of theirs are quick."""
    every = [(case, to) for case in cases for to in OTHER]
    slow = [case in MAXTEXT and number not in quick for number, (case, _) in enumerate(every)]
    marked = [pytest.param(*each, marks=[pytest.mark.slow] * late) for each, late in zip(every, slow, strict=True)]
    return pytest.mark.parametrize(("case", "to"), marked, ids=[f"{case}-{to}" for case, to in every])


BOTH = ("nnx_model", "linen_model", "inputs")
OTHER = {"linen": "nnx", "nnx": "linen"}


def check(case: Case, to: str, destination: Path, **options: Any) -> converter.Report:
    """Converts the one side and compares with the other, which was saved by its own framework."""
    source = case.root(OTHER[to])
    if to == "linen" and case in MAXTEXT and "like" not in options:
        options["optimizer"] = adamw_schedule
    report = support.convert(source, destination, to, **options)
    found = {path: leaf for path, leaf in support.full(support.read(destination)).items() if "rngs/" not in path}
    expected = case.expected(to)
    if "like" not in options:
        expected = _with_todays_scales(_usual(expected)) if "nnx_model" in options else _usual(expected)
    support.assert_equal(found, expected)
    support.assert_nothing_vanishes(support.flat(CARDS[getattr(case, OTHER[to])]["leaves"]), report.plan)
    said = {name: value for name, value in options.items() if not name.endswith("_style")}
    if "nnx_model" not in options:  # with models, running them once more would show nothing new
        assert converter.verify(source, destination, **said).ok
    assert converter.verify(source, case.root(to), **said).ok
    return report


def _usual(leaves: Leaves) -> Leaves:
    """The usual layout of a train state, without a level ``params`` inside ``params``."""
    moved = {re.sub(r"^(params|opt_state/\d+/\w+)/params/", r"\1/", path): leaf for path, leaf in leaves.items()}
    assert len(moved) == len(leaves)
    return moved


def _with_todays_scales(leaves: Leaves) -> Leaves:
    """The scales of WeightNorm are plain arrays, without ``value``, in the fixtures; since flax 0.12.9 Variables."""
    norm = nnx.WeightNorm(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))
    if not isinstance(next(iter(norm.scales.values())), nnx.Variable):
        return leaves
    return {f"{path}/value" if "/scales/(" in path and path[-1] == ")" else path: v for path, v in leaves.items()}


def test_every_rule_file_has_a_test() -> None:
    assert {path.name for path in RULES.iterdir()} == {case.rules for case in (*MAXTEXT, VIT)}


# Rules alone ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["orbax", "msgpack"])
@pytest.mark.parametrize("to", ["linen", "nnx"])
@pytest.mark.parametrize("case", [*MAXTEXT, VIT], ids=str)
def test_rules_alone(case: Case, to: str, format: str, tmp_path: Path) -> None:
    """No model: the rules are all that is known."""
    style = {"nnx_style": "state"} if to == "nnx" else {"linen_style": "params"} if case is VIT else {}
    check(case, to, tmp_path / "out", to_format=format, rules=RULES / case.rules, **style)


@pytest.mark.parametrize("case", [*MAXTEXT, VIT], ids=str)
def test_there_and_back_by_rules(case: Case, tmp_path: Path) -> None:
    """Every operation of the files undoes itself; the moments of the optimizer follow."""
    options = {"rules": RULES / case.rules, "to_format": "msgpack"}
    support.convert(case.root("linen"), tmp_path / "there", "nnx", **options)
    optimizer = {} if case is VIT else {"optimizer": adamw_schedule}
    style = {"linen_style": "params"} if case is VIT else {}
    report = support.convert(tmp_path / "there", tmp_path / "back", "linen", **options, **optimizer, **style)
    support.assert_equal(support.read(tmp_path / "back"), _usual(case.expected("linen")))
    assert not report.plan.drops
    assert not report.plan.filled


@both_ways(*MAXTEXT, VIT, quick=(0, 7))
def test_rules_and_both_models(case: Case, to: str, tmp_path: Path) -> None:
    """The outputs prove that the rule files say the truth."""
    style = {"linen_style": "params"} if case is VIT and to == "linen" else {}
    report = check(case, to, tmp_path / "out", rules=RULES / case.rules, **case.models(*BOTH), **style)
    assert report.outputs is not None
    assert report.outputs.ok
    assert not any("not in the checkpoint" in note for note in report.plan.notes)


def test_a_rule_file_with_a_mistake_is_found_out_by_the_outputs(tmp_path: Path) -> None:
    """Heads that are counted in the other order fit in shape only."""
    text = (RULES / "vit.toml").read_text()
    wrong = text.replace("rearrange d (h k) -> d h k, h=2", "rearrange d (k h) -> d h k, h=2")
    assert wrong != text
    with pytest.raises(converter.VerificationFailed, match="outputs    DIFFERENT"):
        support.convert(VIT.root("linen"), tmp_path / "out", "nnx", rules=wrong, **VIT.models(*BOTH))


# Models alone --------------------------------------------------------------------------------------------------------


@both_ways(*MAXTEXT, *LAYERS, quick=(1, 7))
def test_both_models(case: Case, to: str, tmp_path: Path) -> None:
    report = check(case, to, tmp_path / "out", **case.models(*BOTH))
    assert report.outputs is not None
    assert report.outputs.ok


@pytest.mark.parametrize("case", [case for case in MAXTEXT if case.linen_model != case.nnx_model], ids=str)
def test_loops_and_scans_need_one_model(case: Case, tmp_path: Path) -> None:
    """Item numbers tell the layers and the shapes of these models tell the axis."""
    check(case, "nnx", tmp_path / "nnx", **case.models("nnx_model"))
    check(case, "linen", tmp_path / "linen", **case.models("linen_model", "inputs"))


@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_layers_need_the_nnx_model_alone(case: Case, tmp_path: Path) -> None:
    """It tells which cells fuse their gates, in both directions."""
    check(case, "nnx", tmp_path / "nnx", **case.models("nnx_model"))
    check(case, "linen", tmp_path / "linen", **case.models("nnx_model"))


def test_weight_normalisation_is_told_by_its_keys(tmp_path: Path) -> None:
    """No model at all: tuples give it away, and with it the collection; slashes do on the way back."""
    (case,) = (case for case in LAYERS if "normalised" in case.linen)
    check(case, "linen", tmp_path / "there")
    support.convert(tmp_path / "there", tmp_path / "back", "nnx", to_format="msgpack")
    expected = {path.removesuffix("/value"): leaf for path, leaf in case.expected("nnx").items()}
    support.assert_equal(support.read(tmp_path / "back"), expected)


@pytest.mark.parametrize("case", [*LAYERS, VIT], ids=str)
def test_the_result_restores_into_the_model(case: Case, tmp_path: Path) -> None:
    """Arrays that are no Variables (scales of WeightNorm before flax 0.12.9) included."""
    rules = {"rules": RULES / case.rules} if case.rules else {}
    support.convert(case.root("linen"), tmp_path / "out", "nnx", **case.models("nnx_model"), **rules)
    module = UNLIKE[case.nnx_model].nnx()
    with ocp.StandardCheckpointer() as checkpointer:
        nnx.update(module, checkpointer.restore(tmp_path / "out", nnx.state(module)))
    pair = UNLIKE[case.linen_model]
    linen = support.restored(case.root("linen"))
    expected = pair.linen().apply({"params": linen} if case is VIT else linen, *pair.inputs())
    np.testing.assert_allclose(module(*pair.inputs()), expected, rtol=1e-4, atol=1e-5)


def test_the_result_restores_into_a_nested_train_state(tmp_path: Path) -> None:
    """MaxText's, with the collection below ``params``: the template says so."""
    case = next(case for case in MAXTEXT if case.rules == "maxtext_scanned_to_list.toml")
    support.convert(case.root("nnx"), tmp_path / "out", "linen", like=case.root("linen"))
    pair = UNLIKE[case.linen_model]

    def made() -> train_state.TrainState:
        variables = pair.linen().init(jax.random.key(0), *pair.inputs())
        return train_state.TrainState.create(apply_fn=None, params=variables, tx=adamw_schedule())

    state = jax.eval_shape(made)
    with ocp.StandardCheckpointer() as checkpointer:
        restored, saved = (checkpointer.restore(path, state) for path in (tmp_path / "out", case.root("linen")))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, saved)


# Templates -----------------------------------------------------------------------------------------------------------

ANOTHER_AXIS = next(case for case in MAXTEXT if case.rules == "maxtext_scanned_to_scanned.toml")


@pytest.mark.parametrize("to", ["linen", "nnx"])
@pytest.mark.parametrize("case", [*(case for case in MAXTEXT if case != ANOTHER_AXIS), *LAYERS], ids=str)
def test_like_the_other_side(case: Case, to: str, tmp_path: Path) -> None:
    """The other side is the template too: names, shapes and layout come out as there."""
    check(case, to, tmp_path / "out", like=case.root(to))


@pytest.mark.parametrize("to", ["linen", "nnx"])
@pytest.mark.parametrize("case", [ANOTHER_AXIS, VIT], ids=str)
def test_a_template_and_rules(case: Case, to: str, tmp_path: Path) -> None:
    """What shapes and names cannot tell is refused without rules, and with them comes out in the template's layout."""
    with pytest.raises(ConversionRefused, match="--like"):
        support.convert(case.root(OTHER[to]), tmp_path / "out", to, like=case.root(to))
    check(case, to, tmp_path / "out", like=case.root(to), rules=RULES / case.rules)


# The fixtures themselves ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("case", [*MAXTEXT[:3], VIT, *LAYERS], ids=str)
def test_both_sides_of_the_fixtures_compute_the_same(case: Case) -> None:
    """As saved, restored by the libraries alone: the translation by hand is right. For MaxText's fourth it follows."""
    linen, nnx_side = (support.restored(case.root(side)) for side in ("linen", "nnx"))
    pair = UNLIKE[case.linen_model]
    variables = linen["params"] if "maxtext" in case.linen else {"params": linen} if case is VIT else linen
    expected = pair.linen().apply(variables, *pair.inputs())
    module = UNLIKE[case.nnx_model].nnx()
    saved = nnx_side["model"] if "maxtext" in case.nnx else nnx_side
    state = nnx.state(module)
    for path, leaf in nnx.to_flat_state(state):
        if "rngs" in path:
            continue
        value = saved
        for key in path:
            value = value[str(key)]
        array = jnp.asarray(value["value"] if isinstance(value, dict) else value)
        nnx.update(module, nnx.from_flat_state([(path, leaf.replace(array) if hasattr(leaf, "replace") else array)]))
    np.testing.assert_allclose(module(*pair.inputs()), expected, rtol=1e-4, atol=1e-5)
