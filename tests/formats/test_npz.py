"""Reading npz files: those of NumPy as NumPy reads them, and what cannot be read explained by name."""

from __future__ import annotations

import contextlib
import io
import os
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.lib import format as numpy_format

from converter import scratch
from converter.errors import ConverterError, UnreadableCheckpoint, UnsupportedCheckpoint, UsageError
from converter.formats import FORMATS, open_checkpoint
from converter.formats.checkpoint import PLAIN, Strategy
from converter.paths import format_path
from converter.tree import Tree

many = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

SAVERS = {"stored": np.savez, "compressed": np.savez_compressed}

both = pytest.mark.parametrize("saver", SAVERS.values(), ids=SAVERS)


def values(tree: Tree) -> dict[str, Any]:
    return {format_path(path): leaf.fetch() for path, leaf in tree.items()}


NUMBERS = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
NUMBERS += ("float16", "float32", "float64", "complex64", "complex128")


@both
@pytest.mark.parametrize("shape", [(2, 3), (), (0, 4), (5,)], ids=str)
def test_every_dtype(saver: Any, shape: tuple[int, ...], tmp_path: Path) -> None:
    size = int(np.prod(shape))
    arrays = {name: np.arange(1, size + 1).astype(name).reshape(shape) for name in NUMBERS}
    saver(tmp_path / "a.npz", **arrays)
    for name, value in values(open_checkpoint(tmp_path / "a.npz").tree).items():
        assert (value.dtype, value.shape) == (arrays[name].dtype, shape)
        assert value.tobytes() == arrays[name].tobytes()


@both
def test_odd_orders(saver: Any, tmp_path: Path) -> None:
    """Of bytes and of axes."""
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    saver(tmp_path / "a.npz", big=array.astype(">f4"), fortran=np.asfortranarray(array), f_big=array.T.astype(">f8").T)
    tree = open_checkpoint(tmp_path / "a.npz").tree
    for name, value in values(tree).items():
        assert str(tree[(name,)].spec) == ("float64[2,3,4]" if name == "f_big" else "float32[2,3,4]")
        np.testing.assert_array_equal(value, array)
    for name, format in FORMATS.items():
        format.write(tree, tmp_path / name, lambda *_: None)
        for value in values(format.open(tmp_path / name).tree).values():
            np.testing.assert_array_equal(value, array)


@both
def test_bfloat16_of_which_numpy_forgets_the_name(saver: Any, tmp_path: Path) -> None:
    """big_vision takes such arrays for bfloat16 too (``recover_dtype``)."""
    array = np.array([1.5, -2, 0.1], ml_dtypes.bfloat16)
    saver(tmp_path / "a.npz", **{"params/kernel": array})
    found = open_checkpoint(tmp_path / "a.npz")
    value = found.tree[("params", "kernel")].fetch()
    assert value.dtype == array.dtype
    assert value.tobytes() == array.tobytes()
    assert found.facts["arrays without a dtype, taken for bfloat16"] == "1"


@both
def test_arrays_that_are_larger_than_the_budget(saver: Any, tmp_path: Path) -> None:
    array = np.random.default_rng(0).standard_normal((300, 1000)).astype(np.float32)
    saver(tmp_path / "a.npz", c=array, f=np.asfortranarray(array))
    tree = open_checkpoint(tmp_path / "a.npz").tree
    with scratch.room(tmp_path, 1 << 20):
        for value in values(tree).values():
            assert scratch._mapping(value) is not None
            np.testing.assert_array_equal(value, array)


def test_stored_arrays_are_copied_by_the_system(tmp_path: Path) -> None:
    arrays = {"params/a": np.arange(40_000, dtype=np.float32), "params/b": np.ones((200, 300), ml_dtypes.bfloat16)}
    ways = {}
    for name, saver in SAVERS.items():
        saver(tmp_path / f"{name}.npz", **arrays)
        tree = open_checkpoint(tmp_path / f"{name}.npz").tree
        for kind, format in FORMATS.items():
            place = tmp_path / f"{name}.{kind}"
            format.write(tree, place, lambda *_: None)
            ways[name, kind] = set(format.strategies(tree, PLAIN).values())
            found = values(format.open(place).tree)
            assert {path: value.tobytes() for path, value in found.items()} == {
                path: array.tobytes() for path, array in arrays.items()
            }
    copies = {("stored", format): {Strategy.COPY} for format in FORMATS}
    assert ways == copies | {("compressed", format): {Strategy.STREAM} for format in FORMATS}


