"""JSON values of reports to make pages from: large ones, and ones with everything that a report can tell."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

MODULES = ("attention/query", "attention/key", "attention/out", "mlp/up", "mlp/down", "norm_in", "norm_out", "gate")


def step(target: str, *sources: str, **more: Any) -> dict[str, Any]:
    made = {"target": target, "leaf": "float32[8,8]", "sources": list(sources), "operation": "rewrap", "bytes": 256}
    return {**made, "strategy": "relink", "bytes_moved": 0, **more}


def layered(layers: int, module: str = "params/layers_{}", source: str = "layers/{}") -> list[dict[str, Any]]:
    """The steps of a model of equal layers with eight kernels each."""
    return [
        step(f"{module.format(name)}/{each}/kernel", f"{source.format(name)}/{each}/kernel")
        for name in range(layers)
        for each in MODULES
    ]


def unlike(number: int) -> list[dict[str, Any]]:
    """Steps that cannot be folded: no two names differ in a number."""
    letters = "abcdefghij"
    names = ("".join(letters[int(digit)] for digit in str(each)) for each in range(number))
    return [step(f"params/{name}/kernel", f"{name}x/kernel") for name in names]


def plan(steps: Iterable[dict[str, Any]], **more: Any) -> dict[str, Any]:
    steps = list(steps)
    moved: dict[str, dict[str, int]] = {}
    for each in steps:
        if "strategy" in each:
            sums = moved.setdefault(each["strategy"], {"leaves": 0, "bytes": 0})
            sums["leaves"] += 1
            sums["bytes"] += each["bytes"]
    return {
        "from": {"framework": "NNX", "dialect": "nnx.State of a model"},
        "to": {"framework": "Linen", "dialect": "Linen variables"},
        "steps": steps,
        "dropped": [],
        "conditions": [],
        "empty": [],
        "bytes": moved,
        "notes": [],
        "problems": [],
        **more,
    }


def report(steps: Iterable[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """What a conversion without models tells that went well."""
    made = plan(steps)
    leaves, nbytes = len(made["steps"]), sum(each["bytes"] for each in made["steps"])
    proofs = {"reference": {"leaves": leaves, "bytes": nbytes}}
    return {
        "ok": True,
        "verified": True,
        "source": "in/checkpoint",
        "destination": "out",
        "written": {"linked": nbytes, "copied": 0, "streamed": 0, "unused": 0},
        "plan": made,
        "structure": {"ok": True, "leaves": leaves, "differences": [], "notes": []},
        "values": {
            "ok": True,
            "leaves": leaves,
            "bytes": nbytes,
            "proofs": proofs,
            "reader": None,
            "differences": [],
        },
        "outputs": None,
        **more,
    }


def output(name: str, max_abs: float, limit: float, **more: Any) -> dict[str, Any]:
    return {"name": name, "spec": "float32[2]", "max_abs": max_abs, "limit": limit, "bitwise": max_abs == 0, **more}


def everything() -> dict[str, Any]:
    """A conversion of 32 layers that failed, with whatever a report can tell."""
    steps = layered(32)
    for each in steps:
        each["confidence"] = "exact"
    gates = [f"gru/{gate}/kernel" for gate in ("ir", "iz", "in")]
    stacked = [f"tower/{number}/kernel" for number in range(12)]
    steps += [
        step("params/gru/hidden/kernel", *gates, operation="concat, axis 1", strategy="stream", confidence="traced"),
        step("params/tower/kernel", *stacked, operation="stack, axis 0", confidence="numeric"),
        step("params/head/kernel", "lm_head/kernel", operation="transpose", strategy="copy", confidence="guessed"),
        step("batch_stats/mean", operation="filled with 0: the model's own initial value", strategy="stream"),
    ]
    steps += [step(f"params/parts_{n}/kernel", "parts/kernel", operation="unstack 4, axis 0") for n in range(4)]
    value = report(steps, ok=False)
    value["plan"] |= {
        "dropped": [
            {"source": f"layers/{n}/rngs/key", "leaf": "key<threefry2x32>[]", "reason": "NNX random state"}
            for n in range(32)
        ],
        "conditions": [{"sources": ["gru/hn/bias"], "demand": "all values are 0"}],
        "empty": [{"source": "opt_state/1", "reason": "a container without leaves"}],
        "notes": ["only the item state is converted"],
    }
    value["values"] |= {
        "ok": False,
        "differences": [
            {"path": f"params/layers_{n}/mlp/up/kernel", "expected": "1.0 at [0,0]", "found": "2.0 there"}
            for n in range(3)
        ],
    }
    outputs = [
        output("logits", 3.1e-6, 2.4e-4, max_rel=1.1e-6, max_ulp=12),
        output("hidden", 0.3, 0.02, max_rel=0.1, max_ulp=900),
        output("loss", 0.0, 1e-5),
        output("broken", math.inf, 1e-5),
    ]
    value["outputs"] = {"ok": False, "inputs": ["int32[2,5]"], "problem": "", "outputs": outputs, "seeds": [0, 1, 2]}
    advice = "Nothing was kept. --no-verify writes the result all the same."
    value["error"] = {"message": "in/checkpoint → out", "advice": advice, "exit_code": 1}
    return value


def pair(linen: Iterable[str], nnx: Iterable[str], confidence: str = "exact", **more: Any) -> dict[str, Any]:
    """Variables that are each other's, as an alignment tells."""
    made = {"linen": list(linen), "nnx": list(nnx), "operation": "", "confidence": confidence, "remark": ""}
    return {**made, **more}


