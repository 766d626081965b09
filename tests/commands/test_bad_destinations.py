"""Destinations that exist, that cannot be written, or that would touch the source; and disks that fill up."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def source(checkpoints: Path, tmp_path: Path) -> str:
    shutil.copytree(checkpoints / "linen_mlp_standard/checkpoint", tmp_path / "source")
    return "source"


@pytest.fixture
def source_file(checkpoints: Path, tmp_path: Path) -> str:
    shutil.copy(checkpoints / "linen_dense_msgpack/checkpoint.msgpack", tmp_path / "source.msgpack")
    return "source.msgpack"


@pytest.mark.parametrize("kind", ["file", "empty directory", "checkpoint", "link", "dangling link"])
@pytest.mark.parametrize("name", ["out", "out.msgpack", "out.safetensors"])
def test_an_existing_destination(kind: str, name: str, source: str, refuses: Any, cli: Any, tmp_path: Path) -> None:
    place = tmp_path / name
    match kind:
        case "file":
            place.write_text("mine")
        case "empty directory":
            place.mkdir()
        case "checkpoint":
            shutil.copytree(tmp_path / source, place)
        case "link":
            (tmp_path / "other").write_text("mine")
            place.symlink_to("other")
        case _:
            place.symlink_to("nowhere")
    refuses(4, "linen-to-nnx", source, name, mentions=(f"{name} exists already", "--force"))
    refuses(4, "linen-to-nnx", source, name, "--no-verify", "--json", mentions=f"{name} exists already")
    # --force replaces what has that name, and nothing that a link leads to.
    assert cli("linen-to-nnx", source, name, "--force").code == 0
    assert cli("verify", source, name).code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, source] + ["other"] * (kind == "link"))
    if kind == "link":
        assert (tmp_path / "other").read_text() == "mine"


@pytest.mark.parametrize(
    ("kind", "lost"),
    [
        ("directory", "notes"),
        ("checkpoint among others", "notes"),
        ("steps of Orbax", "1, 2"),
        ("steps of flax", "checkpoint_1, checkpoint_2"),
        ("model with its settings", "config.json"),
        ("pipe", "pipe, socket or device"),
    ],
)
def test_what_force_does_not_replace(
    kind: str, lost: str, source: str, checkpoints: Path, refuses: Any, tmp_path: Path
) -> None:
    place = tmp_path / "out"
    match kind:
        case "directory":
            place.mkdir()
        case "checkpoint among others":
            shutil.copytree(tmp_path / source, place / "inside")
        case "steps of Orbax":
            shutil.copytree(checkpoints / "linen_train_state_manager/checkpoint", place)
        case "steps of flax":
            place.mkdir()
            for step in (1, 2):
                shutil.copy(checkpoints / "linen_dense_msgpack/checkpoint.msgpack", place / f"checkpoint_{step}")
        case "model with its settings":
            place.mkdir()
            shutil.copy(checkpoints / "linen_dense_msgpack/checkpoint.msgpack", place / "flax_model.msgpack")
            (place / "config.json").write_text("{}")
        case _:
            os.mkfifo(place)
    if lost == "notes":
        (place / "notes").write_text("mine")
    refuses(4, "linen-to-nnx", source, "out", "--force", mentions=lost)


def test_a_model_directory_is_replaced(source: str, checkpoints: Path, cli: Any, tmp_path: Path) -> None:
    options = ("--to-format", "hf-msgpack", "--max-shard-size", "1KiB")
    for force in ((), ("--force",)):
        assert cli("nnx-to-linen", checkpoints / "nnx_dense_standard/checkpoint", "out", *options, *force).code == 0
    assert cli("linen-to-nnx", source, "out", "--force").code == 0


def test_what_exists_is_said_before_anything_is_read(refuses: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    refuses(4, "linen-to-nnx", "missing", "out", mentions="out exists already")


def test_a_failed_conversion_keeps_what_it_should_have_replaced(
    source: str, refuses: Any, checkpoints: Path, models: str, tmp_path: Path
) -> None:
    shutil.copytree(tmp_path / source, tmp_path / "out")
    refuses(3, "linen-to-nnx", source, "out", "--force", "--drop", "typo", mentions="typo")
    refuses(2, "nnx-to-linen", source, "out", "--force", mentions="already Linen")
    twice = Path(__file__).parent / "odd_models.py"
    refuses(
        *(1, "nnx-to-linen", checkpoints / "nnx_dense_standard/checkpoint", "out", "--force"),
        *("--nnx-model", f"{twice}:nnx_doubled", "--linen-model", f"{models}:linen_dense", "--input", "float32[2,4]"),
        mentions=("DIFFERENT", "Nothing was kept"),
    )


@pytest.mark.parametrize("force", [(), ("--force",)])
@pytest.mark.parametrize(
    "destination",
    ["source", "source/", "source/.", "./source", "source/inside", "source/d/deep/inside", "link", "link/inside"],
)
def test_a_destination_inside_the_source(
    destination: str, force: tuple[str, ...], source: str, refuses: Any, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(source)
    refuses(4, "linen-to-nnx", source, destination, *force, mentions=("source", "another place"))
    refuses(4, "linen-to-nnx", tmp_path / source, destination, *force, mentions=("source", "another place"))


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_a_destination_that_is_the_source_file(force: tuple[str, ...], source_file: str, refuses: Any) -> None:
    refuses(4, "linen-to-nnx", source_file, source_file, *force, mentions=(source_file, "another place"))
    refuses(4, "linen-to-nnx", source_file, f"{source_file}/out", *force, mentions=source_file)


@pytest.mark.parametrize("force", [(), ("--force",)])
@pytest.mark.parametrize("destination", [".", "..", "outer", "outer/../outer/", "source/.."])
def test_a_destination_around_the_source(
    destination: str, force: tuple[str, ...], source: str, refuses: Any, tmp_path: Path
) -> None:
    (tmp_path / "outer").mkdir()
    shutil.move(tmp_path / source, tmp_path / "outer" / source)
    (tmp_path / source).symlink_to(tmp_path / "outer" / source)
    refuses(4, "linen-to-nnx", f"outer/{source}", destination, *force, mentions="another place")


def test_the_working_directory_is_not_replaced(
    source: str, refuses: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """``.`` has no name that a new directory could be given."""
    (tmp_path / "work").mkdir()
    (tmp_path / "work/notes").write_text("mine")
    monkeypatch.chdir(tmp_path / "work")
    refuses(4, "linen-to-nnx", f"../{source}", ".", mentions="exists already")
    refuses(4, "linen-to-nnx", f"../{source}", ".", "--force", mentions="another")


def test_a_destination_that_ends_in_dots(source: str, refuses: Any, cli: Any, contents: Any, tmp_path: Path) -> None:
    (tmp_path / "work/inner").mkdir(parents=True)
    (tmp_path / "work/notes").write_text("mine")
    refuses(4, "linen-to-nnx", source, "work/inner/..", mentions="exists already")
    before = contents()
    result = cli("linen-to-nnx", source, "work/inner/..", "--force")
    assert (result.code, contents()) == (4, before)


@pytest.mark.parametrize("name", ["out", "out.msgpack", "out.safetensors"])
def test_a_destination_below_a_file(name: str, source: str, refuses: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for destination in f"file/{name}", f"file/new/{name}":
        refuses(4, "linen-to-nnx", source, destination, mentions=(destination, "file is not a directory"))
        refuses(4, "linen-to-nnx", source, destination, "--force", mentions="file is not a directory")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc, where nobody can make files")
@pytest.mark.parametrize("destination", ["/proc/out", "/proc/out.msgpack", "/proc/new/out", "/proc/new/out.msgpack"])
def test_a_place_where_nobody_can_write(destination: str, source: str, refuses: Any) -> None:
    error = refuses(4, "linen-to-nnx", source, destination, mentions="/proc/")
    assert "unfinished" not in error, "the name of a temporary file means nothing to the user"


@pytest.mark.parametrize("suffix", ["", ".msgpack"])
@pytest.mark.parametrize("directory", ["", "new/"])
def test_a_name_that_is_too_long(suffix: str, directory: str, source: str, refuses: Any) -> None:
    refuses(4, "linen-to-nnx", source, directory + "x" * 300 + suffix, mentions=("xxx", "too long"))


@pytest.mark.parametrize("suffix", ["", ".msgpack"])
def test_a_name_that_is_hardly_short_enough(suffix: str, source: str, cli: Any, contents: Any) -> None:
    """What is added to it while the result is written may make it too long."""
    before = contents()
    result = cli("linen-to-nnx", source, f"new/{'x' * 240}{suffix}")
    assert result.code in (0, 4), result.err
    assert result.code == 0 or ("too long" in result.err and contents() == before)


def test_a_directory_name_that_is_too_long(source: str, refuses: Any) -> None:
    refuses(4, "linen-to-nnx", source, "new/" + "x" * 300 + "/out", mentions=("xxx", "too long"))


LIMITED = """
import resource, runpy, sys
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
runpy.run_module("converter", run_name="__main__", alter_sys=True)
"""
"""Runs the program with a limit on the size of files, beyond which writing fails as on a full disk."""


@pytest.mark.skipif(sys.platform == "win32", reason="needs setrlimit")
@pytest.mark.parametrize(
    ("command", "limit"),
    [
        ("out.msgpack", 100),
        ("out.safetensors", 100),
        ("new/out.msgpack", 600_000),
        ("new/out", 600_000),
        ("new/out --to-format safetensors --max-shard-size 9MB", 600_000),
    ],
)
def test_a_full_disk(
    command: str, limit: int, large: Path, environment: dict[str, str], contents: Any, untouched: Any, tmp_path: Path
) -> None:
    name, *options = command.split()
    arguments = [sys.executable, "-c", LIMITED, str(limit), "linen-to-nnx", str(large), name, *options]
    before = contents()
    with untouched(large):
        done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, check=False, timeout=120)
    error = done.stderr.decode()
    assert done.returncode == 4, error
    assert contents() == before
    assert error.startswith("error: ")
    assert "Traceback" not in error
    assert "File too large" in error
    assert name in error, "the error names the destination as the user did"
    assert "unfinished" not in error
    assert "space" in error
    assert not done.stdout


@pytest.mark.parametrize(
    ("place", "mentions"),
    [
        ("there", "there is a directory, no place for a rule file"),
        ("missing/map.toml", "there is no directory missing"),
        ("map.toml", "map.toml exists already"),
    ],
)
def test_a_place_for_rules_is_looked_at_before_the_models(
    place: str, mentions: str, refuses: Any, tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "map.toml").write_text("mine")
    refuses(4, "align", "--linen-model", "no.py:a", "--nnx-model", "no.py:b", "-o", place, mentions=mentions)


@pytest.mark.parametrize("name", [b"out\xff", b"out\xff.msgpack", b"out\xff.safetensors"])
def test_names_need_not_be_text(name: bytes, source: str, cli: Any) -> None:
    assert cli("linen-to-nnx", source, os.fsdecode(name)).code == 0
    assert cli("verify", source, os.fsdecode(name)).code == 0
    assert cli("inspect", os.fsdecode(name), "--json").code == 0
