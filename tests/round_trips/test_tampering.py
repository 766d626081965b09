"""What goes wrong between writing and checking is found by every proof there is, and then nothing is published."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import converter
from converter.errors import UnreadableCheckpoint, UnsupportedCheckpoint, VerificationFailed
from converter.formats import FORMATS
from converter.formats.checkpoint import Writing
from converter.formats.ocdbt import read_database, write_database
from converter.stored import Extent
from converter.tree import Tree
from tests.building import prng_key, tree_of

GENERATOR = np.random.default_rng(0)


def kernel(*shape: int) -> Any:
    return GENERATOR.standard_normal(shape).astype(np.float32)


PARAMS = {
    "one": {"kernel": kernel(40, 40), "bias": kernel(40)},
    "two": {"kernel": kernel(40, 40), "bias": kernel(40)},
    "large": {"kernel": kernel(200, 200)},
}
OTHERS = {"rngs": {"key": prng_key(5)}, "counter": {"epoch": 3, "name": "text"}}

pytestmark = pytest.mark.filterwarnings("ignore")  # Orbax leaves its loops behind when it fails

Tamper = Callable[[Path], None]


@pytest.fixture
def sources(tmp_path: Path) -> Mapping[str, Path]:
    """The same leaves in both formats; a msgpack file has no typed keys."""
    orbax, msgpack = tmp_path / "source", tmp_path / "source.msgpack"
    FORMATS["orbax"].write(tree_of({"params": PARAMS, **OTHERS}), orbax, lambda *_: None)
    FORMATS["msgpack"].write(tree_of({"params": PARAMS, "counter": OTHERS["counter"]}), msgpack, lambda *_: None)
    zstd = tmp_path / "compressed"
    writing = Writing(compress=True)
    FORMATS["orbax"].write(tree_of({"params": PARAMS, **OTHERS}), zstd, lambda *_: None, writing=writing)
    return {"orbax": orbax, "msgpack": msgpack, "compressed": zstd}


def convert(source: Path, destination: Path, tamper: Tamper | None = None, **options: Any) -> converter.Report:
    """Converts, and lets ``tamper`` change the destination when it has been written."""
    format = FORMATS[options.get("to_format") or "orbax"]
    with pytest.MonkeyPatch.context() as patch:
        write = type(format).write

        def writing(self: Any, tree: Tree, place: Path, *arguments: Any, **named: Any) -> Any:
            written = write(self, tree, place, *arguments, **named)
            if tamper is not None:
                tamper(place)
            return written

        patch.setattr(type(format), "write", writing)
        return converter.convert(source, destination, "nnx", nnx_style="pure", **options)


# What is done to an Orbax directory ----------------------------------------------------------------------------------


def flip(file: Path, place: int) -> None:
    with file.open("r+b") as stream:
        stream.seek(place)
        byte = stream.read(1)
        stream.seek(place)
        stream.write(bytes([byte[0] ^ 1]))


def flipped(path: str) -> Tamper:
    """One bit in the middle of an array's first chunk."""

    def tamper(directory: Path) -> None:
        values = read_database(directory)
        (chunk,) = (value for key, value in values.items() if key.startswith(f"{path}/0".encode()))
        if isinstance(chunk, Extent):
            flip(Path(chunk.file), chunk.offset + chunk.length // 2)
        else:
            key = next(key for key in values if key.startswith(f"{path}/0".encode()))
            rewrite(directory, {key: chunk[:-1] + bytes([chunk[-1] ^ 1])})

    return tamper


def rewrite(directory: Path, changes: Mapping[bytes, Any]) -> None:
    values = {**read_database(directory), **changes}
    write_database(directory, {key: value for key, value in values.items() if value is not None})


def exchanged(one: bytes, other: bytes) -> Tamper:
    def tamper(directory: Path) -> None:
        values = read_database(directory)
        rewrite(directory, {one: values[other], other: values[one]})

    return tamper


def same(one: bytes, other: bytes) -> Tamper:
    return lambda directory: rewrite(directory, {one: read_database(directory)[other]})


def missing(key: bytes) -> Tamper:
    return lambda directory: rewrite(directory, {key: None})


def metadata(path: str, **changes: Any) -> Tamper:
    """Other metadata of one array."""

    def tamper(directory: Path) -> None:
        key = f"{path}/.zarray".encode()
        text = read_database(directory)[key]
        assert isinstance(text, bytes)
        rewrite(directory, {key: json.dumps(json.loads(text) | changes).encode()})

    return tamper


def other_compressor(directory: Path) -> None:
    text = read_database(directory)[b"one.kernel/.zarray"]
    assert isinstance(text, bytes)
    is_plain = json.loads(text)["compressor"] is None
    metadata("one.kernel", compressor={"id": "zstd", "level": 1} if is_plain else None)(directory)


def edited(name: str, old: str, new: str) -> Tamper:
    def tamper(directory: Path) -> None:
        file = directory / name
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new))

    return tamper


