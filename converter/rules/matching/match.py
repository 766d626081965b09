"""Which variable of one framework is which of the other: by name, by number, by the layers' recipes, by order of use.

With a model (or a template) of the target every variable of it gets its source, or is a problem. Without one the
target's names are those that Flax would choose.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

from converter.dialects.dialect import FRAMEWORK_NAMES, Framework
from converter.paths import Path
from converter.rules.layers import GRU_HIDDEN_BIAS, GRU_REASON, NO_COUNTERPART
from converter.rules.link import Correspondence, Link, Name, format_name
from converter.rules.matching.board import Board, Piece
from converter.rules.matching.by_name import pair_by_name
from converter.rules.matching.conventions import linen_pieces, nnx_pieces
from converter.rules.matching.fitting import fitted, same_shape
from converter.rules.operations import Drop, NotInvertible, Unfit, fill_number
from converter.training_state import CACHE, RNG_COLLECTIONS
from converter.tree import LeafKind, LeafSpec, array_spec

if TYPE_CHECKING:
    from converter.models import Model, ModelVariable
    from converter.rules.matching.evidence import Evidence

MODELS_ADVICE = "Give both models and --input, so that their calls tell which variable is which."
SHAPES_ADVICE = (
    "If the models and their inputs (--input) are right, state what happens to the arrays in a rule file (--rules)."
)
NAMES_ADVICE = "State the names in a rule file (--rules), or leave variables behind with --drop."
OWN_ADVICE = "Give the model that the checkpoint belongs to."


def correspond(
    to: Framework,
    sources: Mapping[Name, LeafSpec],
    dropped: Mapping[Name, LeafSpec],
    linen_model: Model | None,
    nnx_model: Model | None,
    evidence: Evidence | None = None,
) -> Correspondence:
    """Links all source variables to variables of the target.

    Args:
      sources: the variables to convert.
      dropped: variables that the user leaves behind: those of the target's that they would fill may stay empty.
      linen_model, nnx_model: models or templates, one of them the source's and one the target's.
      evidence: what running both models tells; None where they cannot be run.
    """
    found = Correspondence()
    source_model, target_model = (linen_model, nnx_model) if to == "nnx" else (nnx_model, linen_model)
    if target_model is None:
        pieces = nnx_pieces(sources, linen_model) if to == "nnx" else linen_pieces(sources, nnx_model)
        _refuse_without_counterpart(sources, source_model, found)
    else:
        pieces = _matched(to, sources, dropped, linen_model, nnx_model, evidence, found)
    for piece in pieces:
        link = _link(piece, to, found, target_model)
        if link is not None and all(map(sources.__contains__, link.sources)):  # not those that are left behind
            found.links.append(link)
    _add_hidden_biases(to, sources, target_model, found)
    if source_model is not None:
        _compare_with_own_model(sources, dropped, source_model, found)
    if target_model is not None:
        check_specs(found, sources, {(v.collection, v.path): v.spec for v in target_model.variables})
    return found


def _link(piece: Piece, to: Framework, found: Correspondence, target_model: Model | None) -> Link | None:
    if to == "linen" and not piece.nnx:
        return _filled(piece, found, target_model)
    link = Link(piece.linen, piece.nnx, piece.to_nnx, None, piece.confidence)
    try:
        return link if to == "nnx" else link.reversed()
    except NotInvertible as error:
        found.refuse(f"{' + '.join(map(format_name, piece.nnx))}: {error}")
        return None


def _filled(piece: Piece, found: Correspondence, linen_model: Model | None) -> Link:
    """What is left behind on the way to NNX, where it has to be zero, is made of zeros on the way back."""
    (name,) = piece.linen
    spec = next(v.spec for v in linen_model.variables if (v.collection, v.path) == name) if linen_model else None
    assert spec is not None
    beside = _beside(name, found)
    return Link((), (name,), fill_number(spec, 0.0, piece.to_nnx.name), beside)


def _beside(name: Name, found: Correspondence) -> Name | None:
    """A source variable of the same layer, or of any layer."""
    linked = [link for link in found.links if link.sources and link.targets]
    layer = [link for link in linked if link.targets[0][1][:-1] == name[1][:-1]]
    return next((link.sources[0] for link in (*layer, *linked)), None)


# Matching against a model --------------------------------------------------------------------------------------------


def _matched(
    to: Framework,
    sources: Mapping[Name, LeafSpec],
    dropped: Mapping[Name, LeafSpec],
    linen_model: Model | None,
    nnx_model: Model | None,
    evidence: Evidence | None,
    found: Correspondence,
) -> list[Piece]:
    from converter.rules.matching.axes import settle_axes
    from converter.rules.matching.by_number import pair_loops

    target_model = nnx_model if to == "nnx" else linen_model
    assert target_model is not None
    targets = {(v.collection, v.path): v for v in target_model.variables}
    target_specs = {name: variable.spec for name, variable in targets.items()}
    source_specs = {n: s for n, s in {**sources, **dropped}.items() if to == "nnx" or n[0] not in RNG_COLLECTIONS}
    linen, nnx = (source_specs, target_specs) if to == "nnx" else (target_specs, source_specs)
    board = Board(linen, nnx, linen_model, nnx_model)
    pair_by_name(board)
    misfits = _put_back_misfits(board, evidence)
    ambiguous = pair_loops(board, evidence)
    objection = "" if evidence is None else _pair_by_computation(board, evidence)
    turned = "" if evidence is None or objection else settle_axes(board, evidence)
    if to == "linen":  # random state that is kept goes under its own name: Linen models have none to compare it with
        kept = [name for name in sources if name[0] in RNG_COLLECTIONS]
        board.pieces += [Piece(((name[0], tuple(map(str, name[1]))),), (name,)) for name in kept]
    paired = {name for piece in board.pieces for name in (*piece.linen, *piece.nnx)}
    found.unfilled = [
        variable
        for variable in target_model.variables
        if _has_its_own(variable, board) and (variable.collection, variable.path) not in paired
    ]
    _refuse_misfits(to, misfits, board, found)
    for problem in ambiguous:
        found.refuse(problem, SHAPES_ADVICE)
    _refuse_leftovers(to, board, dropped, source_specs, target_model, misfits, found)
    if turned and not found.problems:
        found.refuse(turned, SHAPES_ADVICE)
    if found.problems and evidence is None:
        found.advice.append(MODELS_ADVICE)
    elif found.problems and objection:  # why all the others; of a long list only the beginning is printed
        found.problems.insert(0, (objection, NAMES_ADVICE))
    return board.pieces


def _pair_by_computation(board: Board, evidence: Evidence) -> str:
    """Pairs everything by what the calls do, if names have left anything over.

    Returns:
      what speaks against it; empty where everything is paired and confirmed.
    """
    from converter.rules.matching.by_alignment import pair_by_alignment
    from converter.rules.matching.by_order import pair_by_order

    others = any(not part.is_own_state for part in board.free_parts.values())
    if not (board.free_linen or others):
        return ""
    # Recipes know the bias that only Linen's GRU has.
    traced = ""
    if others or not all(_is_hidden_bias(name, board.linen) for name in board.free_linen):
        traced = pair_by_alignment(board, evidence)
        if not traced:
            return ""
    in_order = pair_by_order(board, evidence)
    return f"{in_order}; {traced}" if in_order and traced else in_order


def _put_back_misfits(board: Board, evidence: Evidence | None) -> list[Piece]:
    """Frees what is called alike but cannot be the same; gives the others what their shapes need."""
    pieces, misfits = board.pieces, []
    board.pieces = []
    for piece in pieces:
        adapted = fitted(board, piece, evidence)
        if adapted is not None:
            board.pieces.append(adapted)
        else:
            misfits.append(piece)
            board.free(piece)
    return misfits


def _has_its_own(variable: ModelVariable, board: Board) -> bool:
    """Whether the model itself can make it: random state, and arrays of an NNX module that are no Variables."""
    return variable.is_random_state or (variable.is_plain and board.knows_types)


def _refuse_misfits(to: Framework, misfits: list[Piece], board: Board, found: Correspondence) -> None:
    for piece in misfits:
        if not board.is_free(piece):
            continue
        linen = [board.linen[name] for name in piece.linen]
        nnx = [board.nnx[name] for name in piece.nnx]
        where = " + ".join(map(format_name, piece.linen if to == "nnx" else piece.nnx))
        expected, have = (", ".join(map(str, specs)) for specs in ((nnx, linen) if to == "nnx" else (linen, nnx)))
        found.refuse(f"{where}: expected {expected} by the model, found {have} in the checkpoint", SHAPES_ADVICE)
        board.settle(piece)
        board.pieces.remove(piece)


def _refuse_leftovers(
    to: Framework,
    board: Board,
    dropped: Mapping[Name, LeafSpec],
    sources: Mapping[Name, LeafSpec],
    target_model: Model,
    misfits: list[Piece],
    found: Correspondence,
) -> None:
    title = FRAMEWORK_NAMES[to]
    free_nnx = [name for part in board.free_parts.values() for name in part.nnx]
    free_targets = free_nnx if to == "nnx" else list(board.free_linen)
    free_sources = list(board.free_linen) if to == "nnx" else free_nnx
    specs = board.nnx if to == "nnx" else board.linen
    empty = {(v.collection, v.path) for v in found.unfilled}
    for name in free_targets:
        if name not in empty and not (to == "linen" and _is_hidden_bias(name, board.linen)):
            where = format_name((name[0] or "(no Variable)", name[1]))
            why = _without_counterpart(name[1], target_model)
            found.refuse(
                f"{where}: expected {specs[name]} by the {title} model, found nothing of that name in the checkpoint"
                + why,
                NAMES_ADVICE,
            )
    source_model = board.linen_model if to == "nnx" else board.nnx_model
    for name in free_sources:
        if name not in dropped and not (to == "nnx" and _is_hidden_bias(name, board.linen)):
            why = f"no such variable in the {title} model" + _without_counterpart(name[1], source_model)
            found.refuse(f"{format_name(name)}: {sources[name]} in the checkpoint, {why}", NAMES_ADVICE)


# The bias that only Linen's GRU has ----------------------------------------------------------------------------------


def _is_hidden_bias(name: Name, linen: Collection[Name]) -> bool:
    """Whether this is ``hn/bias`` of a GRUCell, of which NNX has only the other variables."""
    if name[1][-2:] != GRU_HIDDEN_BIAS:
        return False
    gates = ("ir", "iz", "in", "hr", "hz", "hn")
    return all((name[0], (*name[1][:-2], gate, "kernel")) in linen for gate in gates)


def _add_hidden_biases(
    to: Framework, sources: Mapping[Name, LeafSpec], target_model: Model | None, found: Correspondence
) -> None:
    if to == "nnx":
        biases = [name for name in sources if _is_hidden_bias(name, sources)]
        linked = set(found.linked_sources()) if biases else set[Name]()
        for collection, path in biases:
            if (collection, path) not in linked and (collection, (*path[:-1], "kernel")) in linked:
                found.links.append(Link(((collection, path),), (), Drop(GRU_REASON, expected=0.0)))
        return
    if not any(path[-2:] == ("hn", "kernel") for _, path in found.linked_targets()):
        return
    specs = {(v.collection, v.path): v.spec for v in target_model.variables} if target_model else {}
    made = {name: (link, position) for link in found.links for position, name in enumerate(link.targets)}
    for collection, path in list(made):
        bias = (collection, (*path[:-2], *GRU_HIDDEN_BIAS))
        if path[-2:] == ("hn", "kernel") and bias not in made and _is_hidden_bias(bias, made):
            # The input's bias of the same gate: of the same shape, and in the same group of a masked optimizer.
            link, position = made.get((collection, (*path[:-2], "in", "bias")), made[collection, path])
            spec = specs[bias] if bias in specs else _bias_like(link, position, sources)
            if spec is not None:
                found.links.append(Link((), (bias,), fill_number(spec, 0.0, GRU_REASON), beside=link.sources[0]))


def _bias_like(link: Link, position: int, sources: Mapping[Name, LeafSpec]) -> LeafSpec | None:
    """The spec of a bias from that of another one, or of a kernel; None where an optimizer alone does not tell it."""
    try:
        other = link.operation.specs([sources[name] for name in link.sources])[position]
    except Unfit:
        return None
    is_kernel = link.targets[position][1][-1] == "kernel"
    return array_spec(other.dtype, (*other.shape[:-2], other.shape[-1])) if is_kernel else other


# Layers without counterpart ------------------------------------------------------------------------------------------


def _without_counterpart(path: Path, model: Model | None) -> str:
    """What to add to a problem where the variable belongs to a layer that only one framework has."""
    for layer in model.layers if model else ():
        reason = NO_COUNTERPART[model.framework].get(layer.kind) if model else None
        if reason and path[: len(layer.path)] == layer.path:
            return f" (a {model.framework}.{layer.kind}: {reason})" if model else ""
    return ""


def _refuse_without_counterpart(
    sources: Mapping[Name, LeafSpec], source_model: Model | None, found: Correspondence
) -> None:
    for name, spec in sources.items() if source_model is not None else ():
        why = _without_counterpart(name[1], source_model)
        if why:
            found.refuse(
                f"{format_name(name)}: {spec} cannot be converted by itself{why}",
                "If you have a layer of your own that computes the same, give its model too.",
            )


# Specs ---------------------------------------------------------------------------------------------------------------


def check_specs(found: Correspondence, sources: Mapping[Name, LeafSpec], targets: Mapping[Name, LeafSpec]) -> None:
    """Compares what every link makes with what the target's model declares."""
    for link, name, made in _made(found, sources):
        expected = targets.get(name)
        if expected is None or LeafKind.EMPTY in (expected.kind, made.kind) or expected == made:
            continue
        where = format_name(link.sources[0] if len(link.sources) == 1 else name)
        if not same_shape(expected, made):
            if name[0] == CACHE:  # as long as the inputs it was made for
                found.notes.append(f"{where}: {made} in the checkpoint, {expected} in the model")
            else:
                text = f"{where}: expected {expected} by the model, found {made} in the checkpoint"
                found.refuse(text, SHAPES_ADVICE)
        elif expected.dtype != made.dtype:
            found.dtypes.append(f"{where}: {made} in the checkpoint, {expected} in the model")


