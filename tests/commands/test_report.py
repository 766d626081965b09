"""``--report``: the page says what the command said, however it ended, and is written whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from converter.html_report.page import embedded


@pytest.fixture
def source(checkpoints: Path) -> Path:
    return checkpoints / "nnx_mlp_standard/checkpoint"


def read(file: Path) -> Any:
    return embedded(file.read_text(encoding="utf-8"))


def headline(file: Path) -> str:
    return file.read_text(encoding="utf-8").partition("<h1>")[2].partition("</h1>")[0]


def test_a_conversion(cli: Any, source: Path, models: str, tmp_path: Path) -> None:
    pair = ["--nnx-model", f"{models}:nnx_mlp", "--linen-model", f"{models}:linen_mlp", "--input", "float32[2,6]"]
    result = cli("nnx-to-linen", source, "out", *pair, "--report", "page.html", "--json")
    assert result.code == 0, result.err
    assert read(tmp_path / "page.html") == json.loads(result.out)
    assert "Converted and verified" in headline(tmp_path / "page.html")
    back = cli("linen-to-nnx", "out", "back", "--nnx-model", f"{models}:nnx_mlp", "--report", "back.html")
    assert back.code == 0, back.err
    assert read(tmp_path / "back.html")["destination"] == "back"
    assert sorted(place.name for place in tmp_path.iterdir()) == ["back", "back.html", "out", "page.html"]


def test_the_page_changes_nothing_of_what_is_printed(cli: Any, source: Path) -> None:
    plain = cli("nnx-to-linen", source, "out")
    assert cli("nnx-to-linen", source, "out", "--force", "--report", "page.html") == plain


def test_a_difference(cli: Any, checkpoints: Path, source: Path, tmp_path: Path) -> None:
    assert cli("nnx-to-linen", source, "out.msgpack").code == 0
    data = bytearray((tmp_path / "out.msgpack").read_bytes())
    data[-1] ^= 1
    (tmp_path / "out.msgpack").write_bytes(data)
    result = cli("verify", source, "out.msgpack", "--report", "page.html", "--json")
    assert result.code == 1
    assert read(tmp_path / "page.html") == json.loads(result.out)
    assert "Different" in headline(tmp_path / "page.html")
    assert '<section id="differences">' in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_outputs_that_differ_keep_the_page_and_not_the_conversion(cli: Any, source: Path, tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text(
        "from flax import linen as nn\n\n\n"
        "class Mlp(nn.Module):\n    @nn.compact\n    def __call__(self, x):\n"
        "        return 2 * nn.Dense(6, name='down')(nn.relu(nn.Dense(10, name='up')(x)))\n"
        "def linen():\n    return Mlp()\n"
    )
    models = ["--nnx-model", f"{source.parent.parent.parent / 'models.py'}:nnx_mlp", "--linen-model", "other.py:linen"]
    words = [*models, "--input", "float32[2,6]", "--report", "page.html", "--json"]
    result = cli("nnx-to-linen", source, "out", *words)
    assert result.code == 1, result.err
    assert not (tmp_path / "out").exists()
    found = read(tmp_path / "page.html")
    assert found == json.loads(result.out)
    assert found["outputs"]["ok"] is False
    assert "Different" in headline(tmp_path / "page.html")


@pytest.mark.parametrize("dry", [["--dry-run"], []])
def test_a_refusal(dry: list[str], cli: Any, source: Path, models: str, tmp_path: Path) -> None:
    result = cli("nnx-to-linen", source, "out", "--drop", "up/**", "--nnx-model", f"{models}:nnx_dense", *dry, "--json",
                 "--report", "page.html")  # fmt: skip
    assert result.code == 3, result.err
    found = read(tmp_path / "page.html")
    assert found == json.loads(result.out)
    assert found["plan"]["problems"]
    assert "Refused" in headline(tmp_path / "page.html")


def test_a_plan(cli: Any, source: Path, tmp_path: Path) -> None:
    result = cli("nnx-to-linen", source, "out", "--dry-run", "--json", "--report", "page.html")
    assert result.code == 0
    assert read(tmp_path / "page.html") == json.loads(result.out)
    assert "Planned" in headline(tmp_path / "page.html")


def test_an_alignment(cli: Any, fixtures_dir: Path, tmp_path: Path) -> None:
    unlike = fixtures_dir / "unlike.py"
    models = ["--linen-model", f"{unlike}:linen_recurrent", "--nnx-model", f"{unlike}:nnx_recurrent"]
    words = ["align", *models, "--input", "float32[2,5,4]", "-o", "map.toml", "--report", "page.html"]
    result = cli(*words, "--json")
    assert result.code == 0, result.err
    found = read(tmp_path / "page.html")
    assert found == json.loads(result.out)
    assert found["rules"] == (tmp_path / "map.toml").read_text(encoding="utf-8")
    assert all(each["max_abs"] <= each["limit"] for each in found["outputs"]["outputs"])
    assert "Aligned and confirmed" in headline(tmp_path / "page.html")


def test_an_alignment_that_is_refused(cli: Any, models: str, tmp_path: Path) -> None:
    words = ["--linen-model", f"{models}:linen_mlp", "--nnx-model", f"{models}:nnx_dense", "--input", "float32[2,4]"]
    result = cli("align", *words, "-o", "map.toml", "--report", "page.html", "--json")
    assert result.code == 3, result.err
    found = read(tmp_path / "page.html")
    assert found == json.loads(result.out)
    assert found["problems"]
    assert found["rules"] is None
    assert "Not aligned" in headline(tmp_path / "page.html")
    assert [place.name for place in tmp_path.iterdir()] == ["page.html"]


def test_a_page_in_the_place_of_the_rule_file(refuses: Any) -> None:
    words = ["--linen-model", "no.py:a", "--nnx-model", "no.py:b", "-o", "map.toml", "--report", "./map.toml"]
    refuses(2, "align", *words, mentions="name the same file")


def test_a_source_that_cannot_be_read(cli: Any, tmp_path: Path) -> None:
    result = cli("nnx-to-linen", "missing", "out", "--json", "--report", "page.html")
    assert result.code == 2
    assert read(tmp_path / "page.html") == json.loads(result.out)
    assert "Failed" in headline(tmp_path / "page.html")


def test_a_page_that_exists_is_replaced(cli: Any, source: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("old")
    page.chmod(0o640)
    assert cli("nnx-to-linen", source, "out", "--report", page, "--quiet").code == 0
    assert "Converted and verified" in headline(page)
    assert page.stat().st_mode & 0o777 == 0o640


def test_a_link_stays_one(cli: Any, source: Path, tmp_path: Path) -> None:
    (tmp_path / "page.html").symlink_to("real.html")
    assert cli("nnx-to-linen", source, "out", "--report", "page.html").code == 0
    assert (tmp_path / "page.html").is_symlink()
    assert "Converted and verified" in headline(tmp_path / "real.html")


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("there", "there is a directory"),
        ("missing/page.html", "there is no directory missing"),
        ("out", "would be part of the checkpoint out"),
        ("source/page.html", "would be part of the checkpoint source"),
        ("source", "source is a directory"),
        ("/dev/null", "is no ordinary file"),
    ],
)
@pytest.mark.parametrize("command", ["nnx-to-linen", "verify"])
def test_places_where_no_page_can_be(
    command: str, place: str, words: str, refuses: Any, source: Path, tmp_path: Path
) -> None:
    shutil.copytree(source, tmp_path / "source")
    (tmp_path / "there").mkdir()
    refuses(4, command, "source", "out", "--report", place, mentions=words)


def test_a_full_disk_leaves_the_page_that_was_there(
    cli: Any, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "page.html").write_text("old")
    replace = os.replace

    def full(left: Any, right: Any) -> None:
        if str(right).endswith(".html"):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(left, right)

    monkeypatch.setattr(os, "replace", full)
    result = cli("nnx-to-linen", source, "out", "--report", "page.html")
    assert result.code == 4
    assert "page.html cannot be written: No space left on device" in result.err
    assert (tmp_path / "page.html").read_text() == "old"
    assert sorted(place.name for place in tmp_path.iterdir()) == ["out", "page.html"]
    # Where the command fails itself, its own error counts.
    missing = cli("nnx-to-linen", "missing", "other", "--report", "page.html")
    assert missing.code == 2
    assert "missing" in missing.err.splitlines()[0]
    assert "No space left on device" in missing.err
