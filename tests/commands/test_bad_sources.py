"""Sources that are no checkpoints, or damaged ones."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import converter
from converter.errors import UnreadableCheckpoint
from converter.formats.chunks import chunk_bytes
from converter.formats.ocdbt import read_database, write_database

COMMANDS = {
    "inspect": lambda source, checkpoints: ("inspect", source),
    "nnx-to-linen": lambda source, checkpoints: ("nnx-to-linen", source, "out"),
    "linen-to-nnx": lambda source, checkpoints: ("linen-to-nnx", source, "out.msgpack"),
    "dry run": lambda source, checkpoints: ("linen-to-nnx", source, "out", "--dry-run"),
    "verify": lambda source, checkpoints: ("verify", source, checkpoints / "linen_dense_standard/checkpoint"),
    "diff": lambda source, checkpoints: ("diff", checkpoints / "nnx_dense_standard/checkpoint", source),
    "verify against": lambda source, checkpoints: ("verify", checkpoints / "nnx_dense_standard/checkpoint", source),
}


def empty_file(place: Path) -> None:
    place.touch()


def empty_directory(place: Path) -> None:
    place.mkdir()


def random_bytes(place: Path) -> None:
    place.write_bytes(random.Random(3).randbytes(5000))


def text(place: Path) -> None:
    place.write_text("These are not the weights you are looking for.\n")


def json_file(place: Path) -> None:
    place.write_text('{"hidden_size": 8}')


def archive(place: Path) -> None:
    with zipfile.ZipFile(place, "w") as file:
        file.writestr("arr_0.npy", b"\x93NUMPY")


def pickled(place: Path) -> None:
    place.write_bytes(pickle.dumps({"params": {"kernel": [1.0]}}))


def other_files(place: Path) -> None:
    place.mkdir()
    for name in ("train.py", "config.yaml", "log.txt"):
        (place / name).write_text("nothing of interest")


NO_CHECKPOINTS: tuple[tuple[Callable[[Path], None], str], ...] = (
    (empty_file, "is an empty file"),
    (empty_directory, "an empty directory"),
    (random_bytes, "is no checkpoint"),
    (text, "is no checkpoint"),
    (json_file, "is no checkpoint"),
    (archive, "arr_0.npy"),
    (pickled, "is no checkpoint"),
    (other_files, "config.yaml"),
)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("make", "words"), NO_CHECKPOINTS, ids=lambda value: getattr(value, "__name__", ""))
def test_no_checkpoint(
    command: str, make: Callable[[Path], None], words: str, refuses: Any, checkpoints: Path, tmp_path: Path
) -> None:
    make(tmp_path / "source")
    refuses(2, *COMMANDS[command]("source", checkpoints), mentions=("source", words))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_source(command: str, refuses: Any, checkpoints: Path, tmp_path: Path) -> None:
    (tmp_path / "neighbour").mkdir()
    error = refuses(2, *COMMANDS[command]("missing/here", checkpoints), mentions="missing/here: no such file")
    assert "neighbour" in error, "it may be the name that is wrong: the error tells what is there"


def test_a_dangling_link(refuses: Any, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("gone")
    error = refuses(2, "inspect", "link", mentions=("link", "gone"))
    assert "permission" not in error


def test_a_pipe_is_not_waited_for(process: Any, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    result = process("inspect", "pipe", timeout=15)
    assert result.code == 2
    assert "pipe" in result.err


def test_a_device(refuses: Any) -> None:
    refuses(2, "inspect", "/dev/null", mentions="/dev/null")


# Msgpack -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def dense(checkpoints: Path) -> bytes:
    return (checkpoints / "linen_dense_msgpack/checkpoint.msgpack").read_bytes()


def test_msgpack_cut_anywhere(dense: bytes, cli: Any, tmp_path: Path) -> None:
    source = tmp_path / "cut.msgpack"
    for length in range(1, len(dense)):
        source.write_bytes(dense[:length])
        result = cli("inspect", source)
        assert (result.code, result.out) == (2, ""), f"{length} bytes: {result}"
        assert "cut.msgpack is damaged at byte" in result.err or "cut.msgpack is no checkpoint" in result.err
        assert len(result.err.splitlines()) == 2


@pytest.mark.parametrize("share", [0.05, 0.5, 0.999])
@pytest.mark.parametrize("name", ["linen_train_state_adamw_schedule_msgpack", "linen_dtypes_msgpack"])
def test_msgpack_cut_short(name: str, share: float, refuses: Any, checkpoints: Path, tmp_path: Path) -> None:
    data = (checkpoints / name / "checkpoint.msgpack").read_bytes()
    (tmp_path / "cut.msgpack").write_bytes(data[: int(share * len(data))])
    refuses(2, "linen-to-nnx", "cut.msgpack", "out", mentions=("cut.msgpack is damaged at byte", "copy it again"))
    refuses(2, "linen-to-nnx", "cut.msgpack", "out.msgpack", "--force", mentions="expected")


def test_msgpack_with_something_behind_it(dense: bytes, refuses: Any, tmp_path: Path) -> None:
    (tmp_path / "long.msgpack").write_bytes(dense + b"\0")
    refuses(2, "linen-to-nnx", "long.msgpack", "out", mentions=("long.msgpack", "the end of the file"))


def test_msgpack_with_an_unknown_dtype(dense: bytes, refuses: Any, tmp_path: Path) -> None:
    (tmp_path / "odd.msgpack").write_bytes(dense.replace(b"float32", b"float99", 1))
    for arguments in ("inspect", "odd.msgpack"), ("linen-to-nnx", "odd.msgpack", "out"):
        refuses(2, *arguments, mentions=("odd.msgpack", "params/bias", "float99", "ml_dtypes"))


def test_an_error_is_json_too(dense: bytes, cli: Any, tmp_path: Path) -> None:
    (tmp_path / "cut.msgpack").write_bytes(dense[:60])
    for arguments in ("inspect", "cut.msgpack"), ("linen-to-nnx", "cut.msgpack", "out"):
        result = cli(*arguments, "--json")
        report = json.loads(result.out)
        assert result.code == report["error"]["exit_code"] == 2
        assert not report["ok"]
        assert result.err == f"error: {report['error']['message']}\n{report['error']['advice']}\n"


# Orbax ---------------------------------------------------------------------------------------------------------------


def deleted(file: Path) -> None:
    file.unlink()


def halved(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    if data:
        data[len(data) // 2] ^= 0x55
    file.write_bytes(data)


@pytest.mark.parametrize("damage", [deleted, halved, emptied, flipped])
@pytest.mark.parametrize("name", ["linen_mlp_standard", "linen_encoder_v1", "linen_train_state_manager"])
def test_a_damaged_orbax_checkpoint_converts_exactly_or_not_at_all(
    name: str, damage: Callable[[Path], None], cli: Any, checkpoints: Path, tmp_path: Path
) -> None:
    """Some files are only for bookkeeping; the arrays must never come out different."""
    sound = checkpoints / name / "checkpoint"
    assert cli("linen-to-nnx", sound, "sound.msgpack").code == 0
    refused = 0
    for file in sorted(path.relative_to(sound) for path in sound.rglob("*") if path.is_file()):
        shutil.rmtree(tmp_path / "damaged", ignore_errors=True)
        shutil.copytree(sound, tmp_path / "damaged")
        damage(tmp_path / "damaged" / file)
        # Of a directory of steps the latest that is complete is taken, so the step has to be named.
        step = ("--step", "2") if name.endswith("manager") else ()
        result = cli("linen-to-nnx", "damaged", "out.msgpack", *step)
        if result.code == 0:
            assert (tmp_path / "out.msgpack").read_bytes() == (tmp_path / "sound.msgpack").read_bytes(), file
            (tmp_path / "out.msgpack").unlink()
            continue
        refused += 1
        assert result.code == 2, f"{file}: {result}"
        assert result.err.startswith("error: "), f"{file}: {result}"
        assert "damaged" in result.err, f"{file}: {result}"
        assert "Traceback" not in result.err, f"{file}: {result}"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged", "sound.msgpack"], file
    assert refused >= 2


@pytest.mark.parametrize(
    ("file", "damage", "words"),
    [
        ("_METADATA", deleted, "_METADATA is missing"),
        ("_METADATA", halved, "_METADATA is damaged"),
        ("_METADATA", emptied, "_METADATA is damaged"),
        ("manifest.ocdbt", halved, "is damaged"),
        ("d/*", deleted, "cannot be read"),
        ("d/*", halved, "is damaged"),
    ],
)
def test_a_damaged_file(
    file: str, damage: Callable[[Path], None], words: str, refuses: Any, checkpoints: Path, tmp_path: Path
) -> None:
    shutil.copytree(checkpoints / "nnx_mlp_standard/checkpoint", tmp_path / "source")
    damage(next((tmp_path / "source").glob(file)))
    refuses(2, "inspect", "source", mentions=("source", words))
    refuses(2, "nnx-to-linen", "source", "new/directory/out", mentions=("source", words))


def test_damage_that_shows_only_when_an_array_is_read(refuses: Any, checkpoints: Path, tmp_path: Path) -> None:
    """The metadata is sound, one array is shorter than it says."""
    shutil.copytree(checkpoints / "linen_train_state_adamw_schedule_standard/checkpoint", tmp_path / "source")
    largest = max((tmp_path / "source/d").iterdir(), key=lambda path: path.stat().st_size)
    halved(largest)
    refuses(2, "linen-to-nnx", "source", "out.msgpack", mentions="source")
    refuses(2, "linen-to-nnx", "source", "new/out", mentions="source")


UNFINISHED = "orbax-checkpoint-tmp"


def test_an_unfinished_save(refuses: Any, checkpoints: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoints / "linen_dense_standard/checkpoint", tmp_path / f"model.{UNFINISHED}")
    for arguments in ("inspect",), ("linen-to-nnx", "out"):
        command, *rest = arguments
        refuses(2, command, f"model.{UNFINISHED}", *rest, mentions=(f"model.{UNFINISHED}", "unfinished"))


def test_a_directory_of_unfinished_steps_only(refuses: Any, checkpoints: Path, tmp_path: Path) -> None:
    shutil.copytree(
        checkpoints / "linen_train_state_manager/checkpoint/2", tmp_path / f"steps/7.{UNFINISHED}-1700000000"
    )
    refuses(2, "inspect", "steps", mentions=("steps", "unfinished"))
    refuses(2, "linen-to-nnx", "steps", "out", "--step", "7", mentions=("step 7", "unfinished"))


def test_an_unfinished_step_beside_a_finished_one(cli: Any, refuses: Any, checkpoints: Path, tmp_path: Path) -> None:
    steps = checkpoints / "linen_train_state_manager/checkpoint"
    shutil.copytree(steps / "1", tmp_path / "steps/1")
    shutil.copytree(steps / "2", tmp_path / f"steps/2.{UNFINISHED}-1700000000")
    shown = cli("inspect", "steps")
    assert shown.code == 0
    assert "1 (latest 1)" in shown.out
    assert UNFINISHED in shown.out
    refuses(2, "inspect", "steps", "--step", "2", mentions=("step 2", "unfinished"))


def test_a_link_that_leaves_the_checkpoint(refuses: Any, checkpoints: Path, tmp_path: Path) -> None:
    """A checkpoint from elsewhere must not make the program read other files of its user."""
    shutil.copytree(checkpoints / "linen_dense_standard/checkpoint", tmp_path / "source")
    secret = tmp_path / "secret"
    shutil.move(tmp_path / "source/manifest.ocdbt", secret)
    (tmp_path / "source/manifest.ocdbt").symlink_to(secret)
    refuses(2, "linen-to-nnx", "source", "out", mentions=("manifest.ocdbt", "secret"))


def without_its_database(saved: Path, place: Path) -> dict[bytes, bytes]:
    """Copies a checkpoint but for its database, whose values it returns."""
    shutil.copytree(saved, place, ignore=shutil.ignore_patterns("manifest.ocdbt", "d", "ocdbt.process_0"))
    return {key: chunk_bytes(value) for key, value in read_database(saved).items()}


def test_a_process_whose_database_is_missing(refuses: Any, checkpoints: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    values = without_its_database(checkpoints / "nnx_mlp_standard/checkpoint", source)
    held = {key: value for key, value in values.items() if b"kernel" not in key or key.endswith(b".zarray")}
    for process in (0, 2):
        (source / f"ocdbt.process_{process}").mkdir()
        write_database(source / f"ocdbt.process_{process}", held)
    mentions = ("ocdbt.process_1 is missing", "up/kernel/value (1 of 1 chunks)", "Copy the directories")
    for command in ("inspect", "nnx-to-linen", "diff"):
        refuses(2, *COMMANDS[command]("source", checkpoints), mentions=mentions)


def test_a_chunk_that_is_missing(refuses: Any, checkpoints: Path, tmp_path: Path) -> None:
    """It is found before anything is written, also where nobody wants to see the plan."""
    source = tmp_path / "source"
    values = without_its_database(checkpoints / "nnx_mlp_standard/checkpoint", source)
    write_database(source, {key: value for key, value in values.items() if key != b"up.kernel.value/0.0"})
    for options in ((), ("--no-verify",), ("--dry-run",), ("--dry-run", "--quiet"), ("--dry-run", "--json")):
        refuses(2, "nnx-to-linen", "source", "out", *options, mentions="up/kernel/value: its chunk 0.0 is missing")
    with pytest.raises(UnreadableCheckpoint, match=r"up/kernel/value: its chunk 0\.0 is missing"):
        converter.plan(source, "linen")


def test_a_t5x_checkpoint_without_its_arrays(refuses: Any, checkpoints: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint_3").mkdir()
    shutil.copy(checkpoints / "linen_t5x/checkpoint/checkpoint_3/checkpoint", tmp_path / "checkpoint_3")
    for command in ("inspect", "linen-to-nnx"):
        refuses(2, *COMMANDS[command]("checkpoint_3", checkpoints), mentions="without array data: optimizer/")
    refuses(2, "inspect", "checkpoint_3/checkpoint", mentions=("T5X checkpoint", "Name the directory"))


# Steps, items, directions --------------------------------------------------------------------------------------------


def test_unknown_steps_and_items(refuses: Any, checkpoints: Path, tmp_path: Path) -> None:
    steps, items = (checkpoints / f"linen_train_state_{name}/checkpoint" for name in ("manager", "composite"))
    msgpack = checkpoints / "linen_train_state_adamw_schedule_legacy/checkpoint"
    two = tmp_path / "two"
    for name in ("policy", "critic"):
        shutil.copytree(checkpoints / "linen_dense_standard/checkpoint", two / name)
    for arguments, mentions in (
        ((steps, "--step", "3"), ("no step 3", "1, 2")),
        ((steps, "--step", "-1"), ("no step -1", "1, 2")),
        ((steps, "--item", "params"), ("no item 'params'", "default")),
        ((two,), ("several items", "critic, policy", "--item critic or --item policy")),
        ((items, "--item", "model"), ("no item 'model'", "opt_state", "params")),
        ((items, "--item", "config"), ("config", "JSON", "--item params")),
        ((items, "--step", "4", "--item", "params"), ("no step 4", "3")),
        ((msgpack, "--step", "4"), ("step 4", "3")),
        ((msgpack, "--item", "params"), ("params", "--item")),
    ):
        source, *rest = arguments
        if rest:  # inspect shows all items where none is chosen
            refuses(2, "inspect", source, *rest, mentions=mentions)
        refuses(2, "linen-to-nnx", source, "out", *rest, mentions=mentions)
        refuses(2, "verify", source, checkpoints / "nnx_mlp_standard/checkpoint", *rest, mentions=mentions)


@pytest.mark.parametrize(
    ("command", "name", "found", "advice"),
    [
        ("nnx-to-linen", "linen_transformer_standard/checkpoint", "already Linen", "linen-to-nnx"),
        ("nnx-to-linen", "linen_dense_msgpack/checkpoint.msgpack", "already Linen", "linen-to-nnx"),
        ("nnx-to-linen", "linen_train_state_extended_standard/checkpoint", "already Linen", "linen-to-nnx"),
        ("linen-to-nnx", "nnx_encoder_v1/checkpoint", "already NNX", "nnx-to-linen"),
        ("linen-to-nnx", "nnx_model_and_optimizer_standard/checkpoint", "already NNX", "nnx-to-linen"),
        ("linen-to-nnx", "nnx_optimizer_multi_steps_standard/checkpoint", "already NNX", "nnx-to-linen"),
    ],
)
def test_the_wrong_direction(command: str, name: str, found: str, advice: str, refuses: Any, checkpoints: Path) -> None:
    refuses(2, command, checkpoints / name, "out", mentions=(found, advice))
    refuses(2, command, checkpoints / name, "out.msgpack", "--dry-run", mentions=(found, advice))


def test_an_optimizer_state_without_its_parameters(refuses: Any, checkpoints: Path) -> None:
    items = checkpoints / "linen_train_state_composite/checkpoint"
    refuses(2, "linen-to-nnx", items, "out", "--item", "opt_state", mentions="optax state")


def test_verify_needs_one_of_each(refuses: Any, checkpoints: Path) -> None:
    linen, nnx = checkpoints / "linen_dense_standard/checkpoint", checkpoints / "nnx_dense_standard/checkpoint"
    refuses(2, "verify", linen, linen, mentions=("both Linen", "conversion"))
    refuses(2, "verify", nnx, nnx, mentions=("both nnx.State", "conversion"))