def alignment(aligned: Iterable[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """What ``align --json`` prints of models that were confirmed to compute the same."""
    aligned = list(aligned)
    return {
        "ok": True,
        "linen": "Encoder",
        "nnx": "Decoder",
        "variables": {
            side: {name: "float32[8,8]" for each in aligned for name in each[side]} for side in ("linen", "nnx")
        },
        "confirmed": True,
        "outputs": {"ok": True, "inputs": ["int32[2,5] < 17"], "outputs": [output("output", 2e-16, 1e-10)]},
        "aligned": aligned,
        "problems": [],
        "unstated": [],
        "rules": '[[rule]]\nlinen = "params/<b>"\nnnx = "b"\n',
        **more,
    }


def aligned_layers() -> list[dict[str, Any]]:
    """Pairs of twelve layers and of what is around them, in all classes of confidence."""
    layers = [
        pair([f"params/layer_{n}/{key}/kernel"], [f"params/blocks/{n}/{key}/w"], "traced")
        for n in range(12)
        for key in ("up", "down")
    ]
    fused = [
        pair(
            [f"params/layer_{n}/{each}/kernel" for each in "qkv"], [f"params/blocks/{n}/qkv/w"], operation="stack of 3"
        )
        for n in range(12)
    ]
    return [
        *layers,
        *fused,
        pair(["params/embed/embedding"], ["params/table/w"]),
        pair(["params/left/kernel"], ["params/first/w"], "numeric"),
        pair(["batch_stats/norm/mean"], ["batch_stats/norm/mean"], "guessed", remark="not used by the call"),
        pair(["params/head/bias"], [], "traced", operation="only Linen adds it: it has to be zero", remark="zero"),
    ]


def refused_alignment() -> dict[str, Any]:
    """An alignment with open questions, as the error that the command ends with."""
    value = alignment(aligned_layers(), ok=False, confirmed=False, outputs=None, rules=None)
    value["variables"]["linen"] |= {f"params/branch_{n}/kernel": "float32[8,8]" for n in range(4)}
    value["variables"]["nnx"] |= {f"params/twigs/{n}/w": "float32[8,8]" for n in range(4)}
    unlike = "Give inputs that tell them apart."
    value["problems"] = [
        {"problem": "params/branch_0/kernel of Linen can be any of params/twigs/0/w of NNX", "advice": unlike},
        {"problem": "params/spare: float32[3] of NNX is not used by the call", "advice": "Align a call that uses it."},
    ]
    return {**value, "error": {"message": "cannot be aligned", "advice": unlike, "exit_code": 3}}
