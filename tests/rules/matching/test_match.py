"""Which variable of one framework is which of the other: names without models, and against one model or two."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from converter.models import Model, ModelVariable
from converter.paths import IntKey, Path, format_path, parse_path
from converter.rules.link import Correspondence, Name
from converter.rules.matching.match import correspond
from converter.tree import LeafKind, LeafSpec, array_spec, empty_spec, parse_array_spec

GATES = ["ii", "if", "ig", "io", "hi", "hf", "hg", "ho"]


def name(text: str) -> Name:
    """The name that ``params:layers/0/kernel`` stands for."""
    collection, _, path = text.partition(":")
    return collection, parse_path(path)


def sources(*texts: str) -> dict[Name, LeafSpec]:
    """Source variables of some shape."""
    return {name(text): array_spec("float32", (2,)) for text in texts}


def sized(variables: dict[str, str]) -> dict[Name, LeafSpec]:
    """Source variables of given specs."""
    return {name(text): parse_array_spec(spec) for text, spec in variables.items()}


def linen_model(*texts: str, spec: str = "float32[2]") -> Model:
    return Model("linen", None, tuple(_variable(*name(text), spec) for text in texts))


def nnx_model(
    *texts: str, spec: str = "float32[2]", joined: dict[str, str] | None = None, trainable: bool = False
) -> Model:
    """An NNX model; ``joined`` gives the Linen paths of the items of its lists."""
    paths = {parse_path(path): parse_path(linen) for path, linen in (joined or {}).items()}
    found = []
    for text in texts:
        collection, path = name(text)
        with_items = tuple(IntKey(key) if key.isdigit() else key for key in path)
        found.append(
            _variable(collection, with_items, spec, paths.get(path, path), trainable or collection == "params")
        )
    return Model("nnx", None, tuple(found))


def _variable(
    collection: str, path: Path, spec: str, linen_path: Path | None = None, trainable: bool = False
) -> ModelVariable:
    return ModelVariable(collection, path, parse_array_spec(spec), linen_path or path, trainable=trainable)


class Matching:
    """What ``correspond`` finds, for links that are plain renames."""

    def __init__(self, found: Correspondence) -> None:
        self.names = {link.sources[0]: link.targets[0] for link in found.links}
        assert all(len(link.sources) == len(link.targets) == 1 for link in found.links)
        self.problems = [problem for problem, _ in found.problems]
        self.dtypes, self.notes, self.unfilled = found.dtypes, found.notes, found.unfilled


def match_to_nnx(
    found: dict[Name, LeafSpec], dropped: Collection[Name], nnx: Model | None, linen: Model | None = None
) -> Matching:
    return Matching(correspond("nnx", found, dict.fromkeys(dropped, array_spec("float32", (2,))), linen, nnx))


def match_to_linen(
    found: dict[Name, LeafSpec], dropped: Collection[Name], nnx: Model | None, linen: Model | None
) -> Matching:
    return Matching(correspond("linen", found, dict.fromkeys(dropped, array_spec("float32", (2,))), linen, nnx))


def renamed(matching: Matching) -> dict[str, str]:
    """Every pair of names as texts."""
    return {_text(old): _text(new) for old, new in matching.names.items()}


def _text(name: Name) -> str:
    return f"{name[0]}:{format_path(name[1])}"


def assert_clean(matching: Matching) -> None:
    assert (matching.problems, matching.dtypes, matching.notes, matching.unfilled) == ([], [], [], [])


# Without models ------------------------------------------------------------------------------------------------------


def test_without_models_names_stay_as_they_are():
    found = sources(
        "params:up/kernel", "params:if/kernel", "batch_stats:norm/mean", "counter:count", "params:layers/0/w"
    )
    for matching in (match_to_nnx(found, (), None), match_to_linen(found, (), None, None)):
        assert matching.names == {name: name for name in found}
        assert_clean(matching)


def test_without_models_the_gate_of_lstm_cells_is_renamed():
    linen = sources(*(f"params:cell/{gate}/kernel" for gate in GATES), "params:other/if/kernel")
    there = match_to_nnx(linen, (), None)
    assert {old: new for old, new in renamed(there).items() if old != new} == {
        "params:cell/if/kernel": "params:cell/if_/kernel"
    }
    back = match_to_linen(dict.fromkeys(there.names.values(), array_spec("float32")), (), None, None)
    assert list(back.names.values()) == list(linen)


# To NNX, with its model ----------------------------------------------------------------------------------------------


def test_equal_names_match():
    texts = ("params:up/kernel", "params:up/bias", "batch_stats:norm/mean", "Count:count")
    matching = match_to_nnx(sources(*texts), (), nnx_model(*texts))
    assert renamed(matching) == {text: text for text in texts}
    assert_clean(matching)


def test_items_of_lists_are_found_under_joined_names_and_under_numbers():
    model = nnx_model(
        "params:layers/0/w", "params:layers/10/w", joined={"layers/0/w": "layers_0/w", "layers/10/w": "layers_10/w"}
    )
    for linen in (["params:layers_0/w", "params:layers_10/w"], ["params:layers/0/w", "params:layers/10/w"]):
        matching = match_to_nnx(sources(*linen), (), model)
        assert renamed(matching) == dict(zip(linen, ["params:layers/0/w", "params:layers/10/w"], strict=True))
        assert_clean(matching)


def test_target_names_have_the_keys_of_the_model():
    matching = match_to_nnx(sources("params:layers/0/w"), (), nnx_model("params:layers/0/w"))
    ((_, path),) = matching.names.values()
    assert isinstance(path[1], IntKey)


def test_lstm_cells_of_a_model():
    model = nnx_model(
        *(f"params:cells/0/{gate}/kernel".replace("/if/", "/if_/") for gate in GATES),
        joined={
            f"cells/0/{gate}/kernel".replace("/if/", "/if_/"): f"cells_0/{gate}/kernel".replace("/if/", "/if_/")
            for gate in GATES
        },
    )
    matching = match_to_nnx(sources(*(f"params:cells_0/{gate}/kernel" for gate in GATES)), (), model)
    assert renamed(matching)["params:cells_0/if/kernel"] == "params:cells/0/if_/kernel"
    assert len(matching.names) == 8
    assert_clean(matching)


def test_trainable_variables_of_other_classes_are_params_in_linen():
    model = nnx_model("LoRAParam:lora_a", "params:kernel", trainable=True)
    for collection in ("params", "LoRAParam"):
        matching = match_to_nnx(sources(f"{collection}:lora_a", "params:kernel"), (), model)
        assert renamed(matching) == {f"{collection}:lora_a": "LoRAParam:lora_a", "params:kernel": "params:kernel"}
        assert_clean(matching)


def test_variables_of_other_classes_are_not_params():
    matching = match_to_nnx(sources("params:count"), (), nnx_model("Count:count"))
    assert matching.names == {}
    assert len(matching.problems) == 2


def test_all_problems_are_collected():
    found = sized(
        {
            "params:up/kernel": "float32[3,2]",
            "params:up/extra": "float32[4]",
            "params:norm/mean": "float32[2]",
            "counter:count": "int32[]",
        }
    )
    model = nnx_model("params:up/kernel", "params:up/bias", "batch_stats:norm/mean")
    matching = match_to_nnx(found, (), model)
    assert matching.problems == [
        "params/up/kernel: expected float32[2] by the model, found float32[3,2] in the checkpoint",
        "params/up/bias: expected float32[2] by the NNX model, found nothing of that name in the checkpoint",
        "batch_stats/norm/mean: expected float32[2] by the NNX model, found nothing of that name in the checkpoint",
        "params/up/extra: float32[4] in the checkpoint, no such variable in the NNX model",
        "params/norm/mean: float32[2] in the checkpoint, no such variable in the NNX model",
        "counter/count: int32[] in the checkpoint, no such variable in the NNX model",
    ]


def test_arrays_that_are_no_variables_can_come_from_the_model():
    matching = match_to_nnx({}, (), nnx_model(":conv/mask"))
    assert [format_path(variable.path) for variable in matching.unfilled] == ["conv/mask"]
    assert matching.problems == []


def test_another_dtype_is_no_other_shape():
    found = sized({"params:w": "bfloat16[2]", "params:v": "float32[2]"})
    matching = match_to_nnx(found, (), nnx_model("params:w", "params:v"))
    assert matching.dtypes == ["params/w: bfloat16[2] in the checkpoint, float32[2] in the model"]
    assert matching.problems == []
    assert len(matching.names) == 2


def test_a_key_is_not_its_words():
    key = LeafSpec(LeafKind.KEY, "threefry2x32", (2,))
    matching = match_to_nnx({("params", ("w",)): key}, (), nnx_model("params:w", spec="uint32[2]"))
    assert matching.problems == [
        "params/w: expected uint32[2] by the model, found key<threefry2x32>[2] in the checkpoint"
    ]


def test_a_model_variable_that_holds_nothing_expects_nothing():
    variable = ModelVariable("cache", ("cached_key",), empty_spec("node"), ("cached_key",))
    matching = match_to_nnx(sources("cache:cached_key"), (), Model("nnx", None, (variable,)))
    assert len(matching.names) == 1
    assert_clean(matching)


def test_random_state_and_dropped_variables_may_be_absent():
    model = nnx_model(
        "RngKey:rngs/key",
        "RngCount:rngs/count",
        "params:head/kernel",
        "params:layers/0/w",
        joined={"layers/0/w": "layers_0/w"},
    )
    dropped = {name("params:head/kernel"), name("params:layers_0/w")}
    matching = match_to_nnx({}, dropped, model)
    assert [format_path(variable.path) for variable in matching.unfilled] == ["rngs/key", "rngs/count"]
    assert matching.problems == []


def test_no_source_fills_two_variables():
    """An item of a list, and an attribute with the name that Linen would give to the item."""
    model = nnx_model("params:layers/0/w", "params:layers_0/w", joined={"layers/0/w": "layers_0/w"})
    matching = match_to_nnx(sources("params:layers_0/w"), (), model)
    assert len(matching.names) == len(matching.problems) == 1
    assert "expected float32[2] by the NNX model, found nothing of that name" in matching.problems[0]


# To Linen ------------------------------------------------------------------------------------------------------------


def test_the_nnx_model_tells_what_is_a_list():
    found = sources("params:layers/0/w", "params:by_number/0/w")
    model = nnx_model("params:layers/0/w", "params:by_number/0/w", joined={"layers/0/w": "layers_0/w"})
    matching = match_to_linen(found, (), model, None)
    assert renamed(matching) == {
        "params:layers/0/w": "params:layers_0/w",
        "params:by_number/0/w": "params:by_number/0/w",
    }
    assert_clean(matching)


def test_the_checkpoint_is_compared_with_its_own_model():
    found = sized({"params:w": "float32[3]", "params:x": "float32[2]", "params:v": "bfloat16[2]"})
    model = nnx_model("params:w", "params:v", "params:absent", "RngKey:rngs/key", "params:dropped")
    matching = match_to_linen(found, {name("params:dropped")}, model, None)
    assert matching.problems == [
        "params/w: expected float32[2] by the model, found float32[3] in the checkpoint",
        "params/x: float32[2] in the checkpoint, no such variable in the NNX model",
    ]
    assert matching.dtypes == ["params/v: bfloat16[2] in the checkpoint, float32[2] in the model"]
    assert matching.notes == ["params/absent float32[2] is in the NNX model but not in the checkpoint"]


@pytest.mark.parametrize("linen", ["params:layers_0/w", "params:layers/0/w"])
def test_a_linen_model_is_matched_with_numbers_joined_or_not(linen: str):
    matching = match_to_linen(sources("params:layers/0/w"), (), None, linen_model(linen))
    assert renamed(matching) == {"params:layers/0/w": linen}
    assert_clean(matching)


def test_two_models_find_items_of_dicts():
    model = nnx_model("params:blocks/up/w", joined={"blocks/up/w": "blocks_up/w"})
    matching = match_to_linen(sources("params:blocks/up/w"), (), model, linen_model("params:blocks_up/w"))
    assert renamed(matching) == {"params:blocks/up/w": "params:blocks_up/w"}
    assert_clean(matching)


def test_twelve_items_keep_their_numbers():
    nnx = [f"params:layers/{n}/w" for n in range(12)]
    linen = [f"params:layers_{n}/w" for n in sorted(range(12), key=str)]
    matching = match_to_linen(sources(*nnx), (), None, linen_model(*linen))
    assert renamed(matching) == {old: old.replace("layers/", "layers_") for old in nnx}


def test_lstm_cells_of_a_linen_model():
    nnx = [f"params:cell/{gate}/kernel".replace("/if/", "/if_/") for gate in GATES]
    matching = match_to_linen(sources(*nnx), (), None, linen_model(*(f"params:cell/{gate}/kernel" for gate in GATES)))
    assert renamed(matching)["params:cell/if_/kernel"] == "params:cell/if/kernel"
    assert len(matching.names) == 8
    assert_clean(matching)


def test_all_problems_of_a_linen_model_are_collected():
    found = sized({"params:up/kernel": "float32[3]", "params:gone/w": "float32[2]"})
    matching = match_to_linen(found, (), None, linen_model("params:up/kernel", "params:up/bias", "cache:k"))
    assert matching.problems == [
        "params/up/kernel: expected float32[2] by the model, found float32[3] in the checkpoint",
        "params/up/bias: expected float32[2] by the Linen model, found nothing of that name in the checkpoint",
        "cache/k: expected float32[2] by the Linen model, found nothing of that name in the checkpoint",
        "params/gone/w: float32[2] in the checkpoint, no such variable in the Linen model",
    ]


def test_trainable_variables_of_other_classes_go_to_params_of_a_linen_model():
    model = nnx_model("LoRAParam:lora_a", trainable=True)
    matching = match_to_linen(sources("LoRAParam:lora_a"), (), model, linen_model("params:lora_a"))
    assert renamed(matching) == {"LoRAParam:lora_a": "params:lora_a"}
    assert_clean(matching)
