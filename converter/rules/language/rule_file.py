"""Rule files: what users state about names and arrays, read from TOML. The language is described in docs/rules.md."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Any, Literal, get_args

from converter.errors import UsageError
from converter.rules.language.checks import check_steps
from converter.rules.language.fault import Fault
from converter.rules.language.patterns import PathPattern
from converter.rules.language.rule_set import FILL_MODEL, Default, Rule, RuleSet
from converter.rules.language.steps import Stage, parse_step, stages
from converter.rules.language.templates import Template
from converter.rules.language.toml_places import Place, TomlPlaces
from converter.training_state import COLLECTIONS
from converter.tree import LeafSpec, parse_array_spec

__all__ = ["Given", "Rule", "RuleSet", "read_rules"]

FILLS: Mapping[str, float] = {"zeros": 0.0, "ones": 1.0}
_FILE_KEYS = ("default", "rule")
_RULE_KEYS = ("linen", "nnx", "collection", "to_nnx", "drop", "fill", "leaf")

Given = str | os.PathLike[str] | Mapping[str, Any] | Sequence[Mapping[str, Any]] | RuleSet


def read_rules(given: Given) -> RuleSet:
    """Rules from the path of a TOML file, a TOML text (with a line break or ``[[``), or the same as dicts.

    Raises:
      UsageError: with file, line and column, or for dicts with the number of the rule and its key.
    """
    if isinstance(given, RuleSet):
        return given
    if isinstance(given, Mapping):
        return _from_values(given)
    if isinstance(given, str) and ("\n" in given or "[[" in given):
        return _from_text(given, "the rules")
    if isinstance(given, str | os.PathLike):
        return _from_text(_file_text(os.fspath(given)), os.fspath(given))
    return _from_values({"rule": given})


def _from_values(content: Mapping[str, Any]) -> RuleSet:
    rules = _Reader("the rules", None).read(content)
    return replace(rules, digest=_digest(json.dumps(content, sort_keys=True, default=str)))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _file_text(name: str) -> str:
    advice = "Give the path of a TOML file with rules; docs/rules.md describes them."
    try:
        return FilePath(name).read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UsageError(f"{name}: there is no such file", advice) from None
    except IsADirectoryError:
        raise UsageError(f"{name} is a directory, expected a file of rules", advice) from None
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{name} is not UTF-8: byte {error.start} cannot be read", "Save the file as UTF-8 text."
        ) from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}", advice) from None


_TOML_POSITION = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")


def _from_text(text: str, name: str) -> RuleSet:
    text = text.replace("\r\n", "\n")
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        message = str(error)
        match = _TOML_POSITION.search(message)
        end = (text.count("\n") + 1, len(text) - text.rfind("\n"))
        line, column = (match[1], match[2]) if match and match[1] else end
        raise UsageError(
            f"{name}, line {line}, column {column}: no TOML: {_TOML_POSITION.sub('', message)}",
            "Strings need quotes, and every rule begins with [[rule]].",
        ) from None
    return replace(_Reader(name, TomlPlaces(text)).read(content), digest=_digest(text))


class _Reader:
    """Turns dicts into rules; knows where everything stands."""

    def __init__(self, name: str, places: TomlPlaces | None) -> None:
        self._name = name
        self._places = places

    def read(self, content: Mapping[str, Any]) -> RuleSet:
        self._check_keys(content, (), _FILE_KEYS, "a file of rules")
        default = content.get("default", "refuse")
        if default not in get_args(Default):
            raise self._error(("default",), f"{default!r} is no default", 'Write "refuse", "auto" or "drop".')
        rules = content.get("rule", ())
        if isinstance(rules, Mapping | str) or not isinstance(rules, Sequence):
            raise self._error(("rule",), "expected a list of rules", "Begin every rule with [[rule]].")
        return RuleSet(tuple(self._rule(rule, ("rule", at)) for at, rule in enumerate(rules)), default, self._name)

    def _rule(self, given: Any, place: Place) -> Rule:
        if not isinstance(given, Mapping):
            raise self._error(place, f"expected a rule, found {given!r}", "Begin every rule with [[rule]].")
        self._check_keys(given, place, _RULE_KEYS, "a rule")
        texts = {key: self._text(given, place, key) for key in ("linen", "nnx", "collection", "drop", "leaf")}
        fill = self._fill(given, place)
        sides = [key for key in ("linen", "nnx") if key in given]
        ways = [key for key in ("drop", "fill") if key in given]
        advice = (
            "A rule has linen and nnx, or one of them and drop or fill; to_nnx belongs to rules with both, "
            "leaf to those with fill."
        )
        if not sides:
            raise self._error(place, "the rule has neither linen nor nnx", advice)
        if len(sides) + len(ways) != 2:
            what = " and ".join((*sides, *ways))
            only = "only " if len(ways) == 0 else ""
            raise self._error((*place, (ways or sides)[-1]), f"the rule has {only}{what}", advice, key=True)
        for key, wanted in (("to_nnx", len(sides) == 2), ("leaf", "fill" in given)):
            if key in given and not wanted:
                text = f"{key} does not belong into a rule of {' and '.join((*sides, *ways))}"
                raise self._error((*place, key), text, advice, key=True)
        linen, nnx, collection = self._patterns(texts, place)
        found = self._steps(given, place, linen, nnx) if linen and nnx else ()
        leaf = self._leaf(texts["leaf"], place)
        return Rule(self._label(place), linen, nnx, collection, found, texts["drop"], fill, leaf)

    def _patterns(
        self, texts: Mapping[str, str | None], place: Place
    ) -> tuple[PathPattern | None, PathPattern | None, str | None]:
        """Both patterns and the collection that the rule names."""
        collection = texts["collection"]
        if collection == "":
            raise self._error((*place, "collection"), "an empty collection", "Leave the key out for all collections.")
        templates: dict[str, Template] = {}
        for side in ("linen", "nnx"):
            text = texts[side]
            if text is not None:
                with self._faults((*place, side)):
                    templates[side] = Template.parse(text)
        linen, nnx = templates.get("linen"), templates.get("nnx")
        if linen and collection is None and linen.segments[0] in [(name,) for name in COLLECTIONS]:
            collection = str(linen.segments[0][0])
            linen = linen.below()
            if not linen.segments:
                advice = f"Write {collection}/{{rest:**}} for all that it holds."
                raise self._error((*place, "linen"), f"{collection!r} is a collection, not a variable", advice, 0)
        patterns: list[PathPattern | None] = []
        for side, own, other in (("linen", linen, nnx), ("nnx", nnx, linen)):
            with self._faults((*place, side)):
                patterns.append(PathPattern(own, other) if own else None)
        return patterns[0], patterns[1], collection

    def _steps(self, given: Mapping[str, Any], place: Place, linen: PathPattern, nnx: PathPattern) -> tuple[Stage, ...]:
        texts = given.get("to_nnx", ())
        place = (*place, "to_nnx")
        if isinstance(texts, str) or not isinstance(texts, Sequence):
            advice = 'Write it as in: to_nnx = ["stack i, axis=0", "transpose 1 0"]'
            raise self._error(place, f"expected a list of operations, found {texts!r}", advice)
        steps = []
        for at, text in enumerate(texts):
            if not isinstance(text, str):
                raise self._error((*place, at), f"expected an operation as a text, found {text!r}", "")
            with self._faults((*place, at)):
                steps.append(parse_step(text))
        for culprit, fault in check_steps(steps, linen, nnx):
            with self._faults((*place[:-1], culprit) if isinstance(culprit, str) else (*place, culprit)):
                raise fault
        return stages(steps)

    def _fill(self, given: Mapping[str, Any], place: Place) -> float | Literal["model"] | None:
        fill = given.get("fill")
        if fill == FILL_MODEL:
            return FILL_MODEL
        if isinstance(fill, str) and fill in FILLS:
            return FILLS[fill]
        if "fill" not in given:
            return None
        if isinstance(fill, int | float) and not isinstance(fill, bool) and fill == fill:
            return float(fill)
        raise self._error((*place, "fill"), f"cannot fill with {fill!r}", 'Write "zeros", "ones", "model" or a number.')

    def _leaf(self, text: str | None, place: Place) -> LeafSpec | None:
        try:
            return None if text is None else parse_array_spec(text)
        except UsageError as error:
            raise self._error((*place, "leaf"), error.message, error.advice, 0) from None

    # Checking and telling where ----------------------------------------------------------------------------------

    def _text(self, given: Mapping[str, Any], place: Place, key: str) -> str | None:
        value = given.get(key)
        if key in given and not isinstance(value, str):
            raise self._error((*place, key), f"expected a text for {key}, found {value!r}", "")
        return value

    def _check_keys(self, given: Mapping[str, Any], place: Place, known: Sequence[str], what: str) -> None:
        for key in given:
            if key not in known:
                advice = f"Known keys of {what}: {', '.join(known)}."
                if key in _FILE_KEYS:
                    advice += f" Put {key} in front of the first [[rule]]."
                raise self._error((*place, key), f"there is no key {key!r}", advice, key=True)

    @contextmanager
    def _faults(self, place: Place) -> Iterator[None]:
        try:
            yield
        except Fault as fault:
            raise self._error(place, fault.message, fault.advice, fault.offset) from None

    def _error(
        self, place: Place, message: str, advice: str, offset: int | None = None, *, key: bool = False
    ) -> UsageError:
        """An error about a key or a value, at a character of the value if it is a text."""
        if self._places is not None:
            line, column = self._places.of_key(place) if key else self._places.of_value(place, offset)
            return UsageError(f"{self._name}, line {line}, column {column}: {message}", advice)
        where = self._label(place[:2]) if len(place) > 1 else f"{self._name}, {place[0]}"
        for part in place[2:]:
            where += f" {part + 1}" if isinstance(part, int) else f", {part}"
        where += "" if offset is None else f", column {offset + 1}"
        return UsageError(f"{where}: {message}", advice)

    def _label(self, place: Place) -> str:
        """How messages call a rule."""
        if self._places is None:
            return f"rule {int(place[1]) + 1}"
        return f"{self._name}, line {self._places.of_key(place)[0]}"
