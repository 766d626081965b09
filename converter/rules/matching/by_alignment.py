"""Pairing by the computation itself, where names have left something over: see ``rules/align``."""

from __future__ import annotations

from dataclasses import replace

from converter.rules.matching.board import Board
from converter.rules.matching.evidence import Evidence


def pair_by_alignment(board: Board, evidence: Evidence) -> str:
    """Pairs all variables by the parts that they play in the calls of both models, if running these confirms it.

    What names have paired before counts for nothing then: where some of them mislead, others may.

    Returns:
      what speaks against it; empty where everything is paired and confirmed.
    """
    if board.linen_model is None or board.nnx_model is None:
        return "both models are needed to align them"
    from converter.rules.align.alignment import align_models

    alignment = align_models(board.linen_model, board.nnx_model, evidence)
    if alignment.problems:
        more = f" (and {len(alignment.problems) - 1} more)" if len(alignment.problems) > 1 else ""
        return f"aligning the models: {alignment.problems[0][0]}{more}"
    for piece in alignment.pieces:
        unknown = [*(n for n in piece.linen if n not in board.linen), *(n for n in piece.nnx if n not in board.nnx)]
        if unknown:
            return "aligning the models: not all of their variables are in the checkpoint"
    board.pieces.clear()
    for aligned in alignment.found:
        board.settle(replace(aligned.piece, confidence=aligned.confidence.value))
    return ""
