"""The benchmark's tables, arithmetic and wording, on made-up numbers. No clock is read here."""

from __future__ import annotations

import io
import json
import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import __main__ as main
from benchmarks import report, runner, sources
from benchmarks.cases import CASES, DEFAULT_SIZES, QUICK_SIZES, Contender
from benchmarks.check import check_result, flat
from benchmarks.contenders import CONTENDERS, merged, unwrapped, wrapped
from benchmarks.measure import Failed, Rounds, Run, Runs, Turns, alternate, ratio, run_process
from benchmarks.plot import styles
from benchmarks.runner import RULES, plan, words
from benchmarks.targets import TARGETS, Measured, judge
from benchmarks.tree import Scale, expected

TINY = Scale(leaves=200)


def runs(name: str, role: str, *seconds: float, peak: float = 50.0) -> Runs:
    return Runs(name, role, [Run(s, s / 2, peak) for s in seconds])


def measured(case: str = "rename", scale: str = "2GB", ours: float = 0.1, peak: float = 50.0) -> Measured:
    contenders = [
        runs("flax-convert", "ours", ours, 3 * ours, ours, peak=peak),
        runs("today's way", "today", 20.0, 10.0, 90.0, peak=4300),
        Runs("another way", "today", note="exit code 9: no output"),
        runs("cp -r", "limit", 0.5),
    ]
    return Measured(case, Scale.parse(scale), contenders)


# The tables ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_is_complete(case):
    roles = [contender.role for contender in case.contenders]
    assert {"ours", "today", "limit"} == set(roles)
    assert len({contender.name for contender in case.contenders}) == len(roles)
    assert (case.makes is None) == (case.pair is not None)
    assert case.name.startswith("leaves-") == case.small
    for contender in case.contenders:
        command = shlex.split(contender.command)
        assert "SRC" in command
        if command[0] == "python":
            assert command[2] == "benchmarks.contenders"
            assert command[3] in CONTENDERS
        assert (contender.role == "ours") == (command[0] == "flax-convert")
        assert contender.needs in contender.command


def test_the_works_that_are_asked_for_are_all_there():
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    assert {"rename", "msgpack-to-orbax", "orbax-to-msgpack", "stack", "unstack", "unstack-one-chunk"} < set(names)
    assert {"verify-linked", "verify-copied", "leaves-rename"} < set(names)
    assert QUICK_SIZES.keys() < set(names)
    used = {shlex.split(c.command)[3] for case in CASES for c in case.contenders if c.role == "today"}
    assert used == CONTENDERS.keys()


def test_cases_of_one_source_stand_together():
    for small in (False, True):
        kinds = [case.source for case in CASES if case.small is small]
        changes = [kind for kind, before in zip(kinds, [None, *kinds], strict=False) if kind != before]
        assert len(set(changes)) == len(changes)


def test_every_target_names_a_contender_of_a_case():
    contenders = {case.name: {contender.name for contender in case.contenders} for case in CASES}
    for target in TARGETS:
        assert target.contender in contenders[target.case]
        assert all(Scale.parse(size) for size in target.sizes)
    assert {target.case for target in TARGETS} | {"unstack-one-chunk"} == contenders.keys()


def test_words_of_a_command(tmp_path):
    found = words("flax-convert linen-to-nnx SRC DST --rules RULES", tmp_path / "a b", tmp_path / "c")
    assert found[1:] == ["linen-to-nnx", str(tmp_path / "a b"), str(tmp_path / "c"), "--rules", str(RULES)]
    assert RULES.is_file()
    assert words("sh -c 'cat \"$@\"' cat SRC", Path("x"), Path("y")) == ["sh", "-c", 'cat "$@"', "cat", "x"]


# Scales and plans ----------------------------------------------------------------------------------------------------


def test_scales():
    assert [str(Scale.parse(text)) for text in ("512MB", "2GB", "64", "50,000 leaves")] == [
        "512 MB",
        "2 GB",
        "64 MB",
        "50,000 leaves",
    ]
    large = Scale.parse("2GB")
    assert (large.layers, large.count) == (12, 60)
    assert large.nbytes == pytest.approx(2e9, rel=0.001)
    assert Scale(leaves=50_000).count == 50_000
    assert 150 < Scale(leaves=5_000).nbytes / 5_000 < 250
    for wrong in ("2TB", "", "0", "-1", "2.5GB"):
        with pytest.raises(ValueError, match="is no size"):
            Scale.parse(wrong)


def test_more_bytes_are_more_layers():
    kernels = [Scale.parse(size).shapes["up", "kernel"] for size in DEFAULT_SIZES]
    assert max(kernels)[0] / min(kernels)[0] < 1.05


