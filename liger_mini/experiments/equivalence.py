"""The equivalence matrix: every structure and the window, in every form, against float64 (promise 1).

One table: structure x backend x dtype x {output, final state, every gradient}. A cell is the relative RMS error

    ‖x - x₆₄‖ / ‖x₆₄‖

where x₆₄ is the naive form in float64, given the very same (already rounded) inputs.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from liger_mini.recurrences.compiled import numba_is_missing
from liger_mini.structures import Structure, structures
from liger_mini.support.paths import write_atomically
from liger_mini.support.provenance import provenance
from liger_mini.window import sliding_window_attention

# float32: sums of a few hundred roundings of 6e-8, mostly averaged out. Triton: tf32-free products, but exp and log of
# a GPU. bfloat16: what goes in is exact for both sides, what comes out is rounded to 8 bits, 2^-9 relative each.
TOLERANCES = {
    ("naive", "float32"): 1e-5,
    ("chunked", "float32"): 1e-5,
    ("compiled", "float32"): 1e-5,
    ("triton", "float32"): 1e-4,
    ("naive", "bfloat16"): 1e-2,
    ("chunked", "bfloat16"): 1e-2,
    ("compiled", "bfloat16"): 1e-2,
    ("triton", "bfloat16"): 1e-2,
}
SHAPE = {"B": 2, "T": 130, "H": 4, "H_kv": 2, "K": 24, "V": 20}  # two chunks and a rest, groups, no powers of two
WINDOW = 20


FORMS = ("naive", "chunked", *(() if numba_is_missing() else ("compiled",)), "triton")  # that this machine can have
WITHOUT = {"compiled": ("gsa", "window")}  # what a form is not there for


def relative_rms(value: Tensor, reference: Tensor) -> float:
    """‖value - reference‖ / ‖reference‖ in float64; the norm of value itself where the reference is 0."""
    scale = reference.double().norm()
    return ((value.double() - reference.double()).norm() / (scale if scale > 0 else 1)).item()


def projections(dtype: torch.dtype, device: torch.device | str = "cpu", seed: int = 0) -> list[Tensor]:
    """Random q, k, v as a layer projects them, [B, T, heads, ·]."""
    generator = torch.Generator().manual_seed(seed)
    B, T, H, H_kv, K, V = SHAPE.values()
    draw = lambda *shape: torch.randn(*shape, generator=generator).to(device, dtype)  # noqa: E731
    return [draw(B, T, H, K), draw(B, T, H_kv, K), draw(B, T, H_kv, V)]


def differentiate(run: Callable, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """Everything `run(leaves)` returns, by name, and the gradient of every leaf for a loss in which all of it counts."""
    leaves = {name: x.detach().requires_grad_() for name, x in leaves.items()}
    results = run(leaves)
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(x.shape, generator=generator).to(x) for x in results.values()]
    gradients = torch.autograd.grad(list(results.values()), list(leaves.values()), upstream)
    return {**results, **{f"d {name}": g for name, g in zip(leaves, gradients)}}


def run_recurrence(structure: Structure, leaves: dict[str, Tensor], backend: str) -> dict[str, Tensor]:
    inputs = {name: x for name, x in leaves.items() if not name.startswith("initial")}
    states = tuple(x for name, x in leaves.items() if name.startswith("initial"))
    o, finals = structure.recurrence(inputs, states, backend=backend)
    return {"output": o, **{f"final state {i}": S for i, S in enumerate(finals) if S is not None}}


def run_window(leaves: dict[str, Tensor], backend: str) -> dict[str, Tensor]:
    return {"output": sliding_window_attention(*leaves.values(), WINDOW, backend=backend)}


def recurrence_leaves(structure: Structure, dtype: torch.dtype, device: torch.device | str) -> dict[str, Tensor]:
    """What the structure gives its recurrence, rounded to `dtype` (gates and states float32), by name."""
    leaves = structure.inputs(*projections(dtype, device))
    leaves["log_gate"] = leaves["log_gate"].clone()  # an expanded view cannot be a leaf of its own
    # after one pass over the same tokens: states as they occur
    _, states = structure.recurrence(leaves, (None,) * (structure.states - structure.carries), backend="chunked")
    return {**leaves, **{f"initial state {i}": S.float() for i, S in enumerate(states) if S is not None}}


def matrix(backends: Iterable[str] = FORMS, device: torch.device | str = "cpu") -> Iterator[dict[str, Any]]:
    """The rows of the table, structure by structure.

    Args:
        backends: "compiled" needs a CPU and numba, "triton" needs a GPU or TRITON_INTERPRET=1.
    """
    for dtype in (torch.float32, torch.bfloat16):
        subjects: dict[str, tuple[Callable, dict[str, Tensor]]] = {
            name: (functools.partial(run_recurrence, structure), recurrence_leaves(structure, dtype, device))
            for name, structure in structures.items()
        }
        subjects["window"] = run_window, dict(zip("qkv", projections(dtype, device)))
        for name, (subject, leaves) in subjects.items():
            exact = {leaf: x.double() for leaf, x in leaves.items()}
            truth = differentiate(functools.partial(subject, backend="naive"), exact)
            for backend in (b for b in backends if name not in WITHOUT.get(b, ())):
                kind = str(dtype).removeprefix("torch.")
                tolerance = TOLERANCES[backend, kind]
                for what, value in differentiate(functools.partial(subject, backend=backend), leaves).items():
                    error = relative_rms(value, truth[what])
                    row = {"structure": name, "backend": backend, "dtype": kind, "what": what, "error": error}
                    yield {**row, "tolerance": tolerance, "ok": error <= tolerance}


def run(output: str | Path = "runs/equivalence.json") -> dict[str, Any]:
    """The whole matrix on this machine, written as JSON, the worst cell of each structure and form printed."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = list(matrix([form for form in FORMS if device == "cpu" or form != "compiled"], device))
    worst: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in rows:
        key = (row["structure"], row["backend"], row["dtype"])
        worst[key] = max(worst.get(key, row), row, key=lambda r: r["error"])
    for (structure, backend, dtype), row in worst.items():
        verdict = "ok" if row["ok"] else "TOO LARGE"
        print(
            f"{structure:16} {backend:8} {dtype:9} {row['error']:.1e} ≤ {row['tolerance']:.0e}  {row['what']}  {verdict}"
        )
    result = {"shape": SHAPE, "device": device, "rows": rows, "provenance": provenance()}
    write_atomically(Path(output), json.dumps(result, indent=1))
    return result
