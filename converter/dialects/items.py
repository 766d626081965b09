"""Several items of one checkpoint as one training state: parameters, an optimizer's state and a counter side by side.

``CheckpointManager`` and Orbax's v1 API save a named item for each of them. Which item is what, its name suggests and
its content has to confirm; the joined tree is what one item would hold that was saved in the framework's usual layout.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from converter.dialects import readings
from converter.dialects.dialect import Dialect
from converter.dialects.linen import LinenVariables
from converter.dialects.nnx import VALUE, NnxLayout
from converter.dialects.opt_state import OPT_STATE, STEP
from converter.dialects.train_state import LinenTrainState
from converter.errors import UnsupportedCheckpoint
from converter.paths import Key, Path
from converter.training_state import COLLECTIONS, PARAMS
from converter.tree import Leaf, Tree

MODELS = (
    "model", "params", "state", "variables", "default", "pytree", "weights", "train_state", "model_state", "nnx_state",
)  # fmt: skip
OPTIMIZERS = ("optimizer", "opt_state", "opt", "optimizer_state", "optim")

_MODEL, _OPTIMIZER = "model", "optimizer"


@dataclass(frozen=True, slots=True)
class Joined:
    """Items that are one training state.

    Attributes:
      tree: all of their leaves.
      places: where each item stands in the tree; empty for one whose own keys are those of the tree.
      beside: items that belong to it but are not converted: settings, counters of data pipelines.
    """

    tree: Tree
    places: Mapping[str, Path]
    beside: tuple[str, ...] = ()


def may_join(names: Iterable[str]) -> bool:
    """Whether items of these names may be one training state: exactly one of them is a model."""
    return sum(name in MODELS for name in names) == 1


def join(items: Mapping[str, Tree]) -> Joined | None:
    """The items as one; None where their content does not confirm that they belong together."""
    if not may_join(items):
        return None
    name = next(each for each in items if each in MODELS)
    found = readings(items[name])
    optimizers = [each for each in items if each in OPTIMIZERS]
    if not found or len(optimizers) > 1:
        return None
    roles = _Roles(name, items, found[0], optimizers[0] if optimizers else None)
    places = roles.places()
    if places is None:
        return None
    try:
        tree = Tree(leaf for each, place in places.items() for leaf in _below(place, items[each]))
    except UnsupportedCheckpoint:  # two items hold the same, such as two optimizer states
        return None
    if len(places) > 1 and not readings(tree):
        return None
    return Joined(tree, places, tuple(each for each in items if each not in places))


def _below(place: Path, tree: Tree) -> Iterable[tuple[Path, Leaf]]:
    return (((*place, *path), leaf) for path, leaf in tree.items())


@dataclass(frozen=True, slots=True)
class _Roles:
    """The items of a step, with the model among them.

    Attributes:
      model: its name.
      items: all of them.
      reading: what the model is read as.
      optimizer: the name of the optimizer's item.
    """

    model: str
    items: Mapping[str, Tree]
    reading: Dialect
    optimizer: str | None

    def places(self) -> dict[str, Path] | None:
        """Where each item goes in the joined tree; None if one of them is something else altogether."""
        collected = isinstance(self.reading, LinenVariables | LinenTrainState)
        variables = _variables(self.items[self.model], collected)
        others: dict[str, Path] = {}
        for name, tree in self.items.items():
            if name == self.model:
                continue
            if name == self.optimizer:
                if not _follows(tree, variables):
                    return None
                others[name] = self._optimizer_place(tree)
            elif name in (STEP, *COLLECTIONS):
                others[name] = (*self._counter_prefix(), name) if name == STEP else (name,)
            elif _mirrors(tree, variables):
                others[name] = (name,)
            elif not _is_small(tree):
                return None
        return {self.model: self._model_place(bool(others)), **others}

    @property
    def _is_nnx(self) -> bool:
        """Where the model could be of either framework, the optimizer tells: that of NNX counts steps itself."""
        layout = self.reading
        if isinstance(layout, NnxLayout) and layout.suffix:
            return True
        if isinstance(layout, LinenVariables | LinenTrainState):
            return False
        if self.optimizer is not None:
            return self._holds_its_state(self.items[self.optimizer])
        return isinstance(layout, NnxLayout)

    def _model_place(self, has_others: bool) -> Path:
        if self._is_nnx:
            return (_MODEL,) if has_others else ()
        bare = not isinstance(self.reading, LinenVariables | LinenTrainState)
        return (PARAMS,) if bare and has_others else ()

    def _optimizer_place(self, tree: Tree) -> Path:
        own = self._holds_its_state(tree)
        if self._is_nnx:
            return (_OPTIMIZER,) if own else (_OPTIMIZER, OPT_STATE)
        return () if own else (OPT_STATE,)

    def _counter_prefix(self) -> Path:
        return (_OPTIMIZER,) if self._is_nnx and self.optimizer is not None else ()

    @staticmethod
    def _holds_its_state(tree: Tree) -> bool:
        return OPT_STATE in tree.children()


def _plain(path: Path) -> tuple[Key, ...]:
    return path[:-1] if path[-1:] == (VALUE,) else path


def _variables(model: Tree, collected: bool) -> dict[Path, Leaf]:
    """The leaves of the model by their paths, and by those inside of their collections if it has any."""
    found: dict[Path, Leaf] = {}
    for path, leaf in model.full().items():
        plain = _plain(path)
        found[plain] = leaf
        if collected and len(plain) > 1:
            found.setdefault(plain[1:], leaf)
    return found


def _follows(tree: Tree, variables: Mapping[Path, Leaf]) -> bool:
    """Whether an optimizer's state is that of the model: some array of it stands at the path of a variable."""
    arrays = [_plain(path) for path, leaf in tree.full().items() if leaf.spec.shape]
    return not arrays or any(path[start:] in variables for path in arrays for start in range(len(path)))


def _mirrors(tree: Tree, variables: Mapping[Path, Leaf]) -> bool:
    """Whether an item holds another value of variables of the model, such as an average, and nothing else."""
    leaves = [(_plain(path), leaf) for path, leaf in tree.full().items()]
    return bool(leaves) and all(
        path in variables and variables[path].spec.shape == leaf.spec.shape for path, leaf in leaves
    )


def _is_small(tree: Tree) -> bool:
    """Whether an item holds numbers, texts and vectors at the most: no other model does."""
    return all(len(leaf.spec.shape) < 2 for leaf in tree.values())
