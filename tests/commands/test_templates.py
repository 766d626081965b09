"""``--like``: a checkpoint in the place of a model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import serialization


def save(path: Path, variables: Any) -> None:
    path.write_bytes(serialization.msgpack_serialize(variables))


DENSE = {"kernel": np.arange(12, dtype=np.float32).reshape(4, 3), "bias": np.ones(3, np.float32)}


@pytest.mark.parametrize(
    ("like", "mentions"),
    [
        ("missing", ("--like missing", "no such file or directory")),
        (".", ("--like .", "no checkpoint")),
        ("$/linen_dense_standard/checkpoint", ("expected NNX", "found Linen variables", "linen_dense_standard")),
        ("$/linen_train_state_composite/checkpoint/3/config", ("--like",)),
    ],
)
def test_templates_that_are_none(like: str, mentions: Any, checkpoints: Path, refuses: Any) -> None:
    source = checkpoints / "linen_dense_standard/checkpoint"
    place = like.replace("$", str(checkpoints))
    refuses(2, "linen-to-nnx", source, "new/out", "--like", place, mentions=mentions)


def test_a_template_of_several_items_that_do_not_belong_together(
    checkpoints: Path, refuses: Any, tmp_path: Path
) -> None:
    for name in ("policy", "critic"):
        shutil.copytree(checkpoints / "nnx_mlp_standard/checkpoint", tmp_path / "two" / name)
    source = checkpoints / "linen_mlp_standard/checkpoint"
    mentions = ("--like", "several items: critic, policy", "directory of one of them")
    refuses(2, "linen-to-nnx", source, "new/out", "--like", "two", mentions=mentions)


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    ("template", "mentions"),
    [
        ({**DENSE, "bias": np.ones(5, np.float32)}, ("1 problem", "expected float32[5]", "found float32[3]")),
        ({"kernel": DENSE["kernel"]}, ("1 problem", "params/bias: float32[3] in the checkpoint, no such variable")),
        ({**DENSE, "scale": DENSE["bias"]}, ("1 problem", "params/scale: expected float32[3]", "nothing of that name")),
    ],
)
def test_templates_of_another_shape(
    more: tuple[str, ...], template: Any, mentions: Any, checkpoints: Path, refuses: Any, tmp_path: Path
) -> None:
    save(tmp_path / "like.msgpack", template)
    refuses(
        *(3, "linen-to-nnx", checkpoints / "linen_dense_standard/checkpoint", "out", "--like", "like.msgpack", *more),
        mentions=("refused", *mentions, "The model spoken of is the --like checkpoint."),
    )


def test_another_dtype_is_noted(checkpoints: Path, cli: Any, tmp_path: Path) -> None:
    """The values stay as they are, as with a model."""
    save(tmp_path / "like.msgpack", {**DENSE, "bias": np.ones(3, np.float16)})
    source = checkpoints / "linen_dense_standard/checkpoint"
    result = cli("linen-to-nnx", source, "out", "--like", "like.msgpack")
    assert result.code == 0
    assert "note       params/bias: float32[3] in the checkpoint, float16[3] in the model" in result.out


# Parameters alone, and with their optimizer --------------------------------------------------------------------------

ALONE = {"linen": "linen_mlp_standard", "nnx": "nnx_mlp_standard"}
TRAINED = {"linen": "linen_train_state_adamw_schedule_mlp_standard", "nnx": "nnx_mlp_model_optimizer_standard"}
COMMANDS = [("linen-to-nnx", "linen", "nnx"), ("nnx-to-linen", "nnx", "linen")]


@pytest.mark.parametrize(("command", "source", "target"), COMMANDS)
def test_a_template_without_the_sources_optimizer(
    command: str, source: str, target: str, checkpoints: Path, refuses: Any, cli: Any
) -> None:
    like = ("--like", checkpoints / ALONE[target] / "checkpoint")
    trained = checkpoints / TRAINED[source] / "checkpoint"
    refuses(3, command, trained, "out", *like, mentions=("opt_state/0/mu/up/kernel", "has no place", "--params-only"))
    assert cli(command, trained, "out", *like, "--params-only").code == 0


@pytest.mark.parametrize(
    ("command", "source", "target", "note"),
    [
        (*COMMANDS[0], "the --like checkpoint has an optimizer, the source has none"),
        (*COMMANDS[1], "the train state is incomplete: there is no step"),
    ],
)
def test_a_template_with_an_optimizer_that_the_source_lacks(
    command: str, source: str, target: str, note: str, checkpoints: Path, cli: Any
) -> None:
    like = ("--like", checkpoints / TRAINED[target] / "checkpoint")
    result = cli(command, checkpoints / ALONE[source] / "checkpoint", "out", *like)
    assert result.code == 0
    assert f"note       {note}" in result.out


def test_random_state_of_the_template_is_not_copied(checkpoints: Path, cli: Any) -> None:
    """It is another model's; that the result lacks it has to be said."""
    like = ("--like", checkpoints / "nnx_encoder_v1/checkpoint")
    result = cli("linen-to-nnx", checkpoints / "linen_encoder_v1/checkpoint", "out", *like)
    assert result.code == 0
    assert "block/dropout/rngs/count uint32[] is in the --like checkpoint only" in result.out


# The layout of the template ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("like", "leaf"),
    [
        ("nnx_model_and_optimizer_standard", "opt_state/0/mu/head/bias/value"),
        ("nnx_split_tuple_standard", "1/opt_state/0/mu/head/bias/value"),
    ],
)
def test_the_bundle_is_the_templates(like: str, leaf: str, checkpoints: Path, cli: Any) -> None:
    source = checkpoints / "linen_train_state_adamw_schedule_pytree/checkpoint"
    assert cli("linen-to-nnx", source, "out", "--like", checkpoints / like / "checkpoint").code == 0
    assert f"\n{leaf} " in cli("inspect", "out").out


def test_a_bundle_of_ones_own(checkpoints: Path, cli: Any) -> None:
    source = checkpoints / "linen_train_state_adamw_schedule_pytree/checkpoint"
    like = ("--like", checkpoints / "nnx_split_tuple_standard/checkpoint")
    assert cli("linen-to-nnx", source, "out", *like, "--nnx-bundle", "dict").code == 0
    assert "\noptimizer/opt_state/0/mu/head/bias/value " in cli("inspect", "out").out


@pytest.mark.parametrize(
    ("name", "like", "leaf"),
    [
        ("nnx_mlp_standard", "linen_mlp_partitioned_standard", "params/up/kernel/value"),
        ("nnx_mlp_model_optimizer_standard", "linen_train_state_nested_standard", "params/params/up/kernel"),
    ],
)
def test_boxes_and_levels_are_the_templates(name: str, like: str, leaf: str, checkpoints: Path, cli: Any) -> None:
    source, template = checkpoints / name / "checkpoint", checkpoints / like / "checkpoint"
    assert cli("nnx-to-linen", source, "out", "--like", template).code == 0
    assert f"\n{leaf} " in cli("inspect", "out").out
    assert cli("verify", source, "out", "--like", template).code == 0


def test_verify_takes_the_template_of_the_conversion(checkpoints: Path, cli: Any) -> None:
    """Without it nothing tells that the layers were to be stacked."""
    source = checkpoints / "nnx_maxtext_unscanned_standard/checkpoint"
    like = ("--like", checkpoints / "linen_maxtext_scanned_standard/checkpoint")
    assert cli("nnx-to-linen", source, "out", *like).code == 0
    assert cli("verify", source, "out", *like).code == 0
    assert cli("verify", source, "out").code == 1
