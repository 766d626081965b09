"""The alignment suite: every leaf right, none wrong, whatever variables are called and in which order they stand."""

from __future__ import annotations

import numpy as np
import pytest

from converter.rules.align.alignment import searched
from converter.rules.align.confidence import Confidence
from converter.rules.align.rule_text import rules_of
from converter.rules.language.rule_file import read_rules
from converter.rules.link import Link, format_name
from converter.rules.ruled.apply import apply_rules
from converter.tree import LeafKind, LeafSpec
from tests.parity import test_parity
from tests.rules.align.judging import judged, models_of
from tests.rules.align.models import PAIRS

SUITE = {pair.name: pair for pair in PAIRS}
LAYERS = {pair.name: pair for pair in test_parity.PAIRS if pair.init_inputs is None}
SLOW = {"decoder", "encoder_fused_phd", "encoder_separate", "encoder_scanned", "experts", "patches"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in SUITE])
def test_the_suite_is_aligned_and_proved(name: str):
    found = judged(SUITE[name])
    assert found.wrong == ()
    assert found.accepted, found.alignment.problems
    assert found.right == found.leaves
    assert {aligned.confidence for aligned in found.alignment.found} <= {Confidence.EXACT, Confidence.TRACED}


@pytest.mark.parametrize("name", SUITE)
@pytest.mark.parametrize("seed", [1, 2])
def test_neither_names_nor_order_matter(name: str, seed: int):
    found = judged(SUITE[name], seed=seed, proved=False)
    assert found.wrong == ()
    assert not found.alignment.problems
    assert found.right == found.leaves


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if place % 3 else ()) for place, n in enumerate(LAYERS)]
)
def test_no_pair_of_the_parity_suite_is_aligned_wrongly(name: str):
    """Without running the models, so that nothing wrong is filtered out."""
    found = judged(LAYERS[name], seed=3, proved=False)
    assert found.wrong == ()


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_the_parity_suite_is_aligned_and_proved(name: str):
    found = judged(LAYERS[name])
    assert found.wrong == ()
    assert found.accepted, found.alignment.problems


@pytest.mark.parametrize("name", SUITE)
def test_the_rules_say_the_same_in_both_directions(name: str):
    pair = SUITE[name]
    linen, nnx, _ = models_of(pair)
    specs = searched(linen), searched(nnx)
    found = judged(pair, proved=False).alignment.found
    rules, unstated = rules_of(found, specs)
    assert unstated == []
    read = read_rules("\n".join(rule.text for rule in rules))
    forward, rest = apply_rules(read, "nnx", specs[0], specs[1])
    back, other = apply_rules(read, "linen", specs[1], specs[0])
    assert [forward.problems, back.problems, rest, other] == [[], [], {}, {}]
    values = {
        n: np.arange(spec.size).reshape(spec.shape) + 10_000 * at for at, (n, spec) in enumerate(specs[0].items())
    }
    made = applied(forward.links, values)
    for aligned in found:
        wanted = applied([Link(aligned.piece.linen, aligned.piece.nnx, aligned.piece.to_nnx)], values)
        for target, value in wanted.items():
            assert np.array_equal(made[target], value), format_name(target)
    returned = applied(back.links, made)
    assert all(np.array_equal(returned[source], value) for source, value in values.items())


def applied(links, values):
    results = {}
    for link in links:
        sources = [values[source] for source in link.sources]
        specs = [LeafSpec(LeafKind.ARRAY, "int64", source.shape) for source in sources]
        results |= dict(zip(link.targets, link.operation.apply(sources, specs), strict=True))
    return results
