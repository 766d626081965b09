"""Options that cannot be read, code that cannot be run, and conversions that would lose something."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx, serialization

ODD = Path(__file__).parent / "odd_models.py"
INPUT = ("--input", "float32[2,4]")


@pytest.fixture
def cli(cli: Any) -> Any:
    """As everywhere, with ``ODD:name`` for the factories in odd_models.py."""
    return lambda *arguments: cli(*(str(argument).replace("ODD:", f"{ODD}:") for argument in arguments))


@pytest.fixture
def nnx_dense(checkpoints: Path) -> Path:
    return checkpoints / "nnx_dense_standard/checkpoint"


@pytest.fixture
def both(models: str) -> tuple[str, ...]:
    return ("--nnx-model", f"{models}:nnx_dense", "--linen-model", f"{models}:linen_dense")


def save(path: Path, variables: Mapping[str, Any]) -> None:
    path.write_bytes(serialization.msgpack_serialize(variables))


# What the commands do not know ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "mentions"),
    [
        (("convert", "a", "b"), "'convert'"),
        (("--verbose",), "--verbose"),
        (("inspect",), "CKPT"),
        (("verify", "a"), "DST"),
        (("inspect", "a", "b"), "(b)"),
        (("nnx-to-linen", "a", "b", "--nnx-style", "pure"), "--nnx-style"),
        (("linen-to-nnx", "a", "b", "--optimizer", "a:b"), "--optimizer"),
        (("verify", "a", "b", "--dry-run"), "--dry-run"),
        (("linen-to-nnx", "a", "b", "--nnx-bundle", "list"), ("--nnx-bundle", "'list'", "'model-and-optimizer'")),
        (("nnx-to-linen", "a", "b", "--verify", "twice"), ("--verify", "'twice'", "'quick'", "'full'")),
        (("inspect", "a", "--step", "three"), ("--step", "'three'", "integer")),
        (("verify", "a", "b", "--drop"), ("--drop", "argument")),
        (("demo", "--quiet=yes"), "--quiet"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], mentions: Any, refuses: Any) -> None:
    command = "" if arguments[0] in ("convert", "--verbose") else f" {arguments[0]}"
    usage = (f"Usage: flax-convert{command} [OPTIONS]", f"Try 'flax-convert{command} -h' for help.")
    refuses(2, *arguments, mentions=(*([mentions] if isinstance(mentions, str) else mentions), *usage))


def test_no_arguments_at_all(cli: Any) -> None:
    result = cli()
    assert (result.code, result.err) == (2, "")
    assert result.out == cli("--help").out


# What a SPEC names ---------------------------------------------------------------------------------------------------

UNREADABLE_SPECS = ("models", "models.py", ":factory", "models.py:", ":", "")

SPEC_OPTIONS = ("--nnx-model", "--linen-model", "--optimizer", "--inputs")


@pytest.mark.parametrize("option", SPEC_OPTIONS)
@pytest.mark.parametrize("spec", UNREADABLE_SPECS)
def test_a_spec_of_another_form(option: str, spec: str, nnx_dense: Path, refuses: Any) -> None:
    refuses(2, "nnx-to-linen", nnx_dense, "out", option, spec, mentions=(repr(spec), "file.py:factory"))


@pytest.mark.parametrize("option", SPEC_OPTIONS)
@pytest.mark.parametrize(
    ("spec", "mentions"),
    [
        ("missing.py:factory", ("missing.py", "no such file")),
        ("no_such_module:factory", "No module named 'no_such_module'"),
        ("json:no_such_factory", ("json", "no_such_factory")),
        ("ODD:no_such_factory", ("odd_models.py", "no_such_factory")),
        ("ODD:NUMBER", ("NUMBER", "int")),
        ("ODD:raises", ("ValueError", "the weather is bad", "--debug")),
        ("ODD:needs_an_argument", ("TypeError", "'size'")),
        ("syntax.py:factory", ("syntax.py", "SyntaxError")),
        ("raising.py:factory", ("raising.py", "ZeroDivisionError")),
        ("package.module:factory", "No module named 'package'"),
    ],
)
def test_a_spec_that_fails(
    option: str, spec: str, mentions: Any, nnx_dense: Path, refuses: Any, tmp_path: Path
) -> None:
    (tmp_path / "syntax.py").write_text("def factory(:\n")
    (tmp_path / "raising.py").write_text("1 / 0\n")
    refuses(5, "nnx-to-linen", nnx_dense, "out", option, spec, *INPUT[: 2 * (option != "--inputs")], mentions=mentions)


@pytest.mark.parametrize("option", SPEC_OPTIONS)
@pytest.mark.parametrize("spec", ["ODD:leaves", "script.py:factory"])
def test_code_that_leaves_the_program(option: str, spec: str, nnx_dense: Path, refuses: Any, tmp_path: Path) -> None:
    """A script that parses its own arguments or calls ``sys.exit``: it must not decide the exit code."""
    (tmp_path / "script.py").write_text("import sys\n\ndef factory(): ...\n\nsys.exit(0)\n")
    words = ("SystemExit", "script.py" if "script" in spec else "leaves")
    refuses(5, "nnx-to-linen", nnx_dense, "out", option, spec, *INPUT[: 2 * (option != "--inputs")], mentions=words)


def test_a_long_error_of_the_users_code_is_cut(nnx_dense: Path, refuses: Any) -> None:
    error = refuses(5, "nnx-to-linen", nnx_dense, "out", "--nnx-model", "ODD:raises_at_length", mentions="line 0")
    assert len(error.splitlines()) < 15


def test_models_of_the_other_framework(nnx_dense: Path, models: str, refuses: Any) -> None:
    refuses(
        *(5, "nnx-to-linen", nnx_dense, "out", "--linen-model", f"{models}:nnx_dense", *INPUT),
        mentions=("expected a Linen module", "Linear", "--nnx-model"),
    )
    refuses(
        *(5, "nnx-to-linen", nnx_dense, "out", "--nnx-model", f"{models}:linen_dense"),
        mentions=("expected an nnx.Module", "Dense", "--linen-model"),
    )


@pytest.mark.parametrize(
    ("options", "mentions"),
    [
        (("--nnx-model", "ODD:nothing"), ("nnx.Module", "None")),
        (("--linen-model", "ODD:nothing", *INPUT), ("Linen module", "None")),
        (("--optimizer", "ODD:nothing"), ("optax.GradientTransformation", "None")),
        (("--optimizer", "ODD:nnx_wider"), ("optax.GradientTransformation", "Linear")),
        (("--optimizer", "ODD:linen_wider"), ("optimizer",)),
        (("--optimizer", "ODD:text"), ("optax.GradientTransformation", "str")),
    ],
)
def test_factories_that_return_something_else(
    options: tuple[str, ...], mentions: tuple[str, ...], checkpoints: Path, refuses: Any
) -> None:
    source = checkpoints / "nnx_mlp_model_optimizer_standard/checkpoint"
    refuses(5, "nnx-to-linen", source, "out", *options, mentions=mentions)


def test_an_optimizer_for_a_checkpoint_that_has_none(nnx_dense: Path, models: str, cli: Any) -> None:
    """It cannot be of use, which the user should hear of."""
    result = cli("nnx-to-linen", nnx_dense, "out", "--optimizer", f"{models}:adamw_schedule")
    assert "optimizer" in result.out + result.err


def test_another_optimizer(checkpoints: Path, models: str, refuses: Any) -> None:
    source = checkpoints / "nnx_mlp_model_optimizer_standard/checkpoint"
    for name, words in (("multi_steps", "opt_state/mini_step"), ("inject_hyperparams", "hyperparams")):
        refuses(
            *(3, "nnx-to-linen", source, "out", "--optimizer", f"{models}:{name}"),
            mentions=("refused", words, "not in the optimizer", "--optimizer"),
        )


@pytest.mark.parametrize(
    ("command", "name", "options"),
    [
        ("nnx-to-linen", "nnx_dense_standard", ("--nnx-model", "ODD:nnx_wider")),
        ("nnx-to-linen", "nnx_dense_standard", ("--linen-model", "ODD:linen_wider", *INPUT)),
        ("linen-to-nnx", "linen_dense_standard", ("--nnx-model", "ODD:nnx_wider")),
        ("linen-to-nnx", "linen_dense_standard", ("--linen-model", "ODD:linen_wider", *INPUT)),
    ],
)
def test_a_model_of_another_shape(
    command: str, name: str, options: tuple[str, ...], checkpoints: Path, refuses: Any
) -> None:
    refuses(
        *(3, command, checkpoints / name / "checkpoint", "out", *options),
        mentions=("2 problems", "params/kernel: expected float32[4,5]", "found float32[4,3]", "params/bias"),
    )


@pytest.mark.parametrize("side", ["nnx", "linen"])
@pytest.mark.parametrize(("command", "source"), [("nnx-to-linen", "nnx"), ("linen-to-nnx", "linen")])
def test_a_model_with_other_names(
    side: str, command: str, source: str, checkpoints: Path, models: str, refuses: Any
) -> None:
    refuses(
        *(3, command, checkpoints / f"{source}_dense_standard/checkpoint", "out"),
        *(f"--{side}-model", f"{models}:{side}_mlp", "--input", "float32[2,6]"),
        mentions=("refused", "kernel", "checkpoint", "model"),
    )


def test_a_linen_model_needs_inputs(nnx_dense: Path, models: str, refuses: Any) -> None:
    refuses(
        *(2, "nnx-to-linen", nnx_dense, "out", "--linen-model", f"{models}:linen_dense"),
        mentions=("inputs are missing", "--input"),
    )


# Inputs and arguments ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["", "float32", "float32[2,", "float32[-1]", "float32[2.5]", "floaty[2]", "object[2]", "[2]", "a:b"]
)
def test_an_input_that_cannot_be_read(text: str, both: tuple[str, ...], nnx_dense: Path, refuses: Any) -> None:
    refuses(2, "nnx-to-linen", nnx_dense, "out", *both, "--input", text, mentions=(repr(text), "float32"))


@pytest.mark.parametrize(
    ("options", "code", "mentions"),
    [
        ((*INPUT, *INPUT), 5, ("calling the Linen model", "initialising the Linen model", "TypeError")),
        (("--input", "float32[]"), 5, ("initialising the Linen model",)),
        (("--inputs", "ODD:bad_text"), 2, ("'float32'",)),
    ],
)
def test_inputs_that_do_not_fit_the_model(
    options: tuple[str, ...], code: int, mentions: tuple[str, ...], both: tuple[str, ...], nnx_dense: Path, refuses: Any
) -> None:
    error = refuses(code, "nnx-to-linen", nnx_dense, "out", *both, *options)
    assert any(words in error for words in mentions)


def test_an_input_of_another_width_blames_the_input(both: tuple[str, ...], nnx_dense: Path, refuses: Any) -> None:
    """The width of a Linen model comes from its input, which is then the most likely mistake."""
    error = refuses(3, "nnx-to-linen", nnx_dense, "out", *both, "--input", "float32[2,7]", mentions="float32[7,3]")
    assert "--input" in error


def test_an_input_that_no_memory_holds(both: tuple[str, ...], nnx_dense: Path, refuses: Any) -> None:
    """Most likely a typing error. An input so large that no machine can hold it."""
    refuses(
        *((2, 5), "nnx-to-linen", nnx_dense, "out", *both, "--input", "float32[10000000,10000000,4]"),
        mentions="float32[10000000,10000000,4]",
    )


def test_two_kinds_of_inputs(both: tuple[str, ...], nnx_dense: Path, models: str, refuses: Any) -> None:
    options = (*both, *INPUT, "--inputs", f"{models}:dense_inputs")
    refuses(2, "nnx-to-linen", nnx_dense, "out", *options, mentions=("--input and --inputs", "Use"))


@pytest.mark.parametrize("option", ["--linen-kwargs", "--nnx-kwargs"])
@pytest.mark.parametrize(
    "text", ["train", "train=", "train=yes", "**{}", "train=True)", "f(", "a=[1", "a=1; b=2", "1a=2", "a={[]: 1}"]
)
def test_keyword_arguments_that_cannot_be_read(option: str, text: str, nnx_dense: Path, refuses: Any) -> None:
    refuses(2, "nnx-to-linen", nnx_dense, "out", option, text, mentions=(repr(text), "train=False"))


@pytest.mark.parametrize(("option", "words"), [("--linen-kwargs", "Linen model"), ("--nnx-kwargs", "NNX model")])
def test_keyword_arguments_that_the_model_does_not_take(
    option: str, words: str, both: tuple[str, ...], nnx_dense: Path, refuses: Any
) -> None:
    refuses(
        *(5, "nnx-to-linen", nnx_dense, "new/out", *both, *INPUT, option, "speed=3"),
        mentions=(words, "unexpected keyword argument 'speed'"),
    )


@pytest.mark.parametrize("name", ["out", "new/out.msgpack"])
@pytest.mark.parametrize(
    ("factory", "words"),
    [("nnx_doubled", "output float32[2,3]: max abs difference"), ("nnx_paired", "different structures")],
)
def test_models_that_compute_something_else(
    factory: str, words: str, name: str, nnx_dense: Path, models: str, refuses: Any, cli: Any, tmp_path: Path
) -> None:
    options = ("--nnx-model", f"ODD:{factory}", "--linen-model", f"{models}:linen_dense", *INPUT)
    refuses(
        *(1, "nnx-to-linen", nnx_dense, name, *options),
        mentions=("outputs    DIFFERENT", words, "Nothing was kept", "--no-verify"),
    )
    assert cli("nnx-to-linen", nnx_dense, name, *options, "--no-verify").code == 0
    checked = cli("verify", nnx_dense, name, *options)
    assert checked.code == 1
    assert "outputs    DIFFERENT: both models run on float32[2,4]" in checked.out
    assert words in checked.out


def test_what_user_code_prints_does_not_spoil_the_json(nnx_dense: Path, cli: Any) -> None:
    result = cli("nnx-to-linen", nnx_dense, "out", "--nnx-model", "ODD:talkative", "--json")
    assert result.code == 0
    assert json.loads(result.out)["ok"]


# Patterns ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "params", "=params", "count=", "="])
def test_a_collection_that_cannot_be_read(text: str, checkpoints: Path, refuses: Any) -> None:
    source = checkpoints / "nnx_custom_standard/checkpoint"
    refuses(2, "nnx-to-linen", source, "out", "--collection", text, mentions=(repr(text), "PATTERN=NAME"))


DECIDED = ("--collection", "count=counter", "--collection", "mean=ema_stats")


def test_a_collection_that_matches_nothing(checkpoints: Path, refuses: Any) -> None:
    """Like every rule that is of no use: it is a typing error most of the time."""
    source = checkpoints / "nnx_custom_standard/checkpoint"
    refuses(3, "nnx-to-linen", source, "out", *DECIDED, "--collection", "cuont=counter", mentions="cuont")


def test_of_two_collections_the_first_counts(checkpoints: Path, cli: Any) -> None:
    source = checkpoints / "nnx_custom_standard/checkpoint"
    for second in "count", "*":
        place = f"out-{len(second)}"
        assert cli("nnx-to-linen", source, place, *DECIDED, "--collection", f"{second}=cache").code == 0
        assert "counter/count" in cli("inspect", place).out


@pytest.mark.parametrize("option", ["--drop", "--keep"])
@pytest.mark.parametrize(
    ("pattern", "code", "words"),
    [
        ("", 2, "empty pattern"),
        ("/", 2, "'/'"),
        ("params//kernel", 2, "'params//kernel'"),
        ("/params/kernel", 2, "'/params/kernel'"),
        ('"open/kernel', 2, '"open'),
        ("kernel", 3, "'kernel' matches no leaf"),
        ("params/kernels", 3, "'params/kernels' matches no leaf"),
        ("params", 3, "'params' matches no leaf"),
        ("Params/**", 3, "'Params/**' matches no leaf"),
        ("params/*/*", 3, "'params/*/*' matches no leaf"),
    ],
)
def test_patterns_that_match_nothing(
    option: str, pattern: str, code: int, words: str, checkpoints: Path, refuses: Any
) -> None:
    source = checkpoints / "linen_dense_standard/checkpoint"
    refuses(code, "linen-to-nnx", source, "out", option, pattern, mentions=words)


def test_all_unused_patterns_are_told_at_once(checkpoints: Path, refuses: Any) -> None:
    source = checkpoints / "linen_dense_standard/checkpoint"
    options = ("--drop", "a/**", "--drop", "params/kernel", "--drop", "b/**", "--keep", "c/**")
    refuses(3, "linen-to-nnx", source, "out", *options, mentions=("3 problems", "'a/**'", "'b/**'", "'c/**'"))


@pytest.mark.parametrize("name", ["out", "out.msgpack"])
@pytest.mark.parametrize("more", [(), ("--dry-run",), ("--no-verify",)])
def test_everything_is_dropped(name: str, more: tuple[str, ...], checkpoints: Path, refuses: Any) -> None:
    """There is nothing that could be written."""
    source = checkpoints / "linen_dense_standard/checkpoint"
    refuses((2, 3), "linen-to-nnx", source, name, "--drop", "**", *more, mentions="--drop '**'")


# What would be lost, invented or misplaced ---------------------------------------------------------------------------


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_variables_that_nothing_decides(more: tuple[str, ...], checkpoints: Path, refuses: Any) -> None:
    refuses(
        *(3, "nnx-to-linen", checkpoints / "nnx_custom_standard/checkpoint", "out", *more),
        mentions=("2 problems", "count: int32[]", "mean: float32[3]", "--nnx-model", "--collection"),
    )


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_two_leaves_for_one_place(more: tuple[str, ...], refuses: Any, tmp_path: Path) -> None:
    """NNX has no collections, so the variables of two of them must not share a path."""
    norm = {"scale": np.ones(3, np.float32)}
    save(tmp_path / "source.msgpack", {"params": {"norm": norm}, "batch_stats": {"norm": norm}})
    refuses(
        *(3, "linen-to-nnx", "source.msgpack", "out", *more),
        mentions=("params/norm/scale", "batch_stats/norm/scale", "both", "--drop"),
    )


def lstm_with_both_spellings() -> dict[str, Any]:
    """Every gate of an LSTM cell of Linen, and ``if_`` as NNX calls ``if`` beside it."""
    gates = ("ii", "if", "ig", "io", "hi", "hf", "hg", "ho", "if_")
    return {gate: {"kernel": np.full((3, 3), number, np.float32)} for number, gate in enumerate(gates)}


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_two_leaves_that_renaming_brings_together(more: tuple[str, ...], refuses: Any, tmp_path: Path) -> None:
    """``if`` becomes ``if_``, which is taken: no leaf may vanish."""
    save(tmp_path / "source.msgpack", {"params": {"cell": lstm_with_both_spellings()}})
    refuses(
        *(3, "linen-to-nnx", "source.msgpack", "out", *more),
        mentions=("params/cell/if/kernel", "params/cell/if_/kernel", "both"),
    )


def test_two_leaves_that_joining_brings_together(refuses: Any, tmp_path: Path) -> None:
    """``layers/0`` becomes ``layers_0``, which the module has as well."""
    layers = [{"kernel": np.full((2, 3), value, np.float32), "bias": np.ones(3, np.float32)} for value in (1, 2)]
    save(tmp_path / "source.msgpack", {"layers": {"0": layers[0]}, "layers_0": layers[1]})
    refuses(
        *(3, "nnx-to-linen", "source.msgpack", "out", "--nnx-model", "ODD:nnx_joined"),
        mentions=("layers/0/kernel", "layers_0/kernel"),
    )


class HoldsAnArray(nnx.Module):
    def __init__(self) -> None:
        self.table = nnx.data(np.zeros(1))


@pytest.mark.skipif("table" not in nnx.state(HoldsAnArray()), reason="this version of flax passes over plain arrays")
def test_an_array_that_is_no_variable(refuses: Any, cli: Any, tmp_path: Path) -> None:
    dense = {"kernel": np.ones((2, 3), np.float32), "bias": np.ones(3, np.float32)}
    save(tmp_path / "source.msgpack", {"dense": dense, "table": np.arange(4, dtype=np.float32)})
    options = ("--nnx-model", "ODD:nnx_with_array")
    result = cli("nnx-to-linen", "source.msgpack", "out", *options)
    assert result.code == 0
    assert re.search(r"dropped +table +float32\[4\] .*no Variable", result.out)


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_params_alone_hold_no_batch_statistics(more: tuple[str, ...], checkpoints: Path, refuses: Any) -> None:
    source = checkpoints / "nnx_transformer_standard/checkpoint"
    refuses(
        *(3, "nnx-to-linen", source, "out", "--linen-style", "params", *more),
        mentions=("norm/mean", "norm/var", "no place in Linen params", "--params-only"),
    )


def test_variables_hold_no_optimizer(checkpoints: Path, refuses: Any) -> None:
    source = checkpoints / "nnx_model_optimizer_standard/checkpoint"
    error = refuses(
        *(3, "nnx-to-linen", source, "out", "--linen-style", "variables"),
        mentions=("opt_state/0/mu", "no place in Linen variables", "--params-only"),
    )
    assert len(error.splitlines()) < 50, "a long list is cut or folded"


def test_a_train_state_without_step_and_optimizer(nnx_dense: Path, cli: Any) -> None:
    """Params alone do not restore into a TrainState: the user has to hear that it is incomplete."""
    result = cli("nnx-to-linen", nnx_dense, "out", "--linen-style", "train-state")
    assert result.code == 3 or "step" in result.out


# What msgpack cannot hold --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    ("command", "name", "options", "leaf"),
    [
        ("linen-to-nnx", "linen_keys_standard", (), "key<threefry2x32>[3]"),
        ("linen-to-nnx", "linen_train_state_extended_standard", (), "key: key<threefry2x32>[]"),
        ("nnx-to-linen", "nnx_transformer_standard", ("--keep", "**/rngs/*"), "block_1/dropout/rngs/key"),
    ],
)
def test_typed_keys_in_msgpack(
    command: str, name: str, options: tuple[str, ...], leaf: str, more: tuple[str, ...], refuses: Any, checkpoints: Path
) -> None:
    """Whatever refuses the conversion refuses its dry run."""
    source = checkpoints / name / "checkpoint"
    refuses((2, 3), command, source, "new/out.msgpack", *options, *more, mentions=(leaf, "typed PRNG key", "--drop"))


@pytest.mark.parametrize("name", ["linen_keys_standard", "linen_train_state_extended_standard"])
def test_the_advice_about_typed_keys_can_be_followed(name: str, cli: Any, checkpoints: Path) -> None:
    source = checkpoints / name / "checkpoint"
    drops: list[str] = []
    for _ in range(4):
        result = cli("linen-to-nnx", source, "out.msgpack", *drops)
        if result.code == 0:
            return
        advice = re.search(r"--drop '(.+?)'", result.err)
        assert advice, result.err
        assert "matches no leaf" not in result.err
        drops += ["--drop", advice[1]]
    pytest.fail("the advice leads nowhere")