@pytest.mark.parametrize(
    ("names", "paths"),
    [
        (["params/head/kernel", "opt/0/count"], ["params/head/kernel", "opt/0/count"]),
        (["params/a.b/kernel"], ["params/a.b/kernel"]),
        (["head.kernel", "x"], ["head/kernel", "x"]),
        (["arr_0", "arr_1"], ["arr_0", "arr_1"]),
        (["ö/β"], ["ö/β"]),
    ],
    ids=str,
)
def test_names(names: list[str], paths: list[str], tmp_path: Path) -> None:
    np.savez(tmp_path / "a", **{name: np.zeros(1) for name in names})
    assert list(values(open_checkpoint(tmp_path / "a.npz").tree)) == paths


def test_facts(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", **{"a/b": np.zeros(3)})
    facts = open_checkpoint(tmp_path / "a.npz").facts
    size = (tmp_path / "a.npz").stat().st_size
    expected = {"names": "joined by slashes", "size of the file": f"{size} bytes", "compressed arrays": "1"}
    assert facts == expected


# What cannot be read -------------------------------------------------------------------------------------------------


def refused(error: type[ConverterError], place: Path, *words: str) -> None:
    with pytest.raises(error) as found:
        open_checkpoint(place)
    for word in words:
        assert word in str(found.value)


def archive(place: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(place, "w", compression) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return place


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.array({"a": 1}), "holds Python objects as a pickle"),
        (np.array(["a", "b"]), "holds text"),
        (np.array([b"a"]), "holds text"),
        (np.array(["2020-01-01"], "datetime64[D]"), "holds dates"),
        (np.zeros(2, [("a", "<f4"), ("b", "<i4")]), "is a structured array"),
        (np.zeros(2, ml_dtypes.float8_e5m2), "has lost its dtype: NumPy has noted only the size of an element (1)"),
        (np.zeros(2, ml_dtypes.float8_e4m3fn), "has lost its dtype"),
        (np.zeros(2, "V16"), "has lost its dtype: NumPy has noted only the size of an element (16)"),
        (np.zeros(2, np.longdouble), "has the dtype '<f16'"),
    ],
    ids=str,
)
def test_arrays_that_hold_no_numbers(array: Any, words: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **{"params/kernel": np.ones(2), "odd/one": array, "odd/two": array})
    refused(UnsupportedCheckpoint, tmp_path / "a.npz", "a.npz holds what", f"odd/one {words}", f"odd/two {words}")


def test_other_members(tmp_path: Path) -> None:
    refused(
        UnsupportedCheckpoint,
        archive(tmp_path / "a.npz", {"a.npy": npy(np.ones(2)), "readme.txt": b"hello"}),
        "readme.txt is no array",
    )


def header(text: str, version: tuple[int, int] = (1, 0)) -> bytes:
    data = text.encode()
    return b"\x93NUMPY" + bytes(version) + len(data).to_bytes(2 if version[0] == 1 else 4, "little") + data


GOOD = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}"

DAMAGED = {
    "no magic": b"NUMPY" + npy(np.ones(2)),
    "nothing": b"",
    "a header that is cut": header(GOOD)[:20],
    "a header of 60,000 bytes": header(GOOD + " " * 60_000, (2, 0)) + bytes(8),
    "a header of code": header("__import__('os').system('true')") + bytes(8),
    "a deep header": header("(" * 5000) + bytes(8),
    "no dict": header("[1]") + bytes(8),
    "no shape": header("{'descr': '<f4', 'fortran_order': False}") + bytes(8),
    "a shape of text": header(GOOD.replace("2,", "'2',")) + bytes(8),
    "a negative shape": header(GOOD.replace("2,", "-2,")) + bytes(8),
    "65 axes": header(GOOD.replace("2,", "1," * 65)) + bytes(8),
    "an order that is no bool": header(GOOD.replace("False", "3")) + bytes(8),
    "too few bytes": header(GOOD) + bytes(7),
    "too many bytes": header(GOOD) + bytes(9),
    "too many elements": header(GOOD.replace("2,", "0, 2**80")) + bytes(8),
    "more elements than fit": header(GOOD.replace("2,", f"0, {2**70}")),
}


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "compressed"])
@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_arrays(name: str, compression: int, tmp_path: Path) -> None:
    place = archive(tmp_path / "a", {"good.npy": npy(np.ones(2)), "bad.npy": DAMAGED[name]}, compression)
    refused(UnreadableCheckpoint, place, f"{place} is damaged", "bad.npy")


