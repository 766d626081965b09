"""Imports run one way, and what is heavy is loaded by those functions alone that need it."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import converter

PACKAGE = Path(converter.__file__).parent

LAYERS = [
    "folding",
    "errors",
    "stored",
    "grid",
    "scratch",
    "paths",
    "dtypes",
    "tree",
    "formats",
    "user_code",
    "pytrees",
    "calling",
    "training_state",
    "dialects",
    "opening",
    "models",
    "rules",
    "planning",
    "live",
    "run",
    "proof",
    "verification",
    "template",
    "html_report",
    "report",
    "inspection",
    "comparison",
    "options",
    "aligning",
    "conversion",
    "api",
    "memory",
    "seed",
    "demo",
    "console",
    "cli",
    "__main__",
]
"""The rooms from the bottom up. What stands in one may import what stands in those above it in this list."""

HEAVY = {"jax", "jaxlib", "flax", "orbax", "optax", "tensorstore"}


@cache
def parsed() -> dict[str, ast.Module]:
    """Every module of the package by its name, without the name of the package."""
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(file.read_text(encoding="utf-8"))
    return found


def imports(nodes: Iterator[ast.AST]) -> Iterator[str]:
    """The full names of all imported modules; ``from a import b`` is ``a.b`` where that is a module of ours."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                yield inside if inside.removeprefix("converter.") in parsed() else node.module


def own_imports(module: str) -> list[str]:
    """The modules of the package that a module imports anywhere; "" for the package itself."""
    found = imports(ast.walk(parsed()[module]))
    return sorted({name.removeprefix("converter").lstrip(".") for name in found if name.split(".")[0] == "converter"})


def at_the_top(node: ast.AST) -> Iterator[ast.AST]:
    """Everything that runs when a module is imported: nothing in functions, nothing for type checkers alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        yield child
        yield from at_the_top(child)


def room(module: str) -> str:
    return module.partition(".")[0]


MODULES = [name for name in parsed() if name]


def test_every_room_has_its_layer():
    assert {room(module) for module in MODULES} == set(LAYERS)


@pytest.mark.parametrize("module", MODULES)
def test_no_module_imports_one_of_a_later_layer(module: str):
    layer = LAYERS.index(room(module))
    later = [name for name in own_imports(module) if name and LAYERS.index(room(name)) > layer]
    assert later == []


@pytest.mark.parametrize("module", [name for name in MODULES if room(name) == "formats"])
def test_formats_know_nothing_but_trees_and_errors(module: str):
    below = {"errors", "stored", "grid", "scratch", "paths", "dtypes", "tree", "formats"}
    assert {room(name) for name in own_imports(module) if name} <= below  # the version comes from the front door


@pytest.mark.parametrize("module", [name for name in MODULES if room(name) == "dialects"])
def test_dialects_know_nothing_of_formats_and_models(module: str):
    assert {room(name) for name in own_imports(module)} <= {"paths", "tree", "errors", "training_state", "dialects"}


def test_only_the_version_is_imported_from_the_front_door():
    for module in MODULES:
        for node in ast.walk(parsed()[module]):
            if isinstance(node, ast.ImportFrom) and node.module == "converter":
                names = {alias.name for alias in node.names if alias.name not in parsed()}
                assert names <= {"__version__"}, module


def test_modules_do_not_import_each_other_in_circles():
    graph = {}
    for module in MODULES:
        names = {name.removeprefix("converter.") for name in imports(at_the_top(parsed()[module]))}
        graph[module] = sorted((names & set(MODULES)) - {module})
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " → ".join([*above, module])
        if module not in done:
            for name in graph[module]:
                visit(name, (*above, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


@pytest.mark.parametrize("module", [name for name in parsed() if name != "demo.models"])
def test_nothing_heavy_is_imported_at_the_top(module: str):
    heavy = {name.split(".")[0] for name in imports(at_the_top(parsed()[module]))} & HEAVY
    assert heavy == set()


EXAMPLE = """
import jax.numpy as jnp
def f():
    from flax import nnx
if TYPE_CHECKING:
    import optax
try:
    import orbax
finally:
    pass
"""


def test_the_checks_see_what_they_forbid():
    assert set(imports(at_the_top(ast.parse(EXAMPLE)))) == {"jax.numpy", "orbax"}
    assert set(imports(ast.walk(ast.parse(EXAMPLE)))) == {"jax.numpy", "flax", "optax", "orbax"}


# In a fresh interpreter ----------------------------------------------------------------------------------------------


def loaded_by(code: str) -> set[str]:
    """The top-level packages that a new interpreter has loaded after running the code."""
    program = f"import sys, json\n{code}\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PACKAGE.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_package_alone_loads_next_to_nothing():
    assert not loaded_by("import converter") & (HEAVY | {"numpy", "click", "rich", "msgpack"})


def test_the_command_line_loads_nothing_heavy():
    assert not loaded_by("import converter.cli") & (HEAVY | {"numpy", "rich", "msgpack", "pydantic"})


@pytest.mark.parametrize(
    "name",
    [
        *("linen_dense_standard", "nnx_model_optimizer_standard", "linen_dense_msgpack"),
        *("linen_transformer_list_shards", "linen_transformer_npz"),
    ],
)
def test_inspecting_loads_neither_jax_nor_flax_nor_orbax(name: str, fixtures_dir: Path):
    folder = fixtures_dir / "checkpoints" / name
    checkpoint = folder / json.loads((folder / "card.json").read_text(encoding="utf-8"))["checkpoint"]
    code = f"import converter; found = converter.inspect({str(checkpoint)!r}); assert found.dialects"
    code += "; found.text(); found.text(tree=True); found.to_json()"
    assert not loaded_by(code) & (HEAVY | {"numpy"})


def test_comparing_loads_no_framework_and_numpy_only_for_values(fixtures_dir: Path):
    linen, nnx = (
        str(fixtures_dir / "checkpoints" / f"{name}_mlp_standard" / "checkpoint") for name in ("linen", "nnx")
    )
    code = f"import converter; assert converter.diff({linen!r}, {nnx!r}, values=VALUES).ok"
    assert not loaded_by(code.replace("VALUES", "False")) & (HEAVY | {"numpy"})
    assert not loaded_by(code.replace("VALUES", "True")) & HEAVY


@pytest.mark.parametrize("name", ["linen_dense_msgpack", "linen_transformer_safetensors", "linen_transformer_npz"])
@pytest.mark.parametrize("format", ["safetensors", "msgpack"])
def test_renaming_loads_no_numpy(name: str, format: str, fixtures_dir: Path, tmp_path: Path):
    """Loading it takes longer than renaming everything does."""
    folder = fixtures_dir / "checkpoints" / name
    root = folder / json.loads((folder / "card.json").read_text(encoding="utf-8"))["root"]
    code = f"import converter; converter.convert({str(root)!r}, {str(tmp_path / 'out')!r}, 'nnx', to_format={format!r})"
    assert not loaded_by(code) & (HEAVY | {"numpy", "safetensors"})


def test_errors_of_reading_load_nothing_heavy_either():
    code = "import converter\ntry: converter.inspect('no/such/checkpoint')\nexcept converter.UnreadableCheckpoint: pass"
    assert not loaded_by(code) & (HEAVY - {"tensorstore"})


def test_everything_public_is_there():
    for name in converter.__all__:
        assert getattr(converter, name) is not None
    assert set(converter.__all__) <= set(dir(converter))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        converter.nothing  # noqa: B018
