"""Rule files that cannot be read or do not fit, and losses that only the values show."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import serialization

from converter.formats import open_checkpoint
from converter.tree import LazyLeaf, Tree

ODD = Path(__file__).parent / "odd_models.py"

RULE = '[[rule]]\nlinen = "params/{leaf:kernel|bias}"\nnnx = "{leaf}"\n'


@pytest.fixture
def linen_dense(checkpoints: Path) -> Path:
    return checkpoints / "linen_dense_standard/checkpoint"


@pytest.fixture
def unlike(fixtures_dir: Path) -> str:
    return str(fixtures_dir / "unlike.py")


@pytest.fixture
def rules(tmp_path: Path) -> Any:
    """Writes a rule file and gives the option that names it."""

    def write(text: str | bytes) -> tuple[str, str]:
        (tmp_path / "map.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return "--rules", "map.toml"

    return write


# Files ---------------------------------------------------------------------------------------------------------------


def test_the_rules_of_these_tests_are_right(linen_dense: Path, rules: Any, cli: Any) -> None:
    """Each of them is broken below in one place."""
    assert cli("linen-to-nnx", linen_dense, "out", *rules(RULE)).code == 0


@pytest.mark.parametrize("command", ["linen-to-nnx", "verify"])
@pytest.mark.parametrize(
    ("text", "mentions"),
    [
        (RULE + "nnx\n", ("map.toml, line 4, column 4", "no TOML")),
        (RULE + 'default = "auto"\n', ("map.toml, line 4", "'default'")),
        ('default = "guess"\n' + RULE, ("map.toml, line 1, column 11", "'guess'")),
        (RULE.replace("nnx =", "nxx ="), ("map.toml, line 3, column 1", "'nxx'", "linen, nnx")),
        (RULE.replace("{leaf}", "{leaf"), ("map.toml, line 3, column 8", "not closed")),
        (RULE + 'to_nnx = ["transposed"]\n', ("map.toml, line 4, column 12", "transposed")),
        (RULE + 'to_nnx = ["stack i, axis=0"]\n', ("map.toml, line 4, column", "'i'")),
        (RULE.replace("{leaf}", "leaf"), ("map.toml, line 2", "'leaf'")),
        (RULE + 'drop = "both"\n', ("map.toml, line", "drop")),
        (b"\xff\xfe", ("map.toml", "UTF-8")),
    ],
)
def test_a_file_that_cannot_be_read(
    command: str, text: Any, mentions: Any, linen_dense: Path, checkpoints: Path, rules: Any, refuses: Any
) -> None:
    """Whatever is wrong in the file is told with its place, before any checkpoint is looked at closely."""
    other = checkpoints / "nnx_dense_standard/checkpoint" if command == "verify" else "out"
    refuses(2, command, linen_dense, other, *rules(text), mentions=mentions)


@pytest.mark.parametrize(("name", "words"), [("missing.toml", "no such file"), (".", "is a directory")])
def test_a_file_that_is_none(name: str, words: str, linen_dense: Path, refuses: Any) -> None:
    refuses(2, "linen-to-nnx", linen_dense, "out", "--rules", name, mentions=(words, name))


# Rules that do not fit the checkpoint --------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    ("text", "mentions"),
    [
        ("", ("2 problems", "params/bias: float32[3], no rule covers it", 'default = "auto"')),
        (
            RULE + '[[rule]]\nlinen = "params/kernel"\nnnx = "kernel"\n',
            ("1 problem", "params/kernel: matches 2 rules", "map.toml, line 1", "map.toml, line 4"),
        ),
        (
            RULE + '[[rule]]\nlinen = "params/scale"\ndrop = "unused"\n',
            ("1 problem", "map.toml, line 4: the rule matches nothing in the checkpoint (params/scale)"),
        ),
        (
            '[[rule]]\nlinen = "params/bias"\nnnx = "same"\n[[rule]]\nlinen = "params/kernel"\nnnx = "same"\n',
            ("same: made 2 times, by map.toml, line 1 and map.toml, line 4",),
        ),
        (
            RULE + 'to_nnx = ["rearrange (h k) d -> h k d, h=3"]\n',
            ("params/kernel", "map.toml, line 1", "float32[4,3]", "h=3"),
        ),
    ],
)
def test_rules_that_do_not_fit(
    more: tuple[str, ...], text: str, mentions: Any, linen_dense: Path, rules: Any, refuses: Any
) -> None:
    refuses(3, "linen-to-nnx", linen_dense, "new/out", *rules(text), *more, mentions=("refused", *mentions))


def test_a_refusal_names_the_checkpoint(linen_dense: Path, rules: Any, refuses: Any) -> None:
    """Of several conversions in a script it tells which one failed."""
    error = refuses(3, "linen-to-nnx", linen_dense, "out", *rules(""))
    assert error.startswith(f"error: {linen_dense}: ")


def test_shapes_of_the_model_count(linen_dense: Path, rules: Any, refuses: Any) -> None:
    refuses(
        *(3, "linen-to-nnx", linen_dense, "out", *rules(RULE), "--nnx-model", f"{ODD}:nnx_wider"),
        mentions=("expected float32[4,5]", "found float32[4,3]", "map.toml, line 1"),
    )


def test_a_rule_without_a_way_back(checkpoints: Path, rules: Any, refuses: Any, cli: Any) -> None:
    """It serves in one direction, where the plan says what it does, and is refused in the other."""
    half = '[[rule]]\nlinen = "params/kernel"\nnnx = "kernel"\nto_nnx = ["select 0:2, axis=0"]\n'
    option = rules(half + '[[rule]]\nlinen = "params/bias"\nnnx = "bias"\n')
    result = cli("linen-to-nnx", checkpoints / "linen_dense_standard/checkpoint", "there", *option)
    assert result.code == 0
    assert "operation  select 0:2, axis 0  1 leaf" in result.out
    refuses(
        *(3, "nnx-to-linen", checkpoints / "nnx_dense_standard/checkpoint", "back", *option),
        mentions=("1 problem", "map.toml, line 1: the rule has no way to Linen", "select 0:2"),
    )


def test_json_tells_what_is_wrong_with_rules(linen_dense: Path, rules: Any, cli: Any) -> None:
    result = cli("linen-to-nnx", linen_dense, "out", *rules(""), "--json")
    told = json.loads(result.out)
    assert (result.code, told["ok"], told["error"]["exit_code"]) == (3, False, 3)
    assert [problem.split(":")[0] for problem in told["plan"]["problems"]] == ["params/bias", "params/kernel"]
    result = cli("linen-to-nnx", linen_dense, "out", *rules("[["), "--json")
    told = json.loads(result.out)
    assert (result.code, told["ok"], told["error"]["exit_code"]) == (2, False, 2)
    assert "map.toml, line 1" in told["error"]["message"]


@pytest.mark.parametrize("side", ["linen", "nnx"])
def test_rules_and_the_checkpoints_own_model(side: str, checkpoints: Path, unlike: str, cli: Any) -> None:
    """What rules speak of is not missing from the checkpoint."""
    rules = ("--rules", checkpoints.parent / "rules/vit.toml")
    source = {"linen": "linen_vit_msgpack/checkpoint.msgpack", "nnx": "nnx_vit_standard/checkpoint"}[side]
    command = {"linen": "linen-to-nnx", "nnx": "nnx-to-linen"}[side]
    models = (f"--{side}-model", f"{unlike}:{side}_vit", "--inputs", f"{unlike}:vit_inputs")
    result = cli(command, checkpoints / source, "out", *rules, *models)
    assert result.code == 0
    assert "not in the checkpoint" not in result.out


# What only values show -----------------------------------------------------------------------------------------------


@pytest.fixture
def trained_gru(checkpoints: Path) -> Path:
    return checkpoints / "linen_recurrent_trained_msgpack/checkpoint.msgpack"


LOST = "params/gru/cell/hn/bias: float32[6]: nnx.GRUCell has no bias in its hidden-to-hidden layers"


@pytest.mark.parametrize("name", ["out", "new/out.msgpack"])
@pytest.mark.parametrize("more", [(), ("--json",), ("--no-verify",)])
def test_a_bias_that_nnx_has_no_place_for(
    name: str, more: tuple[str, ...], trained_gru: Path, unlike: str, refuses: Any
) -> None:
    refuses(
        *(3, "linen-to-nnx", trained_gru, name, "--nnx-model", f"{unlike}:nnx_recurrent", *more),
        mentions=("1 problem", LOST, "not all its values are 0", "--allow-lossy"),
    )


@pytest.mark.parametrize("json_too", [False, True])
def test_a_plan_tells_its_conditions(json_too: bool, trained_gru: Path, unlike: str, cli: Any) -> None:
    options = ("--nnx-model", f"{unlike}:nnx_recurrent", "--dry-run")
    result = cli("linen-to-nnx", trained_gru, "out", *options, *["--json"] * json_too)
    assert result.code == 0
    if json_too:
        wanted = {"sources": ["params/gru/cell/hn/bias"], "demand": "all values are 0"}
        assert json.loads(result.out)["conditions"] == [wanted]
        result = cli("linen-to-nnx", trained_gru, "out", *options, "--json", "--allow-lossy")
        assert json.loads(result.out)["conditions"] == []
    else:
        assert re.search(r"condition, .*:\n  params/gru/cell/hn/bias  all values are 0\n", result.out + "\n")
        assert re.search(r"dropped:\n  params/gru/cell/hn/bias .* nnx.GRUCell has no bias", result.out)


def test_what_is_lost_is_listed(trained_gru: Path, unlike: str, cli: Any) -> None:
    options = ("--nnx-model", f"{unlike}:nnx_recurrent", "--allow-lossy")
    result = cli("linen-to-nnx", trained_gru, "out", *options)
    assert result.code == 0
    assert re.search(r"dropped +params/gru/cell/hn/bias .*\(--allow-lossy\)\n", result.out)
    assert cli("verify", trained_gru, "out", *options).code == 0
    assert cli("verify", trained_gru, "out", *options[:-1]).code == 3


def test_a_dry_run_reads_no_array(
    trained_gru: Path, unlike: str, cli: Any, monkeypatch: pytest.MonkeyPatch, rules: Any
) -> None:
    """Neither those that conditions are about, nor any other."""

    def read(*_: Any) -> Any:
        raise AssertionError("an array was read")

    def opened(*arguments: Any, **options: Any) -> Any:
        checkpoint = open_checkpoint(*arguments, **options)
        sealed = Tree((path, LazyLeaf(leaf.spec, read, leaf.grid)) for path, leaf in checkpoint.tree.items())
        return dataclasses.replace(checkpoint, tree=sealed)

    for options in (("--nnx-model", f"{unlike}:nnx_recurrent"), rules('default = "auto"\n')):
        before = cli("linen-to-nnx", trained_gru, "out", *options, "--dry-run")
        with monkeypatch.context() as patch:
            patch.setattr("converter.opening.open_checkpoint", opened)
            patch.setattr("converter.formats.chunks._Files.read", read)
            assert cli("linen-to-nnx", trained_gru, "out", *options, "--dry-run") == before
            assert cli("linen-to-nnx", trained_gru, "out", *options).code == 70
        assert before.code == 0


def untied(equal: bool) -> dict[str, Any]:
    """What ``nnx_untied`` holds; the output layer may or may not be the transposed embedding."""
    embedding = np.arange(28, dtype=np.float32).reshape(7, 4)
    dense = {"kernel": np.eye(4, dtype=np.float32), "bias": np.ones(4, np.float32)}
    head = embedding.T.copy() if equal else embedding.T + 1
    return {"embed": {"embedding": embedding}, "dense": dense, "head": {"kernel": head}}


BOTH = ("--nnx-model", f"{ODD}:nnx_untied", "--linen-model", f"{ODD}:linen_tied", "--input", "int32[2,3]")


def test_weights_that_are_tied_on_the_other_side(refuses: Any, cli: Any, tmp_path: Path) -> None:
    (tmp_path / "equal.msgpack").write_bytes(serialization.msgpack_serialize(untied(True)))
    (tmp_path / "other.msgpack").write_bytes(serialization.msgpack_serialize(untied(False)))
    result = cli("nnx-to-linen", "equal.msgpack", "out", *BOTH)
    assert result.code == 0, result.err
    assert "all of them hold the same values" in result.out
    refuses(
        *(3, "nnx-to-linen", "other.msgpack", "never", *BOTH),
        mentions=("embed/embedding", "head/kernel", "do not hold the same values", "--allow-lossy"),
    )
    # Outputs are compared as always, and now they differ.
    refuses(1, "nnx-to-linen", "other.msgpack", "never", *BOTH, "--allow-lossy", mentions="outputs    DIFFERENT")
    assert cli("nnx-to-linen", "other.msgpack", "lossy", *BOTH, "--allow-lossy", "--no-verify").code == 0