def test_the_plan_goes_from_small_to_large():
    scales = main.chosen(["rename", "leaves-*"], ["64MB", "16MB"], 200, quick=False)
    names = [(str(scale), [case.name for case in cases]) for scale, cases in plan(scales)]
    small = [case.name for case in CASES if case.small]
    assert names == [("200 leaves", small), ("16 MB", ["rename"]), ("64 MB", ["rename"])]


def test_what_quick_measures():
    scales = main.chosen(["*"], None, None, quick=True)
    assert scales.keys() == QUICK_SIZES.keys()
    assert [str(scale) for scale in scales["rename"]] == ["16 MB", "64 MB", "256 MB"]
    assert scales["leaves-rename"] == [Scale(leaves=5000)]
    assert main.chosen(["unstack"], None, None, quick=True) == {"unstack": [Scale(megabytes=64)]}


@pytest.mark.parametrize(("sizes", "leaves"), [(["much"], None), (None, 150)])
def test_sizes_that_cannot_be(sizes, leaves):
    with pytest.raises(SystemExit):
        main.chosen(["*"], sizes, leaves, quick=False)


# Runs in turn --------------------------------------------------------------------------------------------------------


def turns(log: list[str], **seconds: float) -> Turns:
    def turn(name):
        def run():
            log.append(name)
            if seconds[name] < 0:
                raise Failed("exit code 2: no")
            return Run(seconds[name], 0.0, 1.0)

        return run

    return {name: turn(name) for name in seconds}


def test_contenders_alternate_in_every_round():
    log: list[str] = []
    again = turns(log, a=1, b=1, c=1)
    results = alternate(again, again, Rounds(usual=2))
    assert "".join(log) == "abc" + "cba" + "abc"
    assert [len(result.runs) for result in results] == [2, 2, 2]


def test_a_slow_contender_runs_less_often_and_a_failing_one_once():
    log: list[str] = []
    again = turns(log, a=1, slow=70, bad=-1)
    a, slow, bad = alternate(again, again, Rounds(usual=5, slow=2, slow_after=60))
    assert (len(a.runs), len(slow.runs), len(bad.runs)) == (5, 2, 0)
    assert (log.count("a"), log.count("slow"), log.count("bad")) == (6, 2, 1)
    assert bad.note == "exit code 2: no"


def test_without_warming_up_the_first_run_counts():
    log: list[str] = []
    again = turns(log, a=1, slow=70)
    a, slow = alternate(again, again, Rounds(usual=3, warm_up=False))
    assert (len(a.runs), len(slow.runs)) == (3, 1)
    assert log == ["a", "slow", "a", "a"]


def test_medians_and_ratios():
    mixed = runs("x", "ours", 5.0, 1.0, 2.0)
    mixed.runs[0] = replace(mixed.runs[0], peak_mb=70.0)
    assert (mixed.seconds, mixed.cpu, mixed.peak_mb) == (2.0, 1.0, 70.0)
    assert runs("x", "ours", 1.0, 2.0).seconds == 1.5
    assert ratio(runs("t", "today", 30.0), mixed) == 15.0
    assert ratio(None, mixed) is None
    assert ratio(mixed, Runs("none", "today")) is None


def test_a_process_and_its_usage(tmp_path):
    run = run_process([sys.executable, "-c", "print('hello')"], tmp_path / "log")
    assert (tmp_path / "log").read_text() == "hello\n"
    assert run.seconds > 0
    assert run.peak_mb > 1
    with pytest.raises(Failed, match=r"^exit code 3: error: so it is$"):
        run_process(["sh", "-c", "echo error: so it is; echo try again; exit 3"], tmp_path / "log")


# Targets and reports -------------------------------------------------------------------------------------------------


def outcomes(*results: Measured) -> dict[str, tuple[bool | None, str]]:
    return {outcome.text: (outcome.met, outcome.measured) for outcome in judge(results)}


def test_targets_met_and_missed():
    assert outcomes(measured()) == {
        "≥ 40× as fast as today at 2 GB": (True, "200.0×"),
        "≥ 150× as fast as today at 8 GB": (None, "200.0× at 2 GB"),
        "peak ≤ 120 MB": (True, "50 MB"),
        "peak flat from 512 MB to 8 GB": (None, "one size"),
    }
    slow = outcomes(measured(ours=1.0, peak=130))
    assert slow["≥ 40× as fast as today at 2 GB"] == (False, "20.0×")
    assert slow["peak ≤ 120 MB"] == (False, "130 MB")
    assert outcomes(measured(scale="16MB"))["peak ≤ 120 MB"] == (None, "50 MB up to 16 MB")
    assert outcomes(measured(scale="16MB", peak=130))["peak ≤ 120 MB"] == (False, "130 MB")


def test_flat_memory():
    flat_text = "peak flat from 512 MB to 8 GB"
    assert outcomes(measured(scale="512MB"), measured(scale="8GB", peak=60))[flat_text] == (True, "1.20×")
    assert outcomes(measured(scale="512MB"), measured(scale="8GB", peak=100))[flat_text] == (False, "2.00×")
    assert outcomes(measured(scale="16MB"), measured(scale="64MB"))[flat_text] == (None, "1.00× from 16 MB to 64 MB")


