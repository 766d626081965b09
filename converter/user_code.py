"""Finding and calling the user's own code: models, optimizers and inputs named on the command line."""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path as FilePath
from typing import Any

from converter.errors import ConverterError, ModelError, UsageError


def load(spec: str) -> Callable[..., Any]:
    """Imports what ``pkg.module:name`` or ``path/file.py:name`` names.

    Raises:
      UsageError: not of that form.
      ModelError: the module cannot be imported, or has no such callable.
    """
    where, separator, name = spec.rpartition(":")
    if not separator or not where or not name:
        raise UsageError(f"cannot read {spec!r}", "Write pkg.module:factory or path/to/file.py:factory.")
    module = _import_file(where) if where.endswith(".py") else _import_module(where)
    target = module
    for part in name.split("."):
        try:
            target = getattr(target, part)
        except AttributeError:
            names = ", ".join(sorted(n for n in vars(module) if not n.startswith("_"))[:12])
            raise ModelError(f"{where} has no {name!r}; it has {names}", "Name a function or class in it.") from None
    if not callable(target):
        raise ModelError(f"{spec} is a {type(target).__name__}, not a function or class", "Name a factory.")
    return target  # type: ignore[no-any-return]


def _import_module(name: str) -> Any:
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does: modules of the working directory can be named
    return call(f"importing {name}", importlib.import_module, name)


def _import_file(name: str) -> Any:
    path = FilePath(name)
    if not path.is_file():
        raise ModelError(f"{name}: no such file", "Write path/to/file.py:factory.")
    # The directory joins the search path, so that the file can import its neighbours as when it is run as a script.
    if str(path.parent.resolve()) not in sys.path:
        sys.path.insert(0, str(path.parent.resolve()))
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    if module_spec is None or module_spec.loader is None:
        raise ModelError(f"{name} is not a Python file")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules.setdefault(path.stem, module)
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # nothing appears beside the user's file
    try:
        call(f"importing {name}", module_spec.loader.exec_module, module)
    finally:
        sys.dont_write_bytecode = before
    return module


def call(what: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls user code; whatever it raises becomes a ``ModelError`` that says what was being done.

    What it prints goes to standard error: standard output belongs to the result.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return function(*args, **kwargs)
    except ConverterError:
        raise
    except (Exception, SystemExit) as error:
        raise _failed(what, error) from error


def requires(function: Callable[..., Any], parameter: str) -> bool:
    """Whether a function or class cannot be called without an argument of that name."""
    # Metaclasses hide the constructor's own signature.
    target = getattr(function, "__init__", function) if isinstance(function, type) else function
    try:
        found = inspect.signature(target).parameters.get(parameter)
    except (TypeError, ValueError):
        return False
    return found is not None and found.default is inspect.Parameter.empty


def parse_kwargs(text: str) -> dict[str, Any]:
    """Reads keyword arguments as in a call: ``train=False, mask=None``; the values are Python literals.

    Raises:
      UsageError: not of that form.
    """
    try:
        call_node = ast.parse(f"f({text})", mode="eval").body
        assert isinstance(call_node, ast.Call)
        if call_node.args or any(keyword.arg is None for keyword in call_node.keywords):
            raise ValueError
        return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call_node.keywords}
    except (SyntaxError, ValueError, TypeError, AssertionError, RecursionError, MemoryError):
        raise UsageError(
            f"cannot read the keyword arguments {text!r}", "Write them as in a call, with literals: 'train=False'."
        ) from None


def _failed(what: str, error: BaseException) -> ModelError:
    lines = str(error).strip().splitlines() or [""]
    shown = "\n  ".join(lines[:8] + (["…"] if len(lines) > 8 else []))
    return ModelError(f"{what} failed: {type(error).__name__}: {shown}", "Use --debug to see the traceback.")
