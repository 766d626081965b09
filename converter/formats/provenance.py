"""Where a checkpoint comes from, as it says itself: a record for the metadata of a destination, and reading it again.

A record holds names and digests, no times and no paths of a machine: the same conversion always writes the same one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KEY = "flax_convert"
"""What the record is called among the metadata of a checkpoint."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """What was converted from what.

    Attributes:
      version: that of this program.
      direction: ``nnx-to-linen`` or ``linen-to-nnx``.
      source: the source's own name, without the directories above it.
      step, item: which step and item of it, or items read as one; None where it has none.
      source_format, source_dialect, dialect: how the source was read, and what the destination is.
      rules: sha256 of the rules; empty where none were given.
      before: the record that the source held of itself.
    """

    version: str
    direction: str
    source: str
    source_format: str
    source_dialect: str
    dialect: str
    step: int | None = None
    item: str | None = None
    rules: str = ""
    before: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """The record; ``before`` lists those of earlier conversions, the latest first."""
        source = {"name": self.source, "format": self.source_format, "dialect": self.source_dialect}
        chosen = {"step": self.step, "item": self.item}
        record: dict[str, Any] = {
            "version": self.version,
            "direction": self.direction,
            "source": source | {name: value for name, value in chosen.items() if value is not None},
            "dialect": self.dialect,
        }
        if self.rules:
            record["rules_sha256"] = self.rules
        if self.before:
            latest = {name: value for name, value in self.before.items() if name != "before"}
            earlier = self.before.get("before")
            record["before"] = [latest, *(earlier if isinstance(earlier, list) else ())]
        return record


def read_record(metadata: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The record among the metadata of a checkpoint, None where there is none."""
    record = metadata.get(KEY)
    return record if isinstance(record, dict) and isinstance(record.get("source"), dict) else None


def describe(record: Mapping[str, Any]) -> str:
    """A record for people, on one line."""
    source = record["source"]
    where = [f"{name} {source[name]}" for name in ("step", "item") if name in source]
    kind = f"{source.get('format', '?')}, {source.get('dialect', '?')}"
    text = f"{', '.join([str(source.get('name', '?')), *where])} ({kind})"
    text += f" by flax-convert {record.get('version', '?')} {record.get('direction', '')}".rstrip()
    if record.get("rules_sha256"):
        text += f", rules sha256 {str(record['rules_sha256'])[:12]}"
    before = record.get("before")
    if isinstance(before, list) and before:
        text += f"; {len(before)} earlier conversion" + ("s" if len(before) > 1 else "")
    return text
