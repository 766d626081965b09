"""What is measured: every case, its contenders and its targets, as literal tables.

In commands SRC and DST are the case's checkpoints and RULES is benchmarks/stack.toml; flax-convert and python are those
of the environment that runs the benchmark.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from benchmarks.check import Format
from benchmarks.sources import Source
from benchmarks.tree import Layout

Role = Literal["ours", "today", "limit"]
"""The converter; what people do without it; what copying or reading the same bytes costs."""

DEFAULT_SIZES = ("512MB", "2GB", "8GB")
DEFAULT_LEAVES = 50_000
QUICK_LEAVES = 5_000
QUICK_SIZES: dict[str, tuple[str, ...]] = {
    "rename": ("16MB", "64MB", "256MB"),
    "msgpack-to-orbax": ("64MB",),
    "orbax-to-msgpack": ("64MB",),
    "stack": ("64MB",),
    "verify-linked": ("64MB",),
    "leaves-rename": (),
}


@dataclass(frozen=True, slots=True)
class Contender:
    """``needs``: an option that the command line must have. ``looks``: it makes nothing, only prints."""

    name: str
    role: Role
    command: str
    needs: str = ""
    looks: bool = False


@dataclass(frozen=True, slots=True)
class Case:
    """``makes``: format and layout of the result. A verification makes nothing; ``pair`` is what made its DST.

    Of each role the first contender is the one that the others are compared with.
    """

    name: str
    title: str
    source: Source
    contenders: tuple[Contender, ...]
    makes: tuple[Format, Layout] | None
    pair: Contender | None = None
    small: bool = False


def _ours(command: str) -> tuple[Contender, ...]:
    return (
        Contender("flax-convert", "ours", command),
        Contender("flax-convert --copy", "ours", f"{command} --copy", needs="--copy"),
        Contender("flax-convert --no-verify", "ours", f"{command} --no-verify"),
    )


def _today(name: str, script: str) -> Contender:
    return Contender(name, "today", f"python -m benchmarks.contenders {script} SRC DST")


TO_LINEN = "flax-convert nnx-to-linen SRC DST"
TO_NNX = "flax-convert linen-to-nnx SRC DST"

RENAME = (*_ours(TO_LINEN), _today("Orbax restore + rename + save", "restore-save"))
FROM_MSGPACK = (*_ours(TO_NNX), _today("flax msgpack_restore + Orbax save", "msgpack-save"))
TO_MSGPACK = (*_ours(TO_LINEN), _today("Orbax restore + flax to_bytes", "restore-msgpack"))
STACK = (*_ours(f"{TO_NNX} --rules RULES"), _today("Orbax restore + np.stack + save", "restore-stack"))
UNSTACK = (*_ours(f"{TO_LINEN} --rules RULES"), _today("Orbax restore + slices + save", "restore-unstack"))
VERIFY = (
    Contender("flax-convert verify", "ours", "flax-convert verify SRC DST"),
    _today("decode both, np.array_equal", "compare"),
    Contender("cat both > /dev/null", "limit", """sh -c 'find "$@" -type f -exec cat {} + > /dev/null' cat SRC DST"""),
)
LOOK = (
    Contender("flax-convert inspect", "ours", "flax-convert inspect SRC", looks=True),
    Contender("flax-convert --dry-run", "ours", f"{TO_LINEN} --dry-run", looks=True),
)
CP = Contender("cp", "limit", "cp SRC DST")
CP_R = Contender("cp -r", "limit", "cp -r SRC DST")
CP_RL = Contender("cp -rl", "limit", "cp -rl SRC DST")
LINKED = Contender("linked", "ours", f"{TO_LINEN} --no-verify")
COPIED = Contender("copied", "ours", f"{TO_LINEN} --no-verify --copy", needs="--copy")

ORBAX_NNX: tuple[Format, Layout] = ("orbax", "nnx")
ORBAX_LINEN: tuple[Format, Layout] = ("orbax", "linen")
ORBAX_SCANNED: tuple[Format, Layout] = ("orbax", "scanned")
MSGPACK_LINEN: tuple[Format, Layout] = ("msgpack", "linen")

CASES: tuple[Case, ...] = (
    Case("rename", "Orbax → Orbax, leaves renamed (NNX → Linen)", "nnx", (*RENAME, CP_R, CP_RL), ORBAX_LINEN),
    Case("orbax-to-msgpack", "Orbax → msgpack (NNX → Linen)", "nnx", (*TO_MSGPACK, CP_R), MSGPACK_LINEN),
    Case("verify-linked", "Verification of a conversion", "nnx", VERIFY, None, pair=LINKED),
    Case("verify-copied", "Verification of a conversion made with --copy", "nnx", VERIFY, None, pair=COPIED),
    Case("msgpack-to-orbax", "msgpack → Orbax (Linen → NNX)", "linen.msgpack", (*FROM_MSGPACK, CP), ORBAX_NNX),
    Case("stack", "Layers stacked (Linen loop → NNX scan, axis 1)", "linen", (*STACK, CP_R), ORBAX_SCANNED),
    Case("unstack", "Layers unstacked, one chunk per layer", "scanned", (*UNSTACK, CP_R), ORBAX_LINEN),
    Case(
        "unstack-one-chunk",
        "Layers unstacked, all in one chunk",
        "scanned-one-chunk",
        (*UNSTACK, CP_R),
        ORBAX_LINEN,
    ),
    Case(
        "leaves-rename",
        "Many small leaves, Orbax → Orbax",
        "nnx",
        (*RENAME, *LOOK, CP_R, CP_RL),
        ORBAX_LINEN,
        small=True,
    ),
    Case(
        "leaves-orbax-to-msgpack",
        "Many small leaves, Orbax → msgpack",
        "nnx",
        (*TO_MSGPACK, CP_R),
        MSGPACK_LINEN,
        small=True,
    ),
    Case(
        "leaves-msgpack-to-orbax",
        "Many small leaves, msgpack → Orbax",
        "linen.msgpack",
        (*FROM_MSGPACK, CP),
        ORBAX_NNX,
        small=True,
    ),
)
"""Cases of one source stand together: it is made once for them."""