def test_a_target_against_copying_and_one_without_anything_to_compare():
    found = outcomes(measured("msgpack-to-orbax", ours=1.0))
    assert found["≤ 3× the time of copying at 2 GB"] == (True, "2.0×")
    lone = Measured("rename", Scale.parse("2GB"), [runs("flax-convert", "ours", 1.0)])
    assert outcomes(lone)["≥ 40× as fast as today at 2 GB"] == (None, "nothing to compare with")
    assert judge([]) == []


def test_the_table():
    lines = report.table(measured()).splitlines()
    assert lines[0] == "Orbax → Orbax, leaves renamed (NNX → Linen): 2 GB [rename]"
    assert lines[2].split() == ["flax-convert", "200×", "0.20×", "0.100", "0.100", "0.300", "0.05", "50", "3"]
    assert lines[3].split()[2:] == ["1.00×", "40.0×", "20.000", "10.000", "90.000", "10.00", "4300", "3"]
    assert lines[4].split(maxsplit=2)[2] == "exit code 9: no output"
    assert len({len(line) for line in lines[1:4]}) == 1


def test_the_targets_as_text():
    text = report.as_text([measured()], judge([measured()]))
    assert "\nTargets\nmet     rename                   flax-convert" in text
    assert report.targets_table([]) == "Targets: none was measured"


def test_json():
    results = [measured(), Measured("stack", Scale.parse("2GB"), [])]
    found = json.loads(json.dumps(report.as_json(results, judge(results), Rounds())))
    assert found.keys() == {"environment", "rounds", "cases", "targets"}
    (case,) = found["cases"]
    assert (case["case"], case["scale"], case["leaves"]) == ("rename", "2 GB", 60)
    ours, _, failed, _ = case["contenders"]
    assert ours["times_as_fast_as_today"] == pytest.approx(200)
    assert [run["seconds"] for run in ours["runs"]] == pytest.approx([0.1, 0.3, 0.1])
    assert (failed["median_seconds"], failed["runs"]) == (None, [])
    assert {target["outcome"] for target in found["targets"]} == {"met", "open"}
    assert str(Path.home()) not in json.dumps(found)
    assert os.getcwd() not in json.dumps(found)
    assert styles(found["cases"])["flax-convert"][1] == "o"


# What is measured ----------------------------------------------------------------------------------------------------


def test_layouts_hold_the_same_values():
    nnx, linen, scanned = (expected(Scale.parse("4MB"), layout) for layout in ("nnx", "linen", "scanned"))
    kernel = scanned["layers", "up", "kernel", "value"].value()
    np.testing.assert_array_equal(kernel[:, 1], nnx["layers_1", "up", "kernel", "value"].value())
    np.testing.assert_array_equal(kernel[:, 1], linen["params", "layers_1", "up", "kernel"].value())
    assert not np.array_equal(kernel[:, 0], kernel[:, 1])


def test_what_contenders_share():
    tree = {"a": {"kernel": 1}, "b": {"kernel": 2}}
    assert unwrapped(wrapped(tree)) == tree
    assert merged([tree, tree], sum) == {"a": {"kernel": 2}, "b": {"kernel": 4}}


def test_the_msgpack_source_is_what_flax_writes(tmp_path):
    from flax import serialization

    leaves = expected(TINY, "linen")
    file = io.BytesIO()
    sources._write_msgpack(file, leaves)
    whole = sources.nested((place, leaf.value()) for place, leaf in leaves.items())
    assert file.getvalue() == serialization.to_bytes(whole)
    path = tmp_path / "x.msgpack"
    path.write_bytes(file.getvalue())
    assert check_result(path, "msgpack", "linen", TINY) == ""
    assert check_result(path, "msgpack", "nnx", TINY).endswith("found nothing, expected float32[50]")
    first = next(iter(leaves.values())).value().tobytes()
    path.write_bytes(file.getvalue().replace(first, b"\0" + first[1:]))
    assert check_result(path, "msgpack", "linen", TINY) == "params/layers_0/unit_0/kernel: the values differ"


def test_flat():
    assert flat({"a": {"b": 1, "c": {}}, "d": 2}) == {("a", "b"): 1, ("d",): 2}


def test_an_option_that_the_command_line_lacks(monkeypatch):
    monkeypatch.setattr(runner, "_help", {"nnx-to-linen": "│ --copy-all  --no-verify │"}.__getitem__)
    command = "flax-convert nnx-to-linen SRC DST"
    assert runner.known(Contender("x", "ours", command))
    assert runner.known(Contender("x", "ours", command, needs="--no-verify"))
    assert not runner.known(Contender("x", "ours", command, needs="--copy"))
