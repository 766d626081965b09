"""Elements of HTML as values: whatever is no markup itself is text, and is escaped."""

from __future__ import annotations

import html
import re

_UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""What an HTML document cannot hold, or no encoding can write: control characters and halves of characters."""

_VOID = frozenset({"br", "circle", "col", "input", "line", "path", "rect"})


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Content = str | int | None


def escape(text: str) -> Markup:
    """Text as it may stand in an element or in a quoted attribute."""
    return Markup(html.escape(_UNFIT.sub("\N{REPLACEMENT CHARACTER}", text)))


def tag(name: str, *children: Content, **attributes: Content | bool) -> Markup:
    """An element. ``class_`` and ``data_group`` are the attributes ``class`` and ``data-group``.

    Args:
      children: markup, or texts to be escaped; None is nothing.
      attributes: True is an attribute without a value; False and None leave it out.
    """
    told = "".join(_attribute(each, value) for each, value in attributes.items())
    if name in _VOID:
        return Markup(f"<{name}{told}/>")
    return Markup(f"<{name}{told}>{join(*children)}</{name}>")


def join(*parts: Content) -> Markup:
    """One piece of markup after the other."""
    told = (part if isinstance(part, Markup) else escape(str(part)) for part in parts if part is not None)
    return Markup("".join(told))


def _attribute(name: str, value: Content | bool) -> str:
    if value is None or value is False:
        return ""
    name = name.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'


def path(text: str) -> Markup:
    """A path in the type of code, which may be broken after each key."""
    keys = [escape(key) for key in text.split("/")]
    return Markup("<code>" + "/<wbr>".join(keys) + "</code>")


def paths(texts: tuple[str, ...]) -> Markup:
    """Several paths, one below the other."""
    return Markup("<br>".join(map(path, texts)))
