"""What stands around the item that is written: nothing, or the directory of a step or of a v1 checkpoint.

Facts of orbax-checkpoint 0.12.8: what ``PyTreeCheckpointer``, ``CheckpointManager``, and of v1 ``save`` and
``training.Checkpointer`` leave on disk.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path as FilePath

from converter.formats.checkpoint import Attached
from converter.formats.orbax.layout import COMMITTED, INDICATOR

_V0, _V1 = "orbax.checkpoint._src.handlers.", "orbax.checkpoint.experimental.v1._src.handlers."


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Where the item stands in the destination, and which files tell Orbax so.

    Attributes:
      item: the name of its directory; empty where the destination is the item itself.
      handler: the class that reads it.
      json_handler, json_file: the class that reads JSON items, and how that calls its file.
      indicator: whether the empty file that marks v1 checkpoints stands beside the items.
      noted_inside: whether items say themselves that they are complete.
    """

    item: str = ""
    handler: str = f"{_V0}pytree_checkpoint_handler.PyTreeCheckpointHandler"
    json_handler: str = f"{_V0}json_checkpoint_handler.JsonCheckpointHandler"
    json_file: str = "metadata"
    indicator: bool = False
    noted_inside: bool = False

    def item_directory(self, destination: FilePath) -> FilePath:
        return destination / self.item if self.item else destination

    def handlers(self, attached: Mapping[str, Attached]) -> str | dict[str, str]:
        """``item_handlers`` of ``_CHECKPOINT_METADATA``."""
        if not self.item:
            return self.handler
        known = {"JSON": self.json_handler, "tree": self.handler}
        others = {name: known.get(each.kind, each.handler) for name, each in attached.items()}
        return {self.item: self.handler, **{name: handler for name, handler in others.items() if handler}}

    def attach(self, destination: FilePath, attached: Mapping[str, Attached]) -> None:
        """Copies the items that go along as they are."""
        for name, each in attached.items():
            shutil.copytree(each.directory, destination / name, ignore=shutil.ignore_patterns(COMMITTED))
            for file in _JSON_FILES if each.is_json else ():
                if (destination / name / file).is_file():
                    (destination / name / file).rename(destination / name / self.json_file)


_JSON_FILES = ("metadata", "data.json")
"""How the JSON handlers of Orbax and of its v1 call their file. One called ``metrics`` keeps its name everywhere."""

_V1_ITEM = {
    "item": "state",
    "handler": f"{_V1}pytree_handler.PyTreeHandler",
    "json_handler": f"{_V1}json_handler.JsonHandler",
    "json_file": "data.json",
}

ALONE = Surroundings()
STEP = Surroundings("default", f"{_V0}standard_checkpoint_handler.StandardCheckpointHandler", noted_inside=True)
V1 = Surroundings(**_V1_ITEM, indicator=True)  # type: ignore[arg-type]
V1_STEP = Surroundings(**_V1_ITEM, noted_inside=True)  # type: ignore[arg-type]


def surroundings(attached: Collection[str] = (), *, v1: bool, as_step: bool) -> Surroundings:
    """Those of a destination in the layout of v1 or before, which is a step of a root or stands alone.

    Args:
      attached: names of other items. Beside one called ``default`` a CheckpointManager sees none but its metrics.
    """
    found = (V1_STEP if as_step else V1) if v1 else (STEP if as_step else ALONE)
    if found is ALONE or (found.item not in attached and (v1 or set(attached) <= {"metrics"})):
        return found
    numbered = (f"state_{number}" for number in itertools.count(1))
    return replace(found, item=next(name for name in itertools.chain(("state",), numbered) if name not in attached))


def mark(destination: FilePath, around: Surroundings) -> None:
    if around.indicator:
        (destination / INDICATOR).touch()