def forget_keys(directory: Path) -> None:
    (directory / "array_metadatas" / "process_0").unlink()


def cut(directory: Path) -> None:
    file = max(directory.glob("d/*"), key=lambda each: each.stat().st_size)
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size - 1)


TAMPERS: dict[str, Tamper] = {
    "a large array": flipped("large.kernel"),
    "an array": flipped("two.kernel"),
    "an array inside of the index": flipped("two.bias"),
    "a scalar": flipped("epoch"),
    "a key": flipped("key"),
    "another's chunk": same(b"one.kernel/0.0", b"two.kernel/0.0"),
    "another's small chunk": same(b"one.bias/0", b"two.bias/0"),
    "two exchanged": exchanged(b"one.kernel/0.0", b"two.kernel/0.0"),
    "dtype": metadata("one.kernel", dtype="<i4"),
    "byte order": metadata("one.kernel", dtype=">f4"),
    "order": metadata("one.kernel", order="F"),
    "shape": metadata("one.kernel", shape=[20, 80], chunks=[20, 80]),
    "part of it": metadata("one.kernel", shape=[39, 40]),
    "chunks": metadata("one.kernel", chunks=[20, 40]),
    "compressor": other_compressor,
    "no chunk": missing(b"one.kernel/0.0"),
    "no array": missing(b"one.kernel/.zarray"),
    "text": edited("_strings.json", "text", "txet"),
    "key becomes words": forget_keys,
    "other name": edited("_METADATA", '"one"', '"oen"'),
    "other kind of value": edited("_METADATA", '"scalar"', '"np.ndarray"'),
    "file cut off": cut,
}

WRITING = {"a large array", "an array", "file cut off"}
"""What is done to data files themselves."""

KINDS = ("orbax", "copied", "compressed", "streamed")
RULES = [{"linen": "params/{m:*}/kernel", "nnx": "{m}/kernel", "to_nnx": ["cast float32 -> float64"]}]


def options_of(kind: str, full: bool) -> dict[str, Any]:
    rules = {"rules": {"default": "auto", "rule": RULES}} if kind == "streamed" else {}
    return {"copy": kind == "copied", "verify": "full" if full else True, **rules}


PROOFS: Mapping[str, dict[str, int]] = {
    "orbax": {"reference": 3, "bytes": 3, "values": 2},  # the small ones stand in the index
    "copied": {"bytes": 6, "values": 2},
    "compressed": {"reference": 3, "bytes": 3, "values": 2},
    "streamed": {"bytes": 3, "digest": 3, "values": 2},
}


@pytest.mark.parametrize("kind", KINDS)
def test_reports_tell_the_proofs(kind: str, sources: Mapping[str, Path], tmp_path: Path) -> None:
    source = sources["compressed" if kind == "compressed" else "orbax"]
    report = convert(source, tmp_path / "out", **options_of(kind, full=False))
    found = report.to_json()["values"]
    assert {proof: counted["leaves"] for proof, counted in found["proofs"].items()} == PROOFS[kind]
    assert sum(counted["bytes"] for counted in found["proofs"].values()) == found["bytes"]
    assert (found["ok"], found["leaves"], found["reader"]) == (True, sum(PROOFS[kind].values()), None)
    assert ("are the source's own bytes on disk" in report.text()) is ("reference" in PROOFS[kind])
    again = converter.verify(
        source, tmp_path / "out", **{k: v for k, v in options_of(kind, False).items() if k == "rules"}
    )
    assert again.ok
    full = convert(source, tmp_path / "full", **options_of(kind, full=True)).to_json()["values"]
    assert (full["ok"], full["leaves"], full["reader"]) == (True, found["leaves"], "Orbax")
    assert full["proofs"] == {"values": {"leaves": found["leaves"], "bytes": found["bytes"]}}