def _made(found: Correspondence, sources: Mapping[Name, LeafSpec]) -> Iterator[tuple[Link, Name, LeafSpec]]:
    for link in found.links:
        try:
            specs = link.operation.specs([sources[name] for name in link.sources])
        except Unfit:  # an optimizer alone does not tell its parameters' shapes
            continue
        yield from ((link, name, spec) for name, spec in zip(link.targets, specs, strict=True))


def _compare_with_own_model(
    sources: Mapping[Name, LeafSpec], dropped: Mapping[Name, LeafSpec], model: Model, found: Correspondence
) -> None:
    """Checks a checkpoint against a model of its own framework."""
    title = FRAMEWORK_NAMES[model.framework]
    # The names of NNX collections are the user's to choose (--collection); Linen's are the model's.
    known = {_own_name(model, variable.collection, variable.path): variable for variable in model.variables}
    named = {_own_name(model, *name): name for name in sources}
    for own_name, name in named.items():
        spec, where = sources[name], format_name(name)
        variable = known.get(own_name)
        if variable is None:
            if name[0] not in RNG_COLLECTIONS:
                found.refuse(f"{where}: {spec} in the checkpoint, no such variable in the {title} model", OWN_ADVICE)
        elif not same_shape(variable.spec, spec):
            if name[0] == CACHE:
                found.notes.append(f"{where}: {spec} in the checkpoint, {variable.spec} in the model")
            else:
                text = f"{where}: expected {variable.spec} by the model, found {spec} in the checkpoint"
                found.refuse(text, OWN_ADVICE)
        elif LeafKind.EMPTY not in (spec.kind, variable.spec.kind) and spec.dtype != variable.spec.dtype:
            found.dtypes.append(f"{where}: {spec} in the checkpoint, {variable.spec} in the model")
    left_out = {_own_name(model, *name) for name in dropped} | set(named)
    for own_name, variable in known.items():
        if own_name not in left_out and not variable.is_random_state:
            where = format_name((variable.collection, variable.path))
            found.notes.append(f"{where} {variable.spec} is in the {title} model but not in the checkpoint")


def _own_name(model: Model, collection: str, path: Path) -> Name:
    return ("", path) if model.framework == "nnx" else (collection, path)