def test_versions_of_the_format(tmp_path: Path) -> None:
    data = np.array([1, 2], "<f4").tobytes()
    for version in (1, 2, 3):
        place = archive(tmp_path / f"{version}.npz", {"a.npy": header(GOOD, (version, 0)) + data})
        np.testing.assert_array_equal(open_checkpoint(place).tree[("a",)].fetch(), [1, 2])
    place = archive(tmp_path / "4.npz", {"a.npy": header(GOOD, (4, 0)) + data})
    refused(UnsupportedCheckpoint, place, "a is in version 4.0 of NumPy's format")
    assert numpy_format.read_array(io.BytesIO(header(GOOD, (3, 0)) + data)).tolist() == [1, 2]


def test_a_name_twice(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("a.npy", npy(np.ones(2)))
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("a.npy", npy(np.ones(2)))
    refused(UnreadableCheckpoint, tmp_path / "a.npz", "a.npz is damaged", "'a' twice")


def test_names_that_make_no_tree(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **{"a": np.ones(1), "a/b": np.ones(1)})
    refused(UnsupportedCheckpoint, tmp_path / "a.npz", "with slashes between keys: a/b lies below the leaf a")


@pytest.mark.parametrize("option", [{"step": 3}, {"item": "params"}], ids=str)
def test_there_are_no_steps_and_items(option: dict[str, Any], tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.ones(1))
    with pytest.raises(UsageError, match=r"has no (step|item)"):
        open_checkpoint(tmp_path / "a.npz", **option)


def test_a_checksum_that_is_wrong(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", a=np.arange(1000))
    data = (tmp_path / "a.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.npz") as file:
        checksum = file.infolist()[0].CRC.to_bytes(4, "little")
    assert data.count(checksum) == 2
    (tmp_path / "a.npz").write_bytes(data.replace(checksum, b"\1\2\3\4"))
    tree = open_checkpoint(tmp_path / "a.npz").tree
    with pytest.raises(UnreadableCheckpoint, match=r"a\.npz is damaged: expected the array 'a\.npy', found Bad CRC"):
        tree[("a",)].fetch()


def test_a_file_that_is_cut_after_it_was_opened(tmp_path: Path) -> None:
    for name, saver in SAVERS.items():
        saver(tmp_path / name, a=np.random.default_rng(0).standard_normal(100_000))
        tree = open_checkpoint(tmp_path / f"{name}.npz").tree
        os.truncate(tmp_path / f"{name}.npz", 200_000)
        with pytest.raises(UnreadableCheckpoint, match=name):
            tree[("a",)].fetch()


def _sample(saver: Any) -> bytes:
    stream = io.BytesIO()
    saver(stream, **{"params/a": np.arange(6, dtype=np.float32), "params/b": np.ones((2, 2), np.int8)})
    return stream.getvalue()


SAMPLES = {name: _sample(saver) for name, saver in SAVERS.items()}


@pytest.mark.parametrize("name", SAMPLES)
@given(data=st.data())
@many
def test_cut_anywhere(name: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    place = tmp_path_factory.mktemp("cut") / "a.npz"
    place.write_bytes(SAMPLES[name][: data.draw(st.integers(0, len(SAMPLES[name]) - 1))])
    with pytest.raises(UnreadableCheckpoint):
        open_checkpoint(place)


@pytest.mark.parametrize("name", SAMPLES)
@given(data=st.data())
@many
def test_any_bytes_changed(name: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whatever was changed, all is read or an error says what is wrong."""
    sample = bytearray(SAMPLES[name])
    places = st.tuples(st.integers(0, len(sample) - 1), st.integers(0, 255))
    for place, value in data.draw(st.lists(places, min_size=1, max_size=4)):
        sample[place] = value
    file = tmp_path_factory.mktemp("changed") / "a.npz"
    file.write_bytes(sample)
    with contextlib.suppress(ConverterError):
        values(open_checkpoint(file).tree)