@pytest.mark.parametrize(("kind", "full"), [*((kind, False) for kind in KINDS), ("orbax", True), ("streamed", True)])
@pytest.mark.parametrize("tamper", TAMPERS)
def test_orbax(tamper: str, kind: str, full: bool, sources: Mapping[str, Path], tmp_path: Path) -> None:
    if kind in ("orbax", "compressed") and tamper in WRITING:
        pytest.skip("would change the source too")
    source = sources["compressed" if kind == "compressed" else "orbax"]
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    neighbours = set(tmp_path.iterdir())
    with pytest.raises((VerificationFailed, UnreadableCheckpoint)):
        convert(source, tmp_path / "out", TAMPERS[tamper], **options_of(kind, full))
    assert set(tmp_path.iterdir()) == neighbours
    assert {path: path.read_bytes() for path in before} == before


# The same with a msgpack file ----------------------------------------------------------------------------------------


def replaced(old: bytes, new: bytes) -> Tamper:
    def tamper(file: Path) -> None:
        content = file.read_bytes()
        assert content.count(old) >= 1
        file.write_bytes(content.replace(old, new, 1))

    return tamper


def middle(file: Path) -> None:
    flip(file, file.stat().st_size // 2)


def last_float(file: Path) -> None:
    content = file.read_bytes()
    place = content.index(PARAMS["one"]["bias"].tobytes())
    flip(file, place + 4 * 39)


MSGPACK_TAMPERS: dict[str, Tamper] = {
    "a large array": middle,
    "a small one": last_float,
    "dtype": replaced(b"float32", b"int32__"),
    "another dtype of that size": replaced(b"\xa7float32", b"\xa5int32"),
    "name": replaced(b"bias", b"bais"),
    "number": replaced(b"epoch\x03", b"epoch\x04"),
    "kind of number": replaced(b"epoch\x03", b"epoch\xc3"),
    "text": replaced(b"text", b"txet"),
    "end": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "more": lambda file: file.write_bytes(file.read_bytes() + b"\0"),
}


@pytest.mark.parametrize(
    ("kind", "full"), [("orbax", False), ("msgpack", False), ("compressed", False), ("compressed", True)]
)
@pytest.mark.parametrize("tamper", MSGPACK_TAMPERS)
def test_msgpack(tamper: str, kind: str, full: bool, sources: Mapping[str, Path], tmp_path: Path) -> None:
    source, neighbours = sources[kind], set(tmp_path.iterdir())
    options: dict[str, Any] = {"to_format": "msgpack", "verify": "full" if full else True, "drop": ["**/key"]}
    if kind == "msgpack":
        del options["drop"]
    with pytest.raises((VerificationFailed, UnreadableCheckpoint, UnsupportedCheckpoint)):
        convert(source, tmp_path / "out", MSGPACK_TAMPERS[tamper], **options)
    assert set(tmp_path.iterdir()) == neighbours


@pytest.mark.parametrize(
    ("kind", "proofs"),
    [
        ("orbax", {"bytes": 5, "values": 2}),
        ("msgpack", {"bytes": 5, "values": 2}),
        ("compressed", {"digest": 5, "values": 2}),
    ],
)
def test_reports_tell_the_proofs_of_msgpack(
    kind: str, proofs: dict[str, int], sources: Mapping[str, Path], tmp_path: Path
) -> None:
    dropped: dict[str, Any] = {} if kind == "msgpack" else {"drop": ["**/key"]}
    for full in (False, True):
        options = {"to_format": "msgpack", "verify": "full" if full else True, **dropped}
        found = convert(sources[kind], tmp_path / f"out{full}", **options).to_json()["values"]
        reached = {proof: counted["leaves"] for proof, counted in found["proofs"].items()}
        assert (reached, found["reader"]) == (({"values": 7}, "Flax") if full else (proofs, None))
